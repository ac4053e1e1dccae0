"""Recipes: YAML files and dotted overrides into a tree of typed, frozen dataclasses. Strict: nothing unknown passes."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from visionssm.data.errors import UserError, did_you_mean

__all__ = ["ConfigError", "build_config", "config_changes", "dump_config", "load_config", "read_recipe"]

T = TypeVar("T")
BASE = "base"  # a recipe may name another one, relative to itself, that it changes


class ConfigError(UserError):
    """A recipe or an override that does not fit; the message names the dotted key."""


def load_config(schema: type[T], recipe: str | Path | None, overrides: Sequence[str] = ()) -> T:
    """Reads a recipe, applies overrides and checks every key and value.

    Args:
        schema: The dataclass at the top of the tree.
        recipe: YAML file, or None for the defaults.
        overrides: "dotted.key=value" in order; the value is YAML ("null", "[1, 2]", "1e-3").

    Raises:
        ConfigError: For unknown keys (with close matches), wrong types or values, missing files.
    """
    tree = read_recipe(recipe) if recipe is not None else {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"override {override!r} must look like optimizer.lr=1e-3")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"override {override!r}: {text!r} is not YAML") from error
        _assign(tree, key.strip().split("."), value, key)
    return build_config(schema, tree)


def read_recipe(path: str | Path, _seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The mapping in a YAML file, merged over the recipe that its `base` names."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"no such recipe: {path}")
    if path.resolve() in _seen:
        raise ConfigError(f"{path}: `base` leads back to itself")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold `key: value` pairs, not a {type(tree).__name__}")
    base = tree.pop(BASE, None)
    if base is None:
        return tree
    return _merge(read_recipe(path.parent / str(base), (*_seen, path.resolve())), tree)


def build_config(schema: type[T], tree: Mapping[str, Any], *, at: str = "") -> T:
    """An instance of `schema` from nested mappings.

    Args:
        schema: A dataclass; its annotations are the accepted types.
        tree: Values by field name.
        at: Dotted place of `tree` in the recipe, for messages.

    Raises:
        ConfigError: As in `load_config`.
    """
    hints = get_type_hints(schema)
    known = {field.name: field for field in fields(schema)}  # type: ignore[arg-type]
    for key in tree:
        if key not in known:
            place = f"{at}.{key}" if at else str(key)
            raise ConfigError(f"unknown key {place}; {did_you_mean(str(key), known)}")
    values = {key: _convert(hints[key], value, f"{at}.{key}" if at else key) for key, value in tree.items()}
    for name, field in known.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise ConfigError(f"{at + '.' if at else ''}{name} is not set")
    return schema(**values)


def dump_config(config: Any) -> dict[str, Any]:
    """A config as plain mappings, lists and scalars: what YAML, JSON and checkpoints hold."""
    return _plain(asdict(config))


def config_changes(old: Mapping[str, Any], new: Mapping[str, Any], *, at: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ between two dumped configs, with both values."""
    changes: dict[str, tuple[Any, Any]] = {}
    for key in {**old, **new}:
        place = f"{at}.{key}" if at else key
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            changes |= config_changes(before, after, at=place)
        elif before != after:
            changes[place] = (before, after)
    return changes


def _assign(tree: dict[str, Any], path: list[str], value: Any, key: str) -> None:
    for name in path[:-1]:
        if tree.get(name) is None:
            tree[name] = {}
        tree = tree[name]
        if not isinstance(tree, dict):
            raise ConfigError(f"override {key}: {name} is a value, not a section")
    tree[path[-1]] = value


def _merge(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _convert(hint: Any, value: Any, place: str) -> Any:
    """`value` as the annotated type, or a ConfigError that names the place."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        options = [option for option in arguments if option is not type(None)]
        if value is None and len(options) < len(arguments):
            return None
        if len(options) == 1:
            return _convert(options[0], value, place)
        for option in options:
            try:
                return _convert(option, value, place)
            except ConfigError:
                continue
        raise ConfigError(f"{place}: {value!r} is none of {', '.join(map(_describe, options))}")
    if hint is Any:
        return value
    if is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{place} is a section of keys, got {value!r}")
        return build_config(hint, value, at=place)  # type: ignore[arg-type]
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(f"{place}: {value!r} must be one of {', '.join(map(repr, arguments))}")
        return value
    if origin in (tuple, list):
        return _convert_sequence(hint, value, place)
    if origin is dict or hint is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{place}: expected `key: value` pairs, got {value!r}")
        return dict(value)
    return _convert_scalar(hint, value, place)


def _convert_sequence(hint: Any, value: Any, place: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{place}: expected a list, got {value!r}")
    if origin is list or arguments[-1] is Ellipsis:
        return origin(_convert(arguments[0], item, f"{place}[{i}]") for i, item in enumerate(value))
    if len(value) != len(arguments):
        raise ConfigError(f"{place}: expected {len(arguments)} values, got {len(value)}: {value!r}")
    pairs = zip(arguments, value, strict=True)
    return tuple(_convert(option, item, f"{place}[{i}]") for i, (option, item) in enumerate(pairs))


def _convert_scalar(hint: Any, value: Any, place: str) -> Any:
    wrong = ConfigError(f"{place}: expected {_describe(hint)}, got {value!r}")
    if hint is float:  # YAML 1.1 reads 1e-3 as a string
        try:
            if isinstance(value, (int, float, str)) and not isinstance(value, bool):
                return float(value)
        except ValueError:
            pass
        raise wrong
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint in (str, bool) and isinstance(value, hint):
        return value
    if hint is str and isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    raise wrong


def _describe(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    return names.get(hint, str(hint))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
