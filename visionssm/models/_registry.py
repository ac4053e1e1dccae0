"""Which models there are, by task; classifiers are timm's own registry entries."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import sys
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

import timm
from timm.models import (
    DefaultCfg,
    PretrainedCfg,
    get_arch_pretrained_cfgs,
    get_pretrained_cfg,
    load_pretrained,
    register_model,
)
from timm.models._builder import resolve_pretrained_cfg
from torch import nn

__all__ = ["TASKS", "build", "create_model", "list_models", "pretrained_cfg", "register", "require_file"]

Task = Literal["classification", "restoration", "volume"]
TASKS: tuple[Task, ...] = ("classification", "restoration", "volume")
_ENTRYPOINTS: dict[str, tuple[Task, Callable[..., nn.Module]]] = {}
_CFGS: dict[str, DefaultCfg] = {}  # of the tasks that timm's registry does not know
ModelT = TypeVar("ModelT", bound=nn.Module)


def register(task: Task) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    """A decorator that registers an entry point under its function name; classifiers also with timm.

    As with timm, the entry point's module says which weights there are, in `default_cfgs`.

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
        module = sys.modules[entrypoint.__module__]
        if task == "classification":
            register_model(entrypoint)
            module.__all__.remove(name)  # pyright: ignore  (a name, not part of the API)
        elif name in getattr(module, "default_cfgs", {}):
            _CFGS[name] = module.default_cfgs[name]
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


def pretrained_cfg(name: str) -> PretrainedCfg:
    """What is known of a model's weights: where they are, licence, paper, reported figures (`notes`).

    Args:
        name: one of `list_models()`, with a tag behind a dot for particular weights.

    Raises:
        ValueError: no such model, or no such tag.
    """
    base, _, tag = name.partition(".")
    task, _ = _entry(name)
    if task == "classification":
        _check_tag(name, get_arch_pretrained_cfgs(base))
        cfg = get_pretrained_cfg(name, allow_unregistered=False)
        assert cfg is not None
        return cfg
    if base not in _CFGS:
        return PretrainedCfg(architecture=base)
    known = _CFGS[base]
    tag = tag or known.tags[0]
    _check_tag(name, known.cfgs)
    return dataclasses.replace(known.cfgs[tag], architecture=base, tag=tag)


def _check_tag(name: str, cfgs: Mapping[str, PretrainedCfg]) -> None:
    base, _, tag = name.partition(".")
    tags = [key.removeprefix(f"{base}.") for key in cfgs]
    if tag and tag not in tags:
        raise ValueError(f"unknown weights {name!r}: {base!r} has the tags {', '.join(map(repr, tags))}")


def build(cls: Callable[..., ModelT], name: str, pretrained: bool, *, tag: str | None = None, **options: Any) -> ModelT:
    """Builds a model that timm's registry does not know, as timm builds its own: with `pretrained_cfg`, and weights if asked for.

    Args:
        cls: the model's class.
        name: the variant.
        pretrained: load the tag's weights; `cls` takes them by `load_pretrained(path)`.
        tag: which weights; None for the first.
        **options: what `cls` takes.

    Raises:
        ValueError: weights are asked for but cannot be had by a direct link, or no such tag.
    """
    cfg = pretrained_cfg(f"{name}.{tag}" if tag else name)
    if pretrained and not cfg.has_weights:
        where = (
            f"; fetch the file by hand from {cfg.origin_url} and give it to visionssm.load_official"
            if cfg.origin_url
            else ""
        )
        raise ValueError(f"there is no direct link to weights of {name}.{cfg.tag}{where}")
    model = cls(**options)
    model.pretrained_cfg = model.default_cfg = cfg.to_dict()  # pyright: ignore
    if pretrained:
        load_pretrained(
            model,
            pretrained_cfg=cfg.to_dict(),
            num_classes=0,
            in_chans=options.get("in_chans", cfg.input_size[0]),
        )
    return model


def require_file(variant: str, places: Mapping[str, str], options: Mapping[str, Any]) -> None:
    """Says where a person finds the weights of a variant, unless a file of them is given.

    Args:
        variant: whose pretrained weights are wanted.
        places: variant -> address of a page; others may be fetched.
        options: what the model is built with; `pretrained_cfg` and `pretrained_cfg_overlay` may name a file.

    Raises:
        RuntimeError: the weights must be downloaded by hand.
    """
    if variant not in places:
        return
    cfg = resolve_pretrained_cfg(variant, options.get("pretrained_cfg"), options.get("pretrained_cfg_overlay"))
    if not (cfg.has_weights or cfg.state_dict):
        raise RuntimeError(
            f"no pretrained weights exist under a direct address for {variant}: download the file from "
            f"{places[variant]} and pass it to visionssm.load_official"
        )


def create_model(name: str, pretrained: bool = False, **options: Any) -> nn.Module:
    """Builds a model.

    Args:
        name: one of `list_models()`, with timm's tag behind a dot for particular weights, or timm's forms
            "hf-hub:owner/name" and "local-dir:folder".
        pretrained: load the tag's weights.
        **options: what the model's class takes, plus timm's own (`features_only`, `checkpoint_path`, ...).

    Raises:
        ValueError: unknown name or tag; the message lists the closest names, or the tags.
        TypeError: unknown option.
    """
    if ":" in name:
        return timm.create_model(name, pretrained=pretrained, **options)
    task, entrypoint = _entry(name)
    if task == "classification":
        _check_tag(name, get_arch_pretrained_cfgs(name.partition(".")[0]))
        return timm.create_model(name, pretrained=pretrained, **options)
    tag = name.partition(".")[2]
    return entrypoint(pretrained=pretrained, **options, **({"tag": tag} if tag else {}))


def _entry(name: str) -> tuple[Task, Callable[..., nn.Module]]:
    base = name.partition(".")[0]
    if base not in _ENTRYPOINTS:
        close = difflib.get_close_matches(base, _ENTRYPOINTS, n=4, cutoff=0.5)
        hint = f"did you mean {', '.join(close)}?" if close else "see visionssm.list_models()"
        raise ValueError(f"unknown model {name!r}: {hint}")
    return _ENTRYPOINTS[base]
