"""Reads checkpoint files without running code that they carry."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .layout import CheckpointError

__all__ = ["read_checkpoint"]

_REBUILDERS = {  # all that torch needs to rebuild tensors and containers; anything else becomes an inert placeholder
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
}


class _Inert(dict):
    """Stands in for any pickled object of another class (a config node, an argument namespace) and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        pass

    def extend(self, items: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> _Inert:
        return self


class _InertUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        safe = (module, name) in _REBUILDERS or (module == "torch" and name.endswith("Storage"))
        return super().find_class(module, name) if safe else _Inert


class _InertPickle:
    """What torch.load takes for `pickle_module`."""

    __name__ = "inert_pickle"
    Unpickler = _InertUnpickler
    UnpicklingError = pickle.UnpicklingError

    @staticmethod
    def load(file: Any, **kwargs: Any) -> Any:
        return _InertUnpickler(file, **kwargs).load()


def read_checkpoint(path: str | Path) -> Mapping[str, Any]:
    """The content of a .safetensors, .pth, .pt, .ckpt or .bin file, on the CPU.

    Files that hold more than tensors (pickled configs, argument namespaces) are read too: objects of unknown classes
    become inert placeholders and none of their code is run.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: the file is damaged, cut off, or no checkpoint at all.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint file at {path}")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise CheckpointError(f"{path} is not a complete safetensors file: {error}") from error
    try:
        content = _load_pickled(path)
    except CheckpointError:
        raise
    except Exception as error:  # torch and pickle raise whatever their parsers stumble on
        size = path.stat().st_size
        raise CheckpointError(f"{path} ({size} bytes) is truncated or no checkpoint: {_first_line(error)}") from error
    if not isinstance(content, Mapping) or isinstance(content, _Inert):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a state dict")
    return content


def _load_pickled(path: Path) -> Any:
    if zipfile.is_zipfile(path):  # as torch writes since 1.6; its own reader does not look at the checksums
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise CheckpointError(f"{path} is damaged: wrong checksum in {damaged}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # also what it says of objects other than tensors
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=_InertPickle())


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def as_tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a state dict; NumPy arrays become tensors.

    Raises:
        CheckpointError: it holds no tensors.
    """
    tensors = {}
    for key, value in state.items():
        if isinstance(value, Tensor):
            tensors[key] = value
        elif type(value).__module__ == "numpy" and hasattr(value, "dtype"):
            tensors[key] = torch.as_tensor(value)
    if not tensors:
        raise CheckpointError(f"found no tensors, only the keys {sorted(map(str, state))[:8]}")
    return tensors
