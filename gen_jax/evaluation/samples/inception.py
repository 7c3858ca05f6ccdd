"""The Inception network of the FID (Szegedy et al. 2016; weights of Heusel et al. 2017), from a user-provided file.

    python -m gen_jax encoder convert pt_inception-2015-12-05-6726825d.pth inception.safetensors

converts the standard PyTorch file. The network differs from torchvision's as TensorFlow's graph does: average pooling
excludes the padding, and the last block uses max pooling where the others average.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from gen_jax.errors import UserError
from gen_jax.evaluation.samples.features import Encoder
from gen_jax.evaluation.samples.weights_io import read_pytorch, read_tensors, write_tensors

__all__ = [
    "CLASSES",
    "KIND",
    "SIDE",
    "Inception",
    "Preprocessing",
    "convert",
    "folded",
    "inception",
    "interpolation",
    "prepared",
]

KIND = "gen_jax inception 1"
SIDE = 299
CLASSES = 1008
_EPSILON = 1e-3  # of the batch normalizations


class Inception(nn.Module):
    """(B, 299, 299, 3) in [-1, 1] -> features (B, 2048) and logits (B, 1008).

    Batch normalization is folded into kernels and biases. Parameters are named as in torchvision, BLOCK_BRANCH.
    """

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        x = self.conv("Conv2d_1a_3x3", x, 32, 3, 2, "VALID")
        x = self.conv("Conv2d_2a_3x3", x, 32, 3, padding="VALID")
        x = _halved(self.conv("Conv2d_2b_3x3", x, 64, 3))
        x = self.conv("Conv2d_3b_1x1", x, 80)
        x = _halved(self.conv("Conv2d_4a_3x3", x, 192, 3, padding="VALID"))
        for block, pooled in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
            x = self.of_5x5(block, x, pooled)
        x = self.to_17x17("Mixed_6a", x)
        for block, width in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
            x = self.of_7x7(block, x, width)
        x = self.to_8x8("Mixed_7a", x)
        x = self.of_both("Mixed_7b", x, _averaged)
        x = self.of_both("Mixed_7c", x, _strongest)
        features = x.mean(axis=(1, 2))
        return features, nn.Dense(CLASSES, name="fc")(features)

    def conv(self, name: str, x: Array, width: int, kernel: Any = 1, stride: int = 1, padding: str = "SAME") -> Array:
        kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
        return nn.relu(nn.Conv(width, kernel, stride, padding, name=name)(x))

    def chain(self, block: str, x: Array, *layers: Any) -> Array:
        for name, *rest in layers:
            x = self.conv(f"{block}_{name}", x, *rest)
        return x

    def of_5x5(self, block: str, x: Array, pooled: int) -> Array:
        double = [("branch3x3dbl_1", 64), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)]
        branches = [
            self.chain(block, x, ("branch1x1", 64)),
            self.chain(block, x, ("branch5x5_1", 48), ("branch5x5_2", 64, 5)),
            self.chain(block, x, *double),
            self.chain(block, _averaged(x), ("branch_pool", pooled)),
        ]
        return jnp.concatenate(branches, axis=-1)

    def to_17x17(self, block: str, x: Array) -> Array:
        double = [("branch3x3dbl_1", 64), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3, 2, "VALID")]
        branches = [self.chain(block, x, ("branch3x3", 384, 3, 2, "VALID")), self.chain(block, x, *double), _halved(x)]
        return jnp.concatenate(branches, axis=-1)

    def of_7x7(self, block: str, x: Array, width: int) -> Array:
        across, down = (1, 7), (7, 1)
        double = [("1", width), ("2", width, down), ("3", width, across), ("4", width, down), ("5", 192, across)]
        branches = [
            self.chain(block, x, ("branch1x1", 192)),
            self.chain(block, x, ("branch7x7_1", width), ("branch7x7_2", width, across), ("branch7x7_3", 192, down)),
            self.chain(block, x, *((f"branch7x7dbl_{number}", *rest) for number, *rest in double)),
            self.chain(block, _averaged(x), ("branch_pool", 192)),
        ]
        return jnp.concatenate(branches, axis=-1)

    def to_8x8(self, block: str, x: Array) -> Array:
        seven = [("1", 192), ("2", 192, (1, 7)), ("3", 192, (7, 1)), ("4", 192, 3, 2, "VALID")]
        branches = [
            self.chain(block, x, ("branch3x3_1", 192), ("branch3x3_2", 320, 3, 2, "VALID")),
            self.chain(block, x, *((f"branch7x7x3_{number}", *rest) for number, *rest in seven)),
            _halved(x),
        ]
        return jnp.concatenate(branches, axis=-1)

    def of_both(self, block: str, x: Array, pool) -> Array:
        single = self.chain(block, x, ("branch3x3_1", 384))
        double = self.chain(block, x, ("branch3x3dbl_1", 448), ("branch3x3dbl_2", 384, 3))
        branches = [
            self.chain(block, x, ("branch1x1", 320)),
            self.chain(block, single, ("branch3x3_2a", 384, (1, 3))),
            self.chain(block, single, ("branch3x3_2b", 384, (3, 1))),
            self.chain(block, double, ("branch3x3dbl_3a", 384, (1, 3))),
            self.chain(block, double, ("branch3x3dbl_3b", 384, (3, 1))),
            self.chain(block, pool(x), ("branch_pool", 192)),
        ]
        return jnp.concatenate(branches, axis=-1)


def _halved(x: Array) -> Array:
    return nn.max_pool(x, (3, 3), (2, 2), "VALID")


def _averaged(x: Array) -> Array:
    return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)


def _strongest(x: Array) -> Array:
    return nn.max_pool(x, (3, 3), (1, 1), "SAME")


def interpolation(size: int, half_pixels: bool) -> np.ndarray:
    """(299, size) weights of bilinear interpolation without antialiasing.

    TensorFlow 1 puts output pixel i at i * size / 299; `half_pixels`, as in PyTorch, at (i + 1/2) size / 299 - 1/2.
    """
    at = np.arange(SIDE, dtype=np.float32) * np.float32(size / SIDE)
    if half_pixels:
        at = np.maximum((np.arange(SIDE, dtype=np.float32) + 0.5) * np.float32(size / SIDE) - 0.5, 0)
    low = np.minimum(np.floor(at).astype(int), size - 1)
    high, part = np.minimum(low + 1, size - 1), at - low
    rows = np.arange(SIDE)
    weights = np.zeros((SIDE, size), np.float32)
    np.add.at(weights, (rows, low), 1 - part)
    np.add.at(weights, (rows, high), part)
    return weights


Preprocessing = Literal["tensorflow", "pytorch_fid"]


def prepared(x_BHWC: Array, preprocessing: Preprocessing = "tensorflow") -> Array:
    """Preprocesses images in [0, 1], grayscale or RGB, for the network.

    "tensorflow": the resize of the original graph, then (255 x - 128) / 128. "pytorch_fid": that of pytorch-fid, with
    other pixel centers, then 2 x - 1.
    """
    torch = preprocessing == "pytorch_fid"
    down, across = (interpolation(size, torch) for size in x_BHWC.shape[1:3])
    x_BHWC = jnp.einsum("ih,bhwc,jw->bijc", down, x_BHWC, across, precision="highest")
    x_BHWC = jnp.broadcast_to(x_BHWC, (*x_BHWC.shape[:3], 3))
    return 2 * x_BHWC - 1 if torch else (255 * x_BHWC - 128) / 128


def inception(path: Path) -> Encoder:
    """The FID encoder, from a file written by `convert`; named "inception" or "inception_pytorch_fid"."""
    flat, about = read_tensors(Path(path), KIND)
    _check(flat, path)
    preprocessing = about.get("preprocessing", "tensorflow")
    params = unflatten_dict({name: jnp.asarray(a) for name, a in flat.items()}, sep=".")

    @jax.jit
    def encode(x: Array) -> Any:
        return Inception().apply({"params": params}, prepared(x, preprocessing))

    def checked(x: np.ndarray):
        if x.shape[-1] not in (1, 3):
            raise UserError(f"Inception takes images of 1 or 3 channels, these have {x.shape[-1]}")
        return encode(x)

    name = "inception" if preprocessing == "tensorflow" else f"inception_{preprocessing}"
    return Encoder(name, checked, "", (None, None, None), block=50)


def convert(source: Path, target: Path, preprocessing: Preprocessing = "tensorflow") -> None:
    """Converts the PyTorch file of FID weights to safetensors, folding batch normalization; executes none of it."""
    flat = folded(read_pytorch(Path(source)), source)
    _check(flat, source)
    write_tensors(Path(target), flat, {"kind": KIND, "preprocessing": preprocessing})


def folded(state: Mapping[str, np.ndarray], path: Any) -> dict[str, np.ndarray]:
    """{"Mixed_5b_branch1x1.kernel": ...} from a state dict {"Mixed_5b.branch1x1.conv.weight": ...}."""
    names = [name.removesuffix(".conv.weight") for name in state if name.endswith(".conv.weight")]
    names = [name for name in names if not name.startswith("AuxLogits")]
    try:
        flat = {"fc.kernel": state["fc.weight"].T, "fc.bias": state["fc.bias"]}
        for name in names:
            scale, shift, mean, variance = (
                state[f"{name}.bn.{part}"].astype(np.float64)
                for part in ("weight", "bias", "running_mean", "running_var")
            )
            scale = scale / np.sqrt(variance + _EPSILON)
            kernel = state[f"{name}.conv.weight"].astype(np.float64) * scale[:, None, None, None]
            own = name.replace(".", "_")
            flat |= {f"{own}.kernel": kernel.transpose(2, 3, 1, 0), f"{own}.bias": shift - mean * scale}
    except KeyError as missing:
        raise UserError(f"{path} holds no weights of Inception: {missing} is not there") from None
    return {name: np.asarray(a, np.float32) for name, a in flat.items()}


@functools.cache
def _shapes() -> dict[str, tuple[int, ...]]:
    image = jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), jnp.float32)
    params = jax.eval_shape(Inception().init, jax.random.key(0), image)["params"]
    return {name: s.shape for name, s in flatten_dict(params, sep=".").items()}


def _check(flat: Mapping[str, np.ndarray], path: Any) -> None:
    found = {name: a.shape for name, a in flat.items()}
    wrong = sorted(name for name in found.keys() | _shapes().keys() if found.get(name) != _shapes().get(name))
    if wrong:
        name = wrong[0]
        raise UserError(
            f"{path} holds other weights than those of the FID's Inception: {name} is {found.get(name, 'missing')} and "
            f"should be {_shapes().get(name, 'absent')} ({len(wrong)} such differences)"
        )
    if bad := [name for name, a in flat.items() if not np.isfinite(a).all()]:
        raise UserError(f"{path}: {bad[0]} holds NaN or infinite values")
