"""Scan orders by name."""

import dataclasses
import difflib
import json
from collections.abc import Callable
from typing import Any, TypeVar

from .base import ScanOrder

__all__ = ["create_scan", "list_scans", "register_scan", "scan_from_key"]

_SCANS: dict[str, type[ScanOrder]] = {}
_Scan = TypeVar("_Scan", bound=type[ScanOrder])


def register_scan(name: str, *, replace: bool = False) -> Callable[[_Scan], _Scan]:
    """Return a class decorator that makes a `ScanOrder` known under `name`.

    Args:
        name: new name, without "|".
        replace: take over a name that is already used (for notebooks).
    Raises:
        ValueError: the name is taken or contains "|".
        TypeError: the class is not a `ScanOrder`.
    """
    if "|" in name or not name:
        raise ValueError(f"a scan name must be non-empty and must not contain '|', got {name!r}")

    def register(cls: _Scan) -> _Scan:
        if not (isinstance(cls, type) and issubclass(cls, ScanOrder)):
            raise TypeError(f"register_scan({name!r}) needs a subclass of ScanOrder, got {cls!r}")
        if name in _SCANS and not replace:
            taken = _SCANS[name].__qualname__
            raise ValueError(f"scan {name!r} is already registered as {taken}; pass replace=True to take it over")
        cls.name = name
        _SCANS[name] = cls
        return cls

    return register


def list_scans(ndim: int | None = None) -> list[str]:
    """Return the names of the scan orders, sorted.

    Args:
        ndim: keep those that read images of that rank, which any backbone of that rank can use.
    """
    return sorted(name for name, cls in _SCANS.items() if not cls.wraps and (ndim is None or ndim in cls.ndims))


def create_scan(name: str | ScanOrder, **options: Any) -> ScanOrder:
    """Create a scan order.

    Args:
        name: one of `list_scans()`; an order that already exists is returned as it is (without options).
        options: those of the order; `ndim` is one of them wherever the order reads images of several ranks.
    Raises:
        ValueError: unknown name or option, or a refused value; the message names what is accepted.
    """
    if isinstance(name, ScanOrder):
        if options:
            raise ValueError(f"{name!r} exists already, so options cannot be given: {sorted(options)}")
        return name
    if name not in _SCANS:
        raise ValueError(f"unknown scan {name!r}; {_suggest(name, list_scans())}")
    cls = _SCANS[name]
    accepted = [field.name for field in dataclasses.fields(cls)]
    for option in options:
        if option not in accepted:
            raise ValueError(f"scan {name!r} has no option {option!r}; {_suggest(option, accepted)}")
    for field in dataclasses.fields(cls):
        if field.default is dataclasses.MISSING and field.name not in options:
            raise ValueError(f"scan {name!r} needs the option {field.name!r}")
    return cls(**options)


def scan_from_key(key: str) -> ScanOrder:
    """Return the order whose `key` this is, also for orders registered by the user in this process."""
    name, _, options = key.partition("|")
    return create_scan(name, **json.loads(options or "{}"))


def _suggest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(str(word), known, n=3)
    hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
    return f"{hint}accepted: {', '.join(known)}"
