"""Scan orders: which position of an image or a volume each route visits at each step.

    scan = create_scan("cross")
    scan.routes((H, W))                     # LongTensor (K, T)
    route_table(scan, (H, W), device)       # int32, cached, for the kernels
    draw(scan, (H, W), "cross.png")

A new order is one small class in one file: see `ScanOrder` and `register_scan`.
"""

# Importing a module registers its orders.
from . import (  # noqa: F401
    channels,
    content,
    curves,
    diagonal,
    mambaad,
    raster,
    select,
    sequence,
    snake,
    stripes,
    volumes,
    window,
    zigma,
)
from .base import ScanOrder, grid, invert
from .compose import Chain, chain, deal, split_scales
from .draw import draw
from .dynamic import adaptive_scores, category_order, draw_shuffle, score_order, shuffle_probability
from .points import POINT_ORDERS, point_codes, point_grid, point_order
from .registry import create_scan, list_scans, register_scan, scan_from_key
from .slots import PublishedUnscan, WithSlots, published_unscan, with_slots
from .table import RouteTable, route_table
from .token import WithToken, with_token

__all__ = [
    "POINT_ORDERS",
    "Chain",
    "PublishedUnscan",
    "RouteTable",
    "ScanOrder",
    "WithSlots",
    "WithToken",
    "adaptive_scores",
    "category_order",
    "chain",
    "create_scan",
    "deal",
    "draw",
    "draw_shuffle",
    "grid",
    "invert",
    "list_scans",
    "point_codes",
    "point_grid",
    "point_order",
    "published_unscan",
    "register_scan",
    "route_table",
    "scan_from_key",
    "score_order",
    "shuffle_probability",
    "split_scales",
    "with_slots",
    "with_token",
]
