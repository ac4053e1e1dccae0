"""Numbers of the routes alone: how far apart an order carries what lies side by side, and what that costs the memory.

Legend: K routes, T steps, L = H * W positions.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visionssm.scans import ScanOrder

from .cells import Cell
from .config import GeometryConfig
from .images import TEST_PHOTOS, TRAIN_PHOTOS, square_photos

__all__ = ["autocorrelation", "geometry_cells", "locality", "measure", "neighbours_within", "step_lengths"]

SECTOR, LINE, PAGE = 32, 64, 4096  # bytes: a GPU's sector, a CPU's cache line, a page


def geometry_cells(scans: Sequence[ScanOrder], config: GeometryConfig) -> list[Cell]:
    """One cell per order and size; none for orders that are read off each image, which have no routes of their own."""
    params = dataclasses.asdict(config)
    del params["on"], params["sizes"]
    params["within"] = list(config.within)
    return [
        Cell("geometry", scan.key, {**params, "size": list(size)})
        for scan in scans
        if not scan.content
        for size in config.sizes
    ]


def measure(scan: ScanOrder, params: dict[str, Any], folder: Path) -> dict[str, Any]:
    """All numbers of one order at one size; over all routes that the order has, also where a layer uses one of them."""
    size = tuple(params["size"])
    routes = scan.routes(size)
    squared = step_lengths(routes, size)
    photos = square_photos((*TEST_PHOTOS, *TRAIN_PHOTOS), size).mean(1).flatten(1)
    waves = autocorrelation(routes, photos, params["lags"])
    row = params["channels"] * params["element_size"]
    element, window = params["element_size"], params["window"]
    pairs = neighbours_within(scan.inverse(size), size, params["within"])
    return {
        "routes": len(routes),
        "steps": routes.shape[1],
        "padding": (routes < 0).float().mean().item(),
        "mean_step": squared.sqrt().mean().item(),
        "max_step": squared.max().sqrt().item(),
        "continuity": (squared == 1).double().mean().item(),
        "continuity_corners": (squared <= 2).double().mean().item(),
        "within": {str(t): share for t, share in zip(params["within"], pairs[0], strict=True)},
        "within_any_route": {str(t): share for t, share in zip(params["within"], pairs[1], strict=True)},
        "autocorrelation": waves.tolist(),
        "correlation_length": _first_below(waves, 0.5),
        "sectors_per_step_channels_first": locality(routes, element, SECTOR, window),
        "lines_per_step_channels_first": locality(routes, element, LINE, window),
        "pages_per_step_channels_last": locality(routes, row, PAGE, window),
    }


def step_lengths(routes: Tensor, size: tuple[int, int]) -> Tensor:
    """Squared image distance of the tokens that follow one another, over all routes.

    Args:
        routes: int64 (K, T), -1 = padding, which is passed over.
        size: (H, W).

    Returns:
        float64 (number of steps,).
    """
    lengths = []
    for route in routes:
        route = route[route >= 0]
        moves = torch.stack([route // size[1], route % size[1]]).diff(dim=1).double()
        lengths.append(moves.square().sum(0))
    return torch.cat(lengths)


def neighbours_within(inverse: Tensor, size: tuple[int, int], steps: Sequence[int]) -> tuple[list[float], list[float]]:
    """Share of the pairs of 4-neighbours that an order visits within t steps of each other.

    Args:
        inverse: int64 (K, L), the step at which a route visits a position, -1 if never.
        size: (H, W).
        steps: the t.

    Returns:
        For each t the mean over routes, and the share of pairs for which some route manages it. A pair of which a route
        misses one half is not within reach of that route.
    """
    image = inverse.view(-1, *size).double()
    image = torch.where(image < 0, torch.nan, image)
    gaps = torch.cat([image.diff(dim=1).flatten(1), image.diff(dim=2).flatten(1)], 1).abs().nan_to_num(math.inf)
    mean = [(gaps <= t).double().mean().item() for t in steps]
    return mean, [(gaps.amin(0) <= t).double().mean().item() for t in steps]


def autocorrelation(routes: Tensor, photos: Tensor, lags: int) -> Tensor:
    """Correlation of the grey values that a route reads t steps apart; averaged over routes and photographs.

    Args:
        routes: int64 (K, T), -1 = padding, which is passed over.
        photos: (P, L), P photographs, none of them of one colour.
        lags: longest t; no longer than half the shortest route.

    Returns:
        float64 (lags + 1,), from lag 0, which is 1.
    """
    paths = [route[route >= 0] for route in routes]
    lags = min(lags, min(len(path) for path in paths) // 2)
    total = torch.zeros(lags + 1, dtype=torch.float64)
    for path in paths:
        waves = photos[:, path].double()
        waves = waves - waves.mean(1, keepdim=True)
        variance = waves.square().mean(1)
        for lag in range(lags + 1):
            products = waves[:, : waves.shape[1] - lag] * waves[:, lag:]
            total[lag] += (products.mean(1) / variance).mean()
    return total / len(paths)


def locality(routes: Tensor, row: int, block: int, window: int) -> float:
    """Blocks of memory that a route fetches per step.

    A block that was touched in the last `window` steps is still there; others are fetched. This is a small cache that
    forgets by age, the same for every order, not a model of one machine.

    Args:
        routes: int64 (K, T), -1 = padding, which touches nothing.
        row: bytes of one position: of one value where channels come first, of all of them where they come last.
        block: bytes of a sector, line or page.
        window: steps.
    """
    fetched = visited = 0
    for route in routes.tolist():
        seen: dict[int, int] = {}
        for step, position in enumerate(place for place in route if place >= 0):
            visited += 1
            for touched in range(position * row // block, ((position + 1) * row - 1) // block + 1):
                fetched += step - seen.get(touched, -window - 1) > window
                seen[touched] = step
    return fetched / visited


def _first_below(waves: Tensor, level: float) -> float | None:
    """The lag at which a correlation falls below a level, between the two lags beside it; None if it does not."""
    below = (waves < level).nonzero()
    if not len(below):
        return None
    lag = int(below[0])
    high, low = float(waves[lag - 1]), float(waves[lag])
    return lag - 1 + (high - level) / (high - low)
