"""Which keys of a config of MMEngine can be overridden: those that something reads after the file was."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from typing import Any

from visionssm.data.errors import UserError, did_you_mean

__all__ = ["check_override"]

_OPTIONS = {"launcher", "resume"}  # of MMEngine's Runner, which the tools set by options of that name
_ASIDE = {  # what the Runner looks up beside its arguments, and what visionssm does
    "activation_checkpointing",
    "compile",
    "digit_scenes",
    "efficient_conv_bn_eval",
    "find_unused_parameters",
    "model_wrapper_cfg",
    "sync_bn",
}


def check_override(config: Any, key: str) -> None:
    """Refuses a key that nothing would read.

    Args:
        config: of MMEngine; its `default_scope` is imported.
        key: dotted; must be there or be an argument of the class that is named there, unless it begins with "+".

    Raises:
        UserError: an unknown key, one of the tools' options, or a variable whose value the file has copied elsewhere.
    """
    name = key.removeprefix("+")
    head = name.partition(".")[0]
    if head in _OPTIONS:
        raise UserError(f"{head} is no key to override; there is the option --{head}")
    known = _read_keys(config)
    if head in config and head not in known:
        raise UserError(
            f"{head} is only a variable of the config, which nothing reads any more: {_instead(config, head)}"
        )
    if head not in known:
        raise UserError(f"the config has no {head!r}; {did_you_mean(head, known)}")
    if not key.startswith("+"):
        _check_path(config, name)


def _read_keys(config: Any) -> set[str]:
    from mmengine.runner import Runner

    known = _parameters(Runner) - {"cfg"} - _OPTIONS | _ASIDE
    if "data_preprocessor" in (config.get("model") or {}):
        known.remove("data_preprocessor")  # the model's own comes first
    return known


def _check_path(config: Any, key: str) -> None:
    node: Any = config
    parts = key.split(".")
    for depth, part in enumerate(parts):
        where = ".".join(parts[:depth])
        if isinstance(node, (list, tuple)):
            known = {str(i) for i in range(len(node))}
        elif isinstance(node, dict):
            known = {*node, *_arguments(config.default_scope, node.get("type"))}
        elif depth:
            raise UserError(f"{where} is {node!r}, which has no {part!r}; set it as a whole")
        else:
            known = _read_keys(config)
        if part not in known:
            raise UserError(
                f"{where or 'the config'} has no {part!r}; {did_you_mean(part, known)} (+{key}=... adds it)"
            )
        if not isinstance(node, (list, tuple)) and part not in node:
            return
        node = node[int(part)] if isinstance(node, (list, tuple)) else node[part]


def _arguments(scope: str, kind: Any) -> set[str]:
    """What the class takes that a registry of the scope, or MMEngine's own, has under a name."""
    from mmengine.registry import Registry

    name = str(kind).rpartition(".")[2]
    registries = [
        part for part in vars(importlib.import_module(f"{scope}.registry")).values() if isinstance(part, Registry)
    ]
    tables = [table.module_dict for part in registries for table in (part, part.parent) if table is not None]
    return set().union(*(_parameters(table[name]) for table in tables if name in table))


def _parameters(kind: Any) -> set[str]:
    """Names of a class's arguments, also of those that it hands on to its base classes."""
    named: set[str] = set()
    bases = inspect.getmro(kind) if inspect.isclass(kind) else ()
    for function in [vars(base)["__init__"] for base in bases if "__init__" in vars(base)]:
        parameters = inspect.signature(function).parameters.values()
        named |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return named - {"self"}


def _instead(config: Any, variable: str) -> str:
    """Advice: the keys that hold a variable's value under a like name; else those of its name; else those of its value."""
    entries = [(path, value) for key in config if key in _read_keys(config) for path, value in _walk(key, config[key])]
    held = [path for path, value in entries if value == config[variable] and not path[-1].isdigit()]
    longer = [path for path, _ in entries if _ends(path.rpartition(".")[2], variable)]
    alike = [path for path in held if path in longer or _ends(variable, path.rpartition(".")[2])] or longer
    shown = ", ".join((alike or held)[:4]) + ", ..." * (len(alike or held) > 4)
    if alike:
        return f"set {shown}"
    return "set what it went into" + (f"; its value is that of {shown}" if held else ", or derive a config")


def _ends(name: str, end: str) -> bool:
    return name == end or name.endswith(f"_{end}")


def _walk(path: str, node: Any) -> Iterator[tuple[str, Any]]:
    yield path, node
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _walk(f"{path}.{key}", value)
    elif isinstance(node, (list, tuple)):
        for i, value in enumerate(node):
            yield from _walk(f"{path}.{i}", value)
