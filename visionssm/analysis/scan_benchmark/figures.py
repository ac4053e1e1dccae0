"""The figures as PNGs: paths, growth, autocorrelation, learning, receptive fields, hidden attention."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import layer_norm, pixel_unshuffle

from visionssm.engine.checkpoint import write_atomic
from visionssm.mixers.content import content_routes
from visionssm.scans import ScanOrder, grid

from .cost import SETTING
from .images import square_photos
from .seeing import SEEN_PHOTOS, decode

__all__ = ["draw_figures", "draw_paths", "path_entry", "read_off_photo"]

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe and Ito
MARKERS = "os^Dv*P"


def draw_figures(figures: dict[str, Any], folder: Path) -> list[Path]:
    """Writes one PNG per kind of figure that there is."""
    drawn = {"paths": draw_paths(figures["orders"])}
    if figures["growth"]:
        drawn["growth"] = _growth(figures)
    if figures["geometry"]:
        drawn["autocorrelation"] = _autocorrelation(figures)
    if figures["learning"]:
        drawn["learning"] = _learning(figures)
    if figures["seeing"]:
        drawn["receptive_fields"] = _maps(figures, attention=False)
        drawn["hidden_attention"] = _maps(figures, attention=True)
    paths = []
    for name, figure in drawn.items():
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=130)
        paths.append(folder / f"{name}.png")
        write_atomic(paths[-1], file.getvalue())
    return paths


def path_entry(scan: ScanOrder, side: int) -> dict[str, Any]:
    """What `draw_paths` needs of an order; `shown` is its first route that is not straight, where it has one.

    An order that is read off the image is drawn as an untrained module reads it off a photograph.
    """
    image = grid((side, side))
    routes = read_off_photo(scan, side) if scan.content else scan.routes((side, side))
    straight = [turned.flatten() for i in range(4) for turned in (image.rot90(i), image.rot90(i).T)]
    bent = [i for i, route in enumerate(routes) if not any(torch.equal(route[route >= 0], line) for line in straight)]
    paths = routes.tolist()
    return {
        "order": scan.name,
        "side": side,
        "paths": paths,
        "routes": len(paths),
        "shown": bent[0] if bent else 0,
        "content": scan.content,
    }


def read_off_photo(scan: ScanOrder, side: int) -> Tensor:
    """Routes (K, L) over a photograph of side * side patches of 4 * 4 pixels, from an untrained module of fixed seed."""
    photo = square_photos(SEEN_PHOTOS[:1], 4 * side)
    patches_BLD = pixel_unshuffle(photo, 4).flatten(2).transpose(1, 2)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        routes = content_routes(scan, patches_BLD.shape[2], 1)
        assert routes is not None
        return routes.eval()(layer_norm(patches_BLD, patches_BLD.shape[2:]))[1][0].long()


def draw_paths(entries: Sequence[dict[str, Any]], *, columns: int = 7) -> Figure:
    """A gallery with a route of each order; colour runs with the steps, thin lines are jumps."""
    rows = math.ceil(len(entries) / columns)
    figure = Figure(figsize=(1.7 * columns, 1.95 * rows), layout="constrained")
    for index, entry in enumerate(entries):
        axes = figure.add_subplot(rows, columns, index + 1)
        places = np.array([place for place in entry["paths"][entry["shown"]] if place >= 0])
        points = np.stack([places % entry["side"], places // entry["side"]], 1)
        segments = np.stack([points[:-1], points[1:]], 1)
        far = np.linalg.norm(np.diff(points, axis=0), axis=1) > 1.5
        lines = LineCollection(list(segments), cmap="viridis", linewidths=np.where(far, 0.5, 2.0).tolist())
        lines.set_array(np.linspace(0, 0.9, len(segments)))
        lines.set_clim(0, 1)
        axes.add_collection(lines)
        axes.plot(*points[0], "o", color="#440154", markersize=4, fillstyle="none")
        axes.plot(*points[-1], "s", color="#7ad151", markersize=4)
        axes.set(xlim=(-0.7, entry["side"] - 0.3), ylim=(entry["side"] - 0.3, -0.7), aspect="equal")
        axes.set_axis_off()
        routes = "" if entry["routes"] == 1 else f"\n1 of {entry['routes']} routes"
        photo = " of a photo" if entry["content"] else ""
        axes.set_title(f"{entry['order']}{photo}{routes}", fontsize=8)
    return figure


def _style(index: int) -> dict[str, Any]:
    dashes = ("-", "--", ":", "-.")[index // len(COLOURS) % 4]
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": dashes,
    }


def _legend(figure: Figure) -> None:
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=7)


def _growth(figures: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.add_subplot()
    first = figures["growth"][0]
    cost, growth = (
        [row for row in figures[table] if all(row[name] == first[name] for name in SETTING)]
        for table in ("cost", "growth")
    )
    for index, entry in enumerate(figures["orders"]):
        rows = [row for row in cost if row["order"] == entry["order"]]
        fits = [fit["both"] for fit in growth if fit["order"] == entry["order"]]
        if rows:
            name = entry["order"] + (f", p = {fits[0]:.2f}" if fits else "")
            times = [1e3 * row["both_s"] for row in rows]
            axes.loglog([row["tokens"] for row in rows], times, label=name, markersize=4, **_style(index))
    setting = ", ".join(str(first[name]) for name in SETTING[:3])
    axes.set(
        xlabel="tokens",
        ylabel="forward and backward, ms",
        title=f"{setting}, batch {first['batch']}; time ~ tokens^p",
    )
    axes.grid(alpha=0.3)
    _legend(figure)
    return figure


def _autocorrelation(figures: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.add_subplot()
    most = max(row["height"] * row["width"] for row in figures["geometry"])
    rows = [row for row in figures["geometry"] if row["height"] * row["width"] == most]
    for index, row in enumerate(rows):
        axes.plot(
            row["autocorrelation"],
            label=row["order"],
            markevery=8,
            markersize=4,
            linewidth=1.2,
            **_style(index),
        )
    axes.set(xlabel="steps apart on the route", ylabel="correlation of grey values")
    axes.set_title(f"photographs of {rows[0]['height']} x {rows[0]['width']} pixels")
    axes.grid(alpha=0.3)
    _legend(figure)
    return figure


def _learning(figures: dict[str, Any]) -> Figure:
    tasks = list(dict.fromkeys(row["task"] for row in figures["learning"]))
    orders = len({row["order"] for row in figures["learning"]})
    figure = Figure(figsize=(4 * len(tasks), 0.28 * orders + 1.2), layout="constrained")
    for index, task in enumerate(tasks):
        rows = sorted((row for row in figures["learning"] if row["task"] == task), key=lambda row: row["mean"])
        axes = figure.add_subplot(1, len(tasks), index + 1)
        for place, row in enumerate(rows):
            colour = COLOURS[1] if row["order"] == figures["baseline"] else COLOURS[0]
            axes.plot(row["scores"], [place] * len(row["scores"]), ".", color="0.6", markersize=4)
            axes.errorbar(row["mean"], place, xerr=row["std"], fmt="o", color=colour, markersize=4)
        axes.set_yticks(range(len(rows)), [row["order"] for row in rows], fontsize=8)
        axes.set(title=task, xlabel=rows[0]["metric"])
        axes.grid(alpha=0.3, axis="x")
    return figure


def _maps(figures: dict[str, Any], *, attention: bool) -> Figure:
    rows = figures["seeing"]
    columns = min(7, len(rows))
    figure = Figure(figsize=(1.7 * columns, 1.9 * math.ceil(len(rows) / columns)), layout="constrained")
    photo = square_photos(SEEN_PHOTOS[:1], 192)[0].mean(0).numpy()
    for index, row in enumerate(rows):
        axes = figure.add_subplot(math.ceil(len(rows) / columns), columns, index + 1)
        side = row["attention_side"] if attention else row["field_side"]
        values = decode(row["attention" if attention else "field"], side)
        if attention:
            middle = side // 2
            values = values[middle * side + middle].reshape(side, side)
            axes.plot(
                (middle + 0.5) * 192 / side,
                (middle + 0.5) * 192 / side,
                "s",
                color="#d55e00",
                fillstyle="none",
            )
        axes.imshow(photo, cmap="gray", vmin=0, vmax=1.2)
        shares = values / 255.0
        axes.imshow(
            shares,
            cmap="cividis",
            alpha=0.15 + 0.8 * shares,
            extent=(0, 192, 192, 0),
            interpolation="nearest",
        )
        axes.set_axis_off()
        axes.set_title(row["order"], fontsize=8)
    what = "hidden attention of the central token" if attention else "effective receptive field of the central pixels"
    figure.suptitle(f"{what}, square roots", fontsize=9)
    return figure
