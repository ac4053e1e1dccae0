"""Route tables on a device: cached in eager mode, a custom op under torch.compile, torch.export and TorchScript."""

import threading
from collections import OrderedDict
from collections.abc import Sequence

import torch
from timm.models._features_fx import register_notrace_module
from torch import Tensor, nn
from torch._guards import detect_fake_mode

from .base import ScanOrder
from .registry import scan_from_key

__all__ = ["CACHE_BYTES", "RouteTable", "route_table"]

CACHE_BYTES = 128 * 2**20  # tables kept in all; the least recently used go first


class _Cache:
    """Tables by (scan, size, device), least recently used first, bounded by bytes."""

    def __init__(self) -> None:
        self._tables: OrderedDict[tuple[ScanOrder, tuple[int, ...], torch.device], Tensor] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, scan: ScanOrder, size: tuple[int, ...], device: torch.device) -> Tensor:
        key = (scan, size, device)
        with self._lock:
            if key in self._tables:
                self._tables.move_to_end(key)
                return self._tables[key]
        # A table made in inference mode could not be saved for a later backward pass.
        with torch.inference_mode(False):
            table = scan.routes(size).to(device=device, dtype=torch.int32)
        with self._lock:
            if key not in self._tables and table.nbytes <= CACHE_BYTES:
                self._tables[key] = table
                self._bytes += table.nbytes
                while self._bytes > CACHE_BYTES:
                    self._bytes -= self._tables.popitem(last=False)[1].nbytes
        return table

    def clear(self) -> None:
        with self._lock:
            self._tables.clear()
            self._bytes = 0

    def __len__(self) -> int:
        return len(self._tables)


_CACHE = _Cache()


@torch.library.custom_op("visionssm::scan_routes", mutates_args=())
def _scan_routes(key: str, size: Sequence[int], device: torch.device) -> Tensor:
    # An op must not return memory that something else holds, so the graph gets its own copy.
    return _CACHE.get(scan_from_key(key), tuple(size), device).clone()


@_scan_routes.register_fake
def _(key: str, size: Sequence[int], device: torch.device) -> Tensor:
    scan = scan_from_key(key)
    return torch.empty((scan.num_routes, scan.length(size)), dtype=torch.int32, device=device)


@torch.library.custom_op("visionssm::scan_routes_over", mutates_args=())
def _scan_routes_over(key: str, image: Tensor) -> Tensor:
    # For traces, which hold numbers as they were: this reads the size when it runs.
    return _CACHE.get(scan_from_key(key), tuple(image.shape[1:-1]), image.device).clone()


@_scan_routes_over.register_fake
def _(key: str, image: Tensor) -> Tensor:
    scan = scan_from_key(key)
    return image.new_empty((scan.num_routes, scan.length(image.shape[1:-1])), dtype=torch.int32)


def route_table(scan: ScanOrder, size: Sequence[int], device: torch.device | str) -> Tensor:
    """Return the routes of `scan` over an image as the kernels take them.

    Args:
        scan: the order; its rank must be that of `size`.
        size: (H, W), (D, H, W) or (L,); may be symbolic while compiling or exporting.
        device: where the table shall lie.
    Returns:
        int32 (K, T), -1 = padding step. In eager mode it is shared by all callers: do not write to it.
    Raises:
        ValueError: the rank of `size` is not `scan.ndim`, or a side is below 1.
    """
    if len(size) != scan.ndim:
        raise ValueError(f"{scan!r} reads images of {scan.ndim} dimensions, got size={tuple(size)}")
    device = torch.device(device)
    # Under a fake mode nothing is computed, and a fake table must not end up in the cache.
    if torch.compiler.is_compiling() or torch.compiler.is_exporting() or detect_fake_mode() is not None:
        return torch.ops.visionssm.scan_routes(scan.key, size, device)
    return _CACHE.get(scan, tuple(int(side) for side in size), device)


@register_notrace_module
class RouteTable(nn.Module):
    """The route table for a channels-last image; a leaf in FX tracing, scriptable, compilable.

    Args:
        scan: the order.
    """

    def __init__(self, scan: ScanOrder) -> None:
        super().__init__()
        self.scan = scan
        self.key = scan.key

    def forward(self, x_BSC: Tensor) -> Tensor:
        """Return int32 (K, T) for x_BSC of shape (B, *S, C), on its device."""
        if torch.jit.is_scripting():
            table = torch.ops.visionssm.scan_routes(self.key, x_BSC.shape[1:-1], x_BSC.device)
        elif torch.jit.is_tracing():
            table = torch.ops.visionssm.scan_routes_over(self.key, x_BSC)
        else:
            table = route_table(self.scan, x_BSC.shape[1:-1], x_BSC.device)
        return table

    def extra_repr(self) -> str:
        return repr(self.scan)
