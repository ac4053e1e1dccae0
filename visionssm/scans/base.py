"""What a scan order is: K routes over the positions of an image or a volume, as pure index maths.

Legend: K routes, T steps of a route, L positions of the image (its raster index: (z * H + y) * W + x).
"""

import dataclasses
import json
import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["Adjacency", "ScanOrder", "cut", "grid", "invert"]


Adjacency: TypeAlias = Literal["none", "faces", "corners"]


def grid(size: Sequence[int]) -> Tensor:
    """Return the image whose value is its own raster index, int64 of shape `size`: read in any order, it is that route."""
    return torch.arange(math.prod(size), device="cpu").view(tuple(size))


def invert(route: Tensor, length: int | None = None) -> Tensor:
    """Return the step at which each position is visited, or -1 where it never is.

    Args:
        route: integer (..., T), -1 = padding step.
        length: number of positions L; by default T.
    Returns:
        int64 (..., L).
    """
    positions = route.shape[-1] if length is None else length
    # Padding steps are written to one extra column, which is then cut off.
    columns = torch.where(route >= 0, route, positions).long()
    steps = torch.arange(route.shape[-1], device=route.device).expand_as(columns)
    table = pad(torch.full_like(columns[..., :1], -1), [0, positions], value=-1.0)
    return table.scatter_(-1, columns, steps)[..., :-1].contiguous()


def cut(route: Tensor, piece: int, room: int) -> Tensor:
    """Return a route (T,) in pieces, each filled up with -1 to `room` steps: (number of pieces, room)."""
    pieces = pad(route, (0, -route.numel() % piece), value=-1).view(-1, piece)
    return pad(pieces, (0, room - piece), value=-1)


def _freeze(value: Any) -> Any:
    return tuple(map(_freeze, value)) if isinstance(value, (list, tuple)) else value


def _alike(value: Any, default: Any) -> bool:
    """Return whether an option has the type of its default, and the items of a list that of the default's first item."""
    if default is dataclasses.MISSING or default is None:
        return True
    if isinstance(default, tuple):
        return isinstance(value, tuple) and all(_alike(item, first) for first in default[:1] for item in value)
    return type(value) is type(default) or (isinstance(default, float) and type(value) is int)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ScanOrder(ABC):
    """A scan order: subclass it, annotate the options, write `paths`, and decorate it with `register_scan`.

    Every subclass is made a frozen keyword-only dataclass: its annotated attributes are its options and must be plain
    values (numbers, strings, booleans, lists of them). Two orders are equal when class, name and options are.

    Args:
        ndim: rank of the images to read, one of `ndims`; 0 takes the first of them.
    Raises:
        ValueError: `ndim` or another option is not accepted.
        TypeError: an option is not a plain value.
    """

    ndim: int = 0

    # What a class says of itself; where options decide, it is a property.
    name: ClassVar[str]  # set by register_scan
    key: ClassVar[str]  # set per instance: the string from which scan_from_key makes an equal order
    num_routes: ClassVar[int]  # K
    ndims: ClassVar[tuple[int, ...]] = (2,)  # ranks of the images it can read
    # Each route visits every position; if not, the routes together visit each position exactly once.
    total: ClassVar[bool] = True
    # Routes may hold -1: a step that reads and writes a zero token.
    padded: ClassVar[bool] = False
    # What is promised of a step, at every size: "faces" = to a direct neighbour, "corners" = or to a diagonal one.
    adjacency: ClassVar[Adjacency] = "none"
    # Channel groups; group g has the routes from g * K / groups to (g + 1) * K / groups - 1.
    groups: ClassVar[int] = 1
    # Made from another order by code, so not among the names of list_scans.
    wraps: ClassVar[bool] = False
    # The state restarts within a route: see `segments`.
    segmented: ClassVar[bool] = False
    # Each image's own table is made from its content: see `visionssm.scans.content`.
    content: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)(cls)
        cls.name = cls.__name__

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = _freeze(getattr(self, field.name))
            if not _alike(value, field.default):
                raise ValueError(
                    f"scan {self.name!r}: {field.name}={value!r} is not of the kind of its default, {field.default!r}"
                )
            object.__setattr__(self, field.name, value)
        if self.ndim == 0:
            object.__setattr__(self, "ndim", self.ndims[0])
        if self.ndim not in self.ndims:
            raise ValueError(f"scan {self.name!r}: ndim={self.ndim!r} is not one of {self.ndims}")
        self.check()
        options = json.dumps(self.options, sort_keys=True, separators=(",", ":"))
        object.__setattr__(self, "key", f"{self.name}|{options}")

    def check(self) -> None:
        """Raise ValueError if an option is not accepted; called once, at construction."""
        return

    @abstractmethod
    def paths(self, size: tuple[int, ...]) -> Sequence[Tensor]:
        """Return the K routes over a checked `size`, int64 each; `routes` pads shorter ones at the end."""

    def length(self, size: Sequence[int]) -> int:
        """Return T for `size`; arithmetic only, so that it also holds for symbolic sizes."""
        return math.prod(size)

    def positions(self, size: Sequence[int]) -> int:
        """Return L, the number of positions that routes over `size` refer to."""
        return math.prod(size)

    def segments(self, size: Sequence[int]) -> tuple[int, ...]:
        """Return per route the length of its pieces: state and causal convolution restart at each multiple of it."""
        return (self.length(size),) * self.num_routes

    def for_layer(self, index: int, depth: int) -> "ScanOrder":
        """Return the order that layer `index` of `depth` uses; orders without a schedule return themselves."""
        if not 0 <= index < depth:
            raise ValueError(f"layer index must be in 0..depth-1, got index={index}, depth={depth}")
        return self._layer(index, depth)

    def _layer(self, index: int, depth: int) -> "ScanOrder":
        return self

    def routes(self, size: Sequence[int]) -> Tensor:
        """Return the routes over an image.

        Args:
            size: (H, W), (D, H, W) or (L,), each at least 1. A size of another rank in `ndims` is read by the same
                order of that rank, which may have another number of routes.
        Returns:
            int64 (K, T) on the CPU: the position that route k visits at step t, or -1 for a padding step.
        Raises:
            ValueError: the rank or a side of `size` is not accepted.
        """
        size = tuple(operator.index(side) for side in size)
        if len(size) != self.ndim and len(size) in self.ndims:
            return dataclasses.replace(self, ndim=len(size)).routes(size)
        if len(size) != self.ndim or min(size) < 1:
            ranks = " or ".join(str(rank) for rank in self.ndims)
            raise ValueError(
                f"scan {self.name!r} reads images of {ranks} dimensions with sides of 1 or more, got size={size}"
            )
        table = torch.full((self.num_routes, self.length(size)), -1, device="cpu")
        for row, path in zip(table, self.paths(size), strict=True):
            row[: path.numel()] = path
        return table

    def inverse(self, size: Sequence[int]) -> Tensor:
        """Return int64 (K, L): the step at which route k visits each position, or -1 where it never does."""
        return invert(self.routes(size), self.positions(size))

    @property
    def merge(self) -> Literal["sum", "concat"]:
        """How the outputs of the routes join: added, or, with several channel groups, concatenated by group."""
        return "sum" if self.groups == 1 else "concat"

    @property
    def options(self) -> dict[str, Any]:
        """The options, such that `create_scan(name, **options)` is this order again."""
        names = [field.name for field in dataclasses.fields(self)]
        return {name: getattr(self, name) for name in names if name != "ndim" or len(self.ndims) > 1}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ScanOrder) and type(self) is type(other) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        return f"create_scan({self.name!r}{', ' if options else ''}{options})"
