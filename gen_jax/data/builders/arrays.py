"""Base class of our builders: they make whole arrays, and need neither TensorFlow nor, mostly, a network."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tensorflow_datasets as tfds

__all__ = ["ArrayBuilder", "label", "split_arrays", "vector"]


class ArrayBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A `tensorflow_datasets` builder over arrays. Subclasses define `features` and `arrays`.

    Subclasses are not registered by name, which a catalog set may share: `gen_jax.data.catalogue` finds them.
    """

    VERSION = tfds.core.Version("1.0.0")
    LEVELS: int | None = None  # for integer data 0 .. LEVELS - 1
    COLUMNS: tuple[str, ...] = ()  # of a table: the names of the entries of "x"
    CATEGORIES: tuple[tuple[str, ...], ...] = ()  # of a table, per column: the names of its codes, () for numbers

    def __init_subclass__(cls, **options):
        super().__init_subclass__(skip_registration=True, **options)

    def features(self) -> Mapping[str, tfds.features.FeatureConnector]:
        raise NotImplementedError

    def arrays(self, downloads: tfds.download.DownloadManager) -> Mapping[str, Mapping[str, np.ndarray]]:
        """{split: {feature: (N, ...)}}"""
        raise NotImplementedError

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(dict(self.features())))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(arrays) for split, arrays in self.arrays(dl_manager).items()}

    def _generate_examples(self, arrays):
        for i in range(len(arrays["x"])):
            yield i, {name: a[i] for name, a in arrays.items()}


def vector(*shape: int, dtype=np.float32) -> tfds.features.Tensor:
    return tfds.features.Tensor(shape=shape, dtype=dtype)


def label(classes: int) -> tfds.features.ClassLabel:
    return tfds.features.ClassLabel(num_classes=classes)


def split_arrays(arrays: Mapping[str, np.ndarray], train: int, validation: int) -> dict[str, dict[str, np.ndarray]]:
    """Splits into the first `train` examples, the next `validation`, and the rest for test."""
    cuts = {
        "train": slice(train),
        "validation": slice(train, train + validation),
        "test": slice(train + validation, None),
    }
    return {split: {name: a[cut] for name, a in arrays.items()} for split, cut in cuts.items()}
