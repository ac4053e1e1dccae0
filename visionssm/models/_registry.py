"""Which models there are, by task; classifiers are timm's own registry entries."""

from __future__ import annotations

import difflib
import fnmatch
import sys
from collections.abc import Callable
from typing import Any, Literal

import timm
from timm.models import register_model
from torch import nn

__all__ = ["TASKS", "create_model", "list_models", "register"]

Task = Literal["classification", "restoration", "volume"]
TASKS: tuple[Task, ...] = ("classification", "restoration", "volume")
_ENTRYPOINTS: dict[str, tuple[Task, Callable[..., nn.Module]]] = {}


def register(task: Task) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    """A decorator that registers an entry point under its function name; classifiers also with timm.

    Args:
        task: what the model is for.

    Raises:
        ValueError: the name is taken.
    """

    def decorate(entrypoint: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        name = entrypoint.__name__
        if name in _ENTRYPOINTS:
            raise ValueError(f"model {name!r} is registered twice: in {entrypoint.__module__} and before")
        _ENTRYPOINTS[name] = (task, entrypoint)
        if task == "classification":
            register_model(entrypoint)
            sys.modules[entrypoint.__module__].__all__.remove(name)  # pyright: ignore  (a name, not part of the API)
        return entrypoint

    return decorate


def list_models(pattern: str = "*", task: str | None = None) -> list[str]:
    """Names of the registered models, sorted.

    Args:
        pattern: shell-style wildcard, "vmamba_*".
        task: "classification", "restoration" or "volume"; None for all.

    Raises:
        ValueError: unknown task.
    """
    if task is not None and task not in TASKS:
        raise ValueError(f"unknown task {task!r}: choose one of {', '.join(TASKS)}")
    names = (name for name, (kind, _) in _ENTRYPOINTS.items() if task in (None, kind))
    return sorted(fnmatch.filter(names, pattern))


def create_model(name: str, pretrained: bool = False, **options: Any) -> nn.Module:
    """Builds a model.

    Args:
        name: one of `list_models()`, with timm's tag behind a dot for particular weights, or timm's forms
            "hf-hub:owner/name" and "local-dir:folder".
        pretrained: load the tag's weights.
        **options: what the model's class takes, plus timm's own (`features_only`, `checkpoint_path`, ...).

    Raises:
        ValueError: unknown name; the message lists the closest.
        TypeError: unknown option.
    """
    if ":" in name:
        return timm.create_model(name, pretrained=pretrained, **options)
    base = name.partition(".")[0]
    if base not in _ENTRYPOINTS:
        close = difflib.get_close_matches(base, _ENTRYPOINTS, n=4, cutoff=0.5)
        hint = f"did you mean {', '.join(close)}?" if close else "see visionssm.list_models()"
        raise ValueError(f"unknown model {name!r}: {hint}")
    task, entrypoint = _ENTRYPOINTS[base]
    if task == "classification":
        return timm.create_model(name, pretrained=pretrained, **options)
    return entrypoint(pretrained=pretrained, **options)
