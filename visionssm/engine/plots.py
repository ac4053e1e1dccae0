"""Pictures of a run: curves, confusion matrix, contact sheet of predictions."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from visionssm.engine.checkpoint import write_atomic

__all__ = ["plot_confusion", "plot_contact_sheet", "plot_curves", "plot_restoration"]

NAMED_CLASSES = 40  # with more, class names and numbers in the cells would not be readable


def plot_curves(history: Sequence[Mapping[str, float]], path: str | Path, *, title: str = "") -> None:
    """Losses, every other validation metric, and the learning rate over the epochs, as a PNG."""
    epochs = [row["epoch"] for row in history]
    own = {"epoch", "updates", "lr", "train_loss", "gradient_norm", "images_per_second"}
    metrics = [key for key in history[0] if key not in own]
    losses = ["train_loss", *(key for key in metrics if "loss" in key)]
    scores = [key for key in metrics if "loss" not in key]
    figure = Figure(figsize=(15, 4), layout="constrained")
    panels = figure.subplots(1, 3)
    for panel, keys, label in zip(panels, (losses, scores, ["lr"]), ("loss", "score", "learning rate"), strict=True):
        for key in keys:
            panel.plot(epochs, [row[key] for row in history], marker=".", label=key.replace("_", " "))
        panel.set_xlabel("epoch")
        panel.set_title(label)
        panel.grid(alpha=0.3)
        if len(keys) > 1:
            panel.legend()
    if title:
        figure.suptitle(title)
    _save(figure, path)


def plot_confusion(confusion: np.ndarray, classes: Sequence[str], path: str | Path, *, title: str = "") -> None:
    """A confusion matrix as a PNG.

    Args:
        confusion: (classes, classes) counts; row: the true class, column: the guess.
        classes: Names.
        path: File to write.
        title: Above the picture.
    """
    named = len(classes) <= NAMED_CLASSES
    size = 2.5 + 0.45 * len(classes) if named else 10
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    panel = figure.subplots()
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    picture = panel.imshow(share, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(picture, ax=panel, label="share of the true class")
    panel.set_xlabel("predicted")
    panel.set_ylabel("true")
    if named:
        panel.set_xticks(range(len(classes)), classes, rotation=90 if max(map(len, classes)) > 3 else 0)
        panel.set_yticks(range(len(classes)), classes)
        for row, column in zip(*np.nonzero(confusion), strict=True):
            color = "white" if share[row, column] > 0.5 else "black"
            panel.text(column, row, str(confusion[row, column]), ha="center", va="center", color=color, fontsize=8)
    panel.set_title(title)
    _save(figure, path)


def plot_contact_sheet(images: Sequence[Image.Image], captions: Sequence[str], path: str | Path) -> None:
    """Images in a grid, each with its caption below, as a PNG."""
    columns = min(len(images), 6)
    rows = math.ceil(len(images) / columns)
    figure = Figure(figsize=(2.4 * columns, 2.7 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel in panels:
        panel.set_axis_off()
    for panel, image, caption in zip(panels, images, captions, strict=False):
        panel.imshow(np.asarray(image))
        panel.set_title(caption, fontsize=8, y=0, va="top", pad=-4)
    _save(figure, path)


def plot_restoration(
    rows: Sequence[tuple[str, Sequence[np.ndarray], Sequence[str]]],
    path: str | Path,
    *,
    title: str = "",
    side: int = 128,
) -> None:
    """Versions of pictures side by side, as a PNG: a detail of each, enlarged without smoothing.

    Args:
        rows: Per picture its name, its versions (H, W, 1 or 3) uint8 of one size, and their captions.
        path: File to write.
        title: Above the picture.
        side: Of the square detail, where the last version has most detail.
    """
    columns = max(len(images) for _, images, _ in rows)
    figure = Figure(figsize=(4 * columns, 4.3 * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), columns, squeeze=False)
    for panel in panels.ravel():
        panel.set_xticks([])
        panel.set_yticks([])
    for line, (name, images, captions) in zip(panels, rows, strict=True):
        y, x = _detail(images[-1], side)
        for panel, image, caption in zip(line, images, captions, strict=False):
            part = image[y : y + side, x : x + side]
            grey = part.shape[2] == 1
            panel.imshow(part[..., 0] if grey else part, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            panel.set_title(caption, fontsize=10)
        line[0].set_ylabel(Path(name).name)
    if title:
        figure.suptitle(title)
    _save(figure, path)


def _detail(image: np.ndarray, side: int) -> tuple[int, int]:
    """Top left corner of the square, out of a grid of them, with most fine contrast."""
    height, width = image.shape[:2]
    grey = image.mean(2)
    edges = np.abs(np.diff(grey, axis=0, prepend=grey[:1])) + np.abs(np.diff(grey, axis=1, prepend=grey[:, :1]))
    corners = [
        (y, x)
        for y in range(0, max(height - side, 0) + 1, max(side // 2, 1))
        for x in range(0, max(width - side, 0) + 1, max(side // 2, 1))
    ]
    return max(
        corners,
        key=lambda corner: float(edges[corner[0] : corner[0] + side, corner[1] : corner[1] + side].mean()),
    )


def _save(figure: Figure, path: str | Path) -> None:
    """Draws without pyplot, which would keep figures and choose a display."""
    FigureCanvasAgg(figure)
    data = io.BytesIO()
    options: dict[str, Any] = {"dpi": 120, "format": "png"}
    figure.savefig(data, **options)
    write_atomic(path, data.getvalue())
