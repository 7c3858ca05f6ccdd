"""The command `encoder`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from gen_jax.cli.options import DataDir, check_ending
from gen_jax.errors import UserError

__all__ = ["encoder"]


def encoder(
    action: Positional[Literal["train", "convert"]],
    source: Positional[str],
    out: Positional[Path],
    preprocessing: Literal["tensorflow", "pytorch_fid"] = "tensorflow",
    data_dir: DataDir = None,
) -> None:
    """Creates a file with an image feature encoder, for --encoder.

    Args:
        action: train a small classifier, or convert the weights of the FID's Inception
        source: the data set to train on, or the PyTorch file (pt_inception-2015-12-05-6726825d.pth)
        out: the file to write (.safetensors)
        preprocessing: for converted weights, how images are resized: as in the original or as in pytorch-fid
    """
    check_ending(out, (".safetensors",))
    if not out.resolve().parent.is_dir():
        raise UserError(f"{out}: there is no folder {out.parent}")
    if action == "convert":
        from gen_jax.evaluation.samples.inception import convert

        convert(Path(source), out, preprocessing)
        print(f"the FID's Inception, resized as by {preprocessing}, in {out}")
        return
    from gen_jax.data.loading import load
    from gen_jax.evaluation.metric import Split
    from gen_jax.evaluation.samples.features import fit_small_cnn, save_small_cnn

    data = load(source, data_dir)
    made = fit_small_cnn(Split("test", data["test"], training=data["train"], data=source, info=data.info))
    save_small_cnn(made, out)
    print(f"a classifier of {source} with test accuracy {made.accuracy:.4f} in {out}")
