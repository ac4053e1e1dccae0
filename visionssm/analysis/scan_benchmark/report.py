"""The figures as one self-contained HTML file and as PNGs."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

from visionssm.engine.checkpoint import write_atomic

from .figures import draw_figures
from .findings import summarise
from .images import square_photos
from .seeing import SEEN_PHOTOS

__all__ = ["report_page", "write_report"]

PHOTO_SIDE = 192


def write_report(figures: dict[str, Any], folder: Path) -> Path:
    """Writes report.html and the PNGs beside it.

    Args:
        figures: what `run_benchmark` returns.
        folder: of the run.

    Returns:
        The path of report.html.
    """
    path = folder / "report.html"
    write_atomic(path, report_page(figures).encode())
    draw_figures(figures, folder)
    return path


def report_page(figures: dict[str, Any]) -> str:
    """The page: markup, style, script and data in one text that loads nothing."""
    page = Path(__file__).parent / "page"
    parts = {name: (page / f"page.{name}").read_text(encoding="utf-8") for name in ("html", "css", "js")}
    data = {**figures, "summary": summarise(figures), "photo": _photo() if figures["seeing"] else None}
    # a "</script>" inside a string would end the element; these escapes are the same string to JSON
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    for mark, part in (("@@STYLE@@", parts["css"]), ("@@SCRIPT@@", parts["js"]), ("@@DATA@@", text)):
        assert parts["html"].count(mark) == 1
        parts["html"] = parts["html"].replace(mark, part)
    return parts["html"]


def _photo() -> str:
    pixels = square_photos(SEEN_PHOTOS[:1], PHOTO_SIDE)[0].permute(1, 2, 0).mul(255).round().byte().numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
