"""Pictures of routes."""

import sys
from pathlib import Path

import pytest

from visionssm import scans

pytest.importorskip("matplotlib")


@pytest.mark.parametrize(
    ("name", "size"), [("window", (5, 8)), ("cross", (2, 3, 4)), ("skip", (5, 8)), ("hilbert", (1, 1))]
)
def test_writes_a_picture(name: str, size: tuple[int, ...], tmp_path: Path) -> None:
    scan = scans.create_scan(name, ndim=len(size))
    figure = scans.draw(scan, size, tmp_path / "scan.png")
    assert (tmp_path / "scan.png").read_bytes().startswith(b"\x89PNG")
    assert len(figure.axes) == scan.num_routes


def test_the_line_is_the_route() -> None:
    axes = scans.draw(scans.create_scan("continuous"), (2, 3)).axes[2]
    (line,) = axes.lines
    assert list(zip(*line.get_data(), strict=True)) == [(0, 0), (0, 1), (1, 1), (1, 0), (2, 0), (2, 1)]
    cells, start, end = axes.collections
    assert start.get_offsets().tolist() == [[0, 0]]
    assert end.get_offsets().tolist() == [[2, 1]]
    assert len(cells.get_offsets()) == 6
    assert axes.yaxis_inverted()


def test_the_line_runs_through_a_volume() -> None:
    (line,) = scans.draw(scans.create_scan("raster_3d"), (2, 1, 2)).axes[0].lines
    assert [tuple(map(int, cell)) for cell in zip(*line.get_data_3d(), strict=True)] == [
        (0, 0, 0), (1, 0, 0), (0, 0, 1), (1, 0, 1),
    ]  # fmt: skip


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="draw shows images"):
        scans.draw(scans.create_scan("sequence_reorder"), (12,))
    with pytest.raises(ValueError, match="'spiral'"):
        scans.draw(scans.create_scan("spiral"), (2, 2, 2))
    with pytest.raises(ValueError, match="tokens that are no cells"):
        scans.draw(scans.create_scan("with_token", scan="cross"), (2, 2))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match="pip install matplotlib"):
        scans.draw(scans.create_scan("cross"), (4, 4))
