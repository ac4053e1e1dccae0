"""Time and memory of the image mixer, forward and backward, and how they grow with the number of tokens."""

from __future__ import annotations

import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visionssm.data.errors import UserError
from visionssm.mixers import ImageScan
from visionssm.scans import ScanOrder
from visionssm_kernels import backends, use_backend

from .cells import Cell
from .config import CostConfig

__all__ = ["SETTING", "by_setting", "cost_cells", "cost_row", "growth", "measure", "peak_bytes"]

SETTING = ("device", "dtype", "backend", "batch")  # times are compared within one of these


def cost_cells(scans: Sequence[ScanOrder], config: CostConfig, *, machine: dict[str, Any]) -> list[Cell]:
    """One cell per order and point of the grid; `machine` goes into the key, since times belong to one.

    Raises:
        UserError: an implementation that was asked for cannot run here; the message says why.
    """
    points = [
        {"device": device, "dtype": dtype, "backend": backend, "batch": batch, "size": list(size)}
        for device in config.devices
        for dtype in config.dtypes
        for backend in config.backends
        for batch in config.batches
        for size in config.sizes
    ]
    for point in points:
        reason = _why_not(point, config.d_state)
        if reason is not None:
            raise UserError(f"cost: {point['backend']} on {point['device']} in {point['dtype']}: {reason}")
    fixed = {
        "channels": config.channels,
        "d_state": config.d_state,
        "repeats": config.repeats,
        "machine": machine,
    }
    return [Cell("cost", scan.key, {**point, **fixed}) for scan in scans for point in points]


def _why_not(point: dict[str, Any], d_state: int) -> str | None:
    if point["device"] == "cuda" and not torch.cuda.is_available():
        return "there is no CUDA device"
    if point["backend"] == "auto":
        return None
    report = backends(torch.device(point["device"]), getattr(torch, point["dtype"]), d_state=d_state)
    if point["backend"] not in list(report):
        return f"unknown; known: auto, {', '.join(report)}"
    return report[point["backend"]]


def measure(scan: ScanOrder, params: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Median and shortest seconds of forward, and of forward and backward; peak bytes of the latter.

    An order with a schedule is measured as a backbone's first layer uses it.
    """
    device, dtype = torch.device(params["device"]), getattr(torch, params["dtype"])
    torch.manual_seed(0)
    mixer = ImageScan(
        params["channels"],
        scan=scan.for_layer(0, 2),
        d_inner=params["channels"],
        d_state=params["d_state"],
        dt_rank=math.ceil(params["channels"] / 16),
        gate=False,
    ).to(device, dtype)
    x = torch.randn(params["batch"], *params["size"], params["channels"], device=device, dtype=dtype)
    x.requires_grad_()
    leaves = [x, *mixer.parameters()]

    def forward() -> Tensor:
        with torch.no_grad():
            return mixer(x)

    def both() -> Any:
        y = mixer(x)
        return torch.autograd.grad(y, leaves, torch.ones_like(y))

    with use_backend(params["backend"]):
        forward_s, both_s = (_seconds(run, device, params["repeats"]) for run in (forward, both))
        peak = peak_bytes(both, device)
    routes = scan.for_layer(0, 2)
    return {
        "routes": routes.num_routes,
        "steps": routes.length(params["size"]),
        "tokens": params["batch"] * math.prod(params["size"]),
        "forward_s": statistics.median(forward_s),
        "forward_min_s": min(forward_s),
        "both_s": statistics.median(both_s),
        "both_min_s": min(both_s),
        "peak_bytes": peak,
    }


def _seconds(run: Callable[[], Any], device: torch.device, repeats: int) -> list[float]:
    times = []
    for _ in range(repeats + 1):  # the first compiles and allocates
        _wait(device)
        start = time.perf_counter()
        run()
        _wait(device)
        times.append(time.perf_counter() - start)
    return times[1:]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(run: Callable[[], Any], device: torch.device) -> int:
    """The most memory that a call holds at once, beyond what was there before it, as torch's allocator counts it.

    On a CPU the profiler's record of every allocation is added up; the small scratch of compiled kernels is not torch's.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        _wait(device)
        return torch.cuda.max_memory_allocated(device) - before
    recorder: Any = torch.autograd.profiler.profile(profile_memory=True)  # its stubs do not know the records
    with recorder:
        run()
    records = [event for event in recorder.kineto_results.events() if event.name() == "[memory]"]
    records.sort(key=lambda event: event.start_ns())
    return int(np.cumsum([0] + [event.nbytes() for event in records]).max())


def growth(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The exponent p of figure = c * tokens^p per order and setting, by least squares on the logarithms.

    Args:
        rows: flat rows of `measure`, each with order, device, dtype, backend, batch, tokens and figures.

    Returns:
        Rows with `forward`, `both` and `memory`, each with the exponent, its standard error (None for two sizes) and
        the factor c; settings with one size have none.
    """
    from scipy.stats import linregress

    settings: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    names = ("order", *SETTING)
    for row in rows:
        settings[tuple(row[name] for name in names)].append(row)
    fits = []
    for setting, points in settings.items():
        if len({point["tokens"] for point in points}) < 2:
            continue
        fit: dict[str, Any] = dict(zip(names, setting, strict=True))
        for what, figure in (("forward", "forward_s"), ("both", "both_s"), ("memory", "peak_bytes")):
            x, y = (np.log([point[name] for point in points]) for name in ("tokens", figure))
            line: Any = linregress(x, y)  # scipy's stubs do not know what it returns
            fit[what] = float(line.slope)
            fit[f"{what}_error"] = float(line.stderr) if len(points) > 2 else None
            fit[f"{what}_factor"] = float(np.exp(line.intercept))
        fits.append(fit)
    return fits


def cost_row(order: str, params: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    """One flat row of the table."""
    kept = {name: params[name] for name in SETTING}
    return {"order": order, **kept, "height": params["size"][0], "width": params["size"][1], **result}


def by_setting(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The rows of each setting, under those of its words that tell it from the others: "" where there is one setting."""
    told = [name for name in SETTING if len({row[name] for row in rows}) > 1]
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[", ".join(f"batch {row[name]}" if name == "batch" else row[name] for name in told)].append(row)
    return dict(groups)
