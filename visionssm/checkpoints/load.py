"""From a published state dict to a model of ours: convert, adapt, check, load."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import timm
import torch
from timm.models._manipulate import adapt_input_conv
from torch import Tensor, nn

from .layout import CheckpointError, Layout
from .read import as_tensors, read_checkpoint

__all__ = ["adapt", "convert", "load_official", "read_checkpoint"]

_SHOWN = 8  # keys of each kind that an error lists


def layout_of(model: nn.Module) -> Layout:
    """The published layout of a model's family.

    Raises:
        TypeError: the model has none.
    """
    layout = getattr(model, "official_layout", None)
    if not isinstance(layout, Layout):
        raise TypeError(f"{type(model).__name__} has no published layout; load its own state dict instead")
    return layout


def convert(state: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """A state dict in our names and shapes, from the published layout or from ours.

    Pure tensor operations, so gradients flow from our tensors back to the published ones.

    Args:
        state: published names -> tensors or arrays, or a training file that wraps them.
        model: the model that the result is for; nothing is loaded.

    Raises:
        CheckpointError: names clash, or nothing in it is a tensor.
    """
    layout = layout_of(model)
    tensors = as_tensors(layout.unwrap(state))
    ours = model.state_dict()
    if set(tensors) <= set(ours) or set(ours) <= set(tensors):
        return _reshape(tensors, ours, layout)  # ours; what is too much, the strict check after this names
    converted = layout.rename(tensors)
    if layout.convert is not None:
        converted = layout.convert(converted, model)
    converted = _reshape(converted, ours, layout)
    # a damaged file of ours is told by its own names, not by those that a conversion makes of them
    return min((converted, tensors), key=lambda state: sum(map(len, _misfits(state, ours))))


def _reshape(state: Mapping[str, Tensor], ours: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """The state with our shapes where the layout allows another of as many elements."""
    shaped = dict(state)
    for key in state.keys() & ours.keys():
        if state[key].numel() == ours[key].numel() and any(re.search(pattern, key) for pattern in layout.reshape):
            shaped[key] = state[key].reshape(ours[key].shape)
    return shaped


def check(state: Mapping[str, Tensor], model: nn.Module, origin: str) -> None:
    """Raises CheckpointError unless `state` has exactly the model's names and shapes."""
    ours = model.state_dict()
    missing, unexpected, wrong = _misfits(state, ours)
    if not (missing or unexpected or wrong):
        return
    wrong = [f"{key}: file {tuple(state[key].shape)}, model {tuple(ours[key].shape)}" for key in wrong]
    lines = [f"{origin} does not fit {type(model).__name__}{_name(model)}"]
    for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", wrong)):
        if keys:
            more = f", and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
            lines.append(f"  {len(keys)} {what}: {', '.join(keys[:_SHOWN])}{more}")
    raise CheckpointError("\n".join(lines))


def _misfits(state: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> tuple[list[str], list[str], list[str]]:
    """Keys that are missing, unexpected, and of another shape."""
    missing = [key for key in ours if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in ours]
    return missing, unexpected, [key for key in ours if key in state and state[key].shape != ours[key].shape]


def _architecture(model: nn.Module) -> str:
    return (getattr(model, "pretrained_cfg", None) or {}).get("architecture") or ""


def _name(model: nn.Module) -> str:
    architecture = _architecture(model)
    return f" ({architecture})" if architecture else ""


def _fitting_siblings(state: Mapping[str, Any], model: nn.Module) -> list[str]:
    """The family's other variants that a file fits, whatever its classes and size of images, by timm's names."""
    if not timm.is_model(_architecture(model)):
        return []
    module = timm.models.model_entrypoint(_architecture(model)).__module__.rpartition(".")[2]
    found = []
    for name in timm.list_models(module=module):
        with torch.device("meta"):
            sibling = timm.create_model(name)
        with contextlib.suppress(CheckpointError):
            check(adapt(convert(state, sibling), sibling), sibling, "")
            found.append(name)
    return found


def load_official(model: nn.Module, source: str | Path | Mapping[str, Any]) -> nn.Module:
    """Loads a published checkpoint, strictly.

    Args:
        model: a model of this package.
        source: a file, or a mapping from published names to tensors or arrays. Training files are unwrapped
            ("model_ema", "model", "state_dict", ...), and read without running code that they carry.

    Returns:
        The model.

    Raises:
        CheckpointError: unreadable, or keys missing, unexpected or of another shape; the message names them, and the
            variants of the family that the file fits.
        FileNotFoundError: no such file.
    """
    if isinstance(source, (str, Path)):
        origin, content = str(source), read_checkpoint(source)
    elif isinstance(source, Mapping):
        origin, content = "the given state dict", source
    else:
        raise TypeError(f"source must be a path or a mapping, got {type(source).__name__}")
    state = convert(content, model)
    try:
        check(state, model, origin)
    except CheckpointError as error:
        siblings = _fitting_siblings(content, model)
        if siblings:
            raise CheckpointError(f"{error}\n  it fits {', '.join(siblings)}") from None
        raise
    model.load_state_dict(state, strict=False)  # strictness was checked above, with names
    return model


def adapt(state: dict[str, Tensor], model: nn.Module, *, in_chans: int = 3) -> dict[str, Tensor]:
    """Fits a converted state dict to a model with other input channels, classes or position grid.

    The first convolution is summed or repeated over input channels as timm does, a classifier of another size is left
    at the model's own values, and `model.resize_position_tables`, where a family has one, resizes position tables.

    Args:
        state: converted.
        model: the model to fit.
        in_chans: channels that the checkpoint was trained with.
    """
    ours = model.state_dict()
    cfg: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    state = dict(state)
    first_conv, classifiers = cfg.get("first_conv"), cfg.get("classifier") or ()
    if first_conv and f"{first_conv}.weight" in state:
        key = f"{first_conv}.weight"
        if state[key].shape != ours[key].shape:
            state[key] = adapt_input_conv(ours[key].shape[1], state[key], base_chans=in_chans)
    for classifier in (classifiers,) if isinstance(classifiers, str) else classifiers:
        keys = [f"{classifier}.weight", f"{classifier}.bias"]
        if any(key not in ours or (key in state and state[key].shape != ours[key].shape) for key in keys):
            for key in keys:
                state.pop(key, None)
                if key in ours:
                    state[key] = ours[key]
    resize = getattr(model, "resize_position_tables", None)
    return resize(state) if resize is not None else state


def checkpoint_filter_fn(state: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """timm's filter for every family: converts published names, resizes position tables."""
    converted = convert(state, model)
    resize = getattr(model, "resize_position_tables", None)
    return resize(converted) if resize is not None else converted


class PretrainedMixin:
    """Gives a model timm's `load_pretrained(path)`, which reads published files that plain weights_only loading refuses."""

    @cast("Callable[..., Any]", torch.jit.ignore)
    def load_pretrained(self, path: str | Path) -> None:
        """Loads a published or own checkpoint, fitting input channels, classes and position tables.

        Raises:
            CheckpointError: the rest of the keys does not fit; the message names them.
        """
        assert isinstance(self, nn.Module)
        cfg: Mapping[str, Any] = getattr(self, "pretrained_cfg", None) or {}
        state = adapt(convert(read_checkpoint(path), self), self, in_chans=(cfg.get("input_size") or (3,))[0])
        check(state, self, str(path))
        self.load_state_dict(state, strict=False)
