"""Files of named arrays: safetensors, and PyTorch checkpoints, read without executing any of their code."""

from __future__ import annotations

import collections
import io
import math
import os
import pickle
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gen_jax.errors import UserError
from gen_jax.files import write_bytes

__all__ = ["kind_of", "read_pytorch", "read_tensors", "write_tensors"]

_LEGACY = 0x1950A86A20F9469CFC6C  # the first object of a PyTorch file before version 1.6
_DTYPES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("<i1"),
    "ByteStorage": np.dtype("<u1"),
    "BoolStorage": np.dtype("?"),
}


def write_tensors(path: Path, arrays: Mapping[str, np.ndarray], about: Mapping[str, str]) -> None:
    """Writes a safetensors file atomically."""
    from safetensors.numpy import save

    try:
        write_bytes(path, save({name: np.ascontiguousarray(a) for name, a in arrays.items()}, dict(about)))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None


def read_tensors(path: Path, kind: str) -> tuple[dict[str, np.ndarray], Mapping[str, str]]:
    """The arrays and metadata of a safetensors file, whose "kind" must match."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError(f"there is no file {path}")
    try:
        with safe_open(str(path), framework="numpy") as file:
            about = file.metadata() or {}
            if about.get("kind") != kind:
                raise UserError(f"{path} is no file of the kind {kind!r}, but {about.get('kind', 'something else')!r}")
            return {name: file.get_tensor(name) for name in file.keys()}, about
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is damaged or no safetensors file: {error}") from None


def kind_of(path: Path) -> str:
    """The "kind" in the metadata of a safetensors file; "" if absent, or for other files."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy") as file:
            return (file.metadata() or {}).get("kind", "")
    except (SafetensorError, OSError, ValueError):
        return ""


def read_pytorch(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a state dict saved by PyTorch, in the current or the legacy format.

    Such files are pickles. Only tensors, storages and dictionaries are allowed, so that loading executes no code from
    the file.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    try:
        state = _zipped(path) if zipfile.is_zipfile(path) else _legacy(path)
        state = state.get("state_dict", state)
        return {str(name): a.array() for name, a in state.items() if isinstance(a, _Tensor)}
    except UserError:
        raise
    except (pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
        raise UserError(f"{path} is damaged or no PyTorch file: {error}") from None
    except (KeyError, ValueError, TypeError, IndexError, AttributeError, OverflowError, MemoryError) as error:
        raise UserError(f"{path} is damaged or no PyTorch file ({type(error).__name__}: {error})") from None


class _Storage:
    """The flat memory of a tensor; in legacy files it follows the descriptions of all tensors."""

    def __init__(self, dtype: np.dtype, size: int):
        self.dtype, self.size, self.bytes = dtype, size, b""


class _Tensor:
    def __init__(self, storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]):
        self.storage, self.offset, self.shape, self.strides = storage, offset, tuple(shape), tuple(strides)

    def array(self) -> np.ndarray:
        """A copy in row-major order."""
        flat = np.frombuffer(self.storage.bytes, self.storage.dtype)
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides))
        if math.prod(self.shape) > len(flat) or (min(self.shape, default=1) > 0 and last >= len(flat)):
            raise ValueError("a tensor reaches beyond its storage")
        if any(s < 0 for s in self.strides) or self.offset < 0:
            raise ValueError("a tensor of negative strides")
        steps = [s * flat.itemsize for s in self.strides]
        return np.lib.stride_tricks.as_strided(flat[self.offset :], self.shape, steps, writeable=False).copy()


def _tensor(storage, offset, shape, strides, *rest) -> _Tensor:
    return _Tensor(storage, offset, shape, strides)


class _Reader(pickle.Unpickler):
    """An unpickler restricted to a fixed set of names."""

    _NAMES = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): _tensor,
        ("torch._utils", "_rebuild_parameter"): lambda tensor, *rest: tensor,
    }

    def __init__(self, file, storages: dict[str, _Storage]):
        super().__init__(file, encoding="utf-8")
        self.storages = storages

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        known: Any = self._NAMES.get((module, name))
        if known is not None:
            return known if isinstance(known, type) else lambda *given: known(*given)  # no attributes can be set on it
        raise UserError(f"this file wants to use {module}.{name}: only state dicts of tensors are read")

    def persistent_load(self, pid: Any) -> _Storage:
        _, dtype, key, _, size, *_ = pid
        return self.storages.setdefault(str(key), _Storage(dtype, int(size)))


def _zipped(path: Path) -> Mapping[str, Any]:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        (record,) = [name for name in names if name.endswith("/data.pkl") or name == "data.pkl"] or [""]
        if not record:
            raise UserError(f"{path} is a zip file, but none of PyTorch's: it has no data.pkl")
        folder, storages = record.removesuffix("data.pkl"), {}
        state = _Reader(io.BytesIO(archive.read(record)), storages).load()
        for key, storage in storages.items():
            storage.bytes = archive.read(f"{folder}data/{key}")
        return state


def _legacy(path: Path) -> Mapping[str, Any]:
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        storages: dict[str, _Storage] = {}
        read = lambda: _Reader(file, storages).load()
        if read() != _LEGACY:
            raise UserError(f"{path} is no PyTorch file")
        read(), read()  # the version of the format, and of the machine
        state = read()
        for key in read():
            (count,) = np.frombuffer(file.read(8), "<i8")
            storage = storages[str(key)]
            wanted = int(count) * storage.dtype.itemsize
            if not 0 <= wanted <= size:
                raise ValueError("a storage larger than the file")
            storage.bytes = file.read(wanted)
            if len(storage.bytes) < wanted:
                raise EOFError("the file ends in the middle of a tensor")
        return state
