"""Scan orders: which position of an image or a volume each route visits at each step."""

from . import raster, snake, window  # noqa: F401  (importing a module registers its orders)
from .base import ScanOrder
from .registry import create_scan, list_scans, register_scan, scan_from_key
from .table import RouteTable, route_table

__all__ = [
    "RouteTable",
    "ScanOrder",
    "create_scan",
    "list_scans",
    "register_scan",
    "route_table",
    "scan_from_key",
]
