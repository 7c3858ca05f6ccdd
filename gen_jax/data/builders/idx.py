"""MNIST and its drop-in replacements, read from their original IDX files without TensorFlow."""

import gzip
import hashlib

import numpy as np

from gen_jax.data.builders.arrays import ArrayBuilder, label, vector
from gen_jax.errors import UserError

__all__ = ["FILES", "FashionMnist", "IdxBuilder", "Mnist", "read_idx"]

FILES = {
    ("train", "x"): "train-images-idx3-ubyte.gz",
    ("train", "label"): "train-labels-idx1-ubyte.gz",
    ("test", "x"): "t10k-images-idx3-ubyte.gz",
    ("test", "label"): "t10k-labels-idx1-ubyte.gz",
}


def read_idx(path, sha256: str) -> np.ndarray:
    """A gzipped IDX file of bytes (big-endian sizes, then data), checked against its published content."""
    packed = open(path, "rb").read()
    if hashlib.sha256(packed).hexdigest() != sha256:
        raise UserError(f"{path} is not the published file (its SHA-256 differs): download it again")
    raw = gzip.decompress(packed)
    shape = np.frombuffer(raw, ">i4", count=raw[3], offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


class IdxBuilder(ArrayBuilder):
    """60,000 training and 10,000 test images (28, 28, 1) uint8 with ten classes."""

    LEVELS = 256
    URL = ""
    SHA256: dict[tuple[str, str], str] = {}

    def features(self):
        return {"x": vector(28, 28, 1, dtype=np.uint8), "label": label(10)}

    def arrays(self, downloads):
        paths = downloads.download({key: self.URL + name for key, name in FILES.items()})
        arrays = {key: read_idx(path, self.SHA256[key]) for key, path in paths.items()}
        return {
            split: {"x": arrays[split, "x"][..., None], "label": arrays[split, "label"].astype(np.int64)}
            for split in ("train", "test")
        }


class Mnist(IdxBuilder):
    """MNIST (LeCun, Cortes & Burges 1998)."""

    URL = "https://storage.googleapis.com/cvdf-datasets/mnist/"
    SHA256 = {
        ("train", "x"): "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        ("train", "label"): "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        ("test", "x"): "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        ("test", "label"): "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    }


class FashionMnist(IdxBuilder):
    """Fashion-MNIST (Xiao, Rasul & Vollgraf 2017)."""

    URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
    SHA256 = {
        ("train", "x"): "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        ("train", "label"): "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        ("test", "x"): "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        ("test", "label"): "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    }
