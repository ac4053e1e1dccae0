"""Which scan order each layer of a model uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from visionssm.scans import ScanOrder, create_scan

__all__ = ["ScanChoice", "layer_scans"]

ScanChoice: TypeAlias = "str | ScanOrder | Mapping[str, Any] | Sequence[str | ScanOrder | Mapping[str, Any]]"


def layer_scans(scan: ScanChoice, depth: int, *, ndim: int = 2) -> list[ScanOrder]:
    """The scan order of every layer.

    Args:
        scan: a name, an order, a mapping of options with its "name", or a sequence of one of these per layer.
        depth: number of layers.
        ndim: rank of the images.

    Returns:
        `depth` orders of that rank. One order for all layers is asked for its own schedule (`ScanOrder.for_layer`).

    Raises:
        ValueError: unknown name or option, another rank, or a sequence of another length.
    """
    if isinstance(scan, (str, ScanOrder, Mapping)):
        order = _order(scan, ndim)
        return [order.for_layer(index, depth) for index in range(depth)]
    if len(scan) != depth:
        raise ValueError(f"scan lists {len(scan)} orders, but the model has {depth} layers")
    return [_order(choice, ndim) for choice in scan]


def _order(choice: str | ScanOrder | Mapping[str, Any], ndim: int) -> ScanOrder:
    if isinstance(choice, Mapping):
        options = dict(choice)
        if "name" not in options:
            raise ValueError(f"scan options need a 'name', got {sorted(options)}")
        order = create_scan(options.pop("name"), **options)
    else:
        order = create_scan(choice)
    if order.ndim != ndim and ndim in order.ndims and "ndim" in order.options:
        order = create_scan(order.name, **{**order.options, "ndim": ndim})
    if order.ndim != ndim:
        raise ValueError(f"{order!r} reads images of rank {order.ndim}, but this model has rank {ndim}")
    return order
