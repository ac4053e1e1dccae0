"""The fast constructions against slow ones made cell by cell from the definitions, at any size."""

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.scans import slow
from visionssm import scans

SIDES = st.integers(1, 13)


def flat(paths: Sequence[Sequence[slow.Cell | None]], size: tuple[int, ...]) -> list[list[int]]:
    """Raster indices of cells, -1 for None, padded at the end up to the longest."""
    longest = max(map(len, paths))
    table = []
    for path in paths:
        route = []
        for cell in path:
            index = 0
            for value, side in zip(cell or (), size, strict=cell is not None):
                index = index * side + value
            route.append(-1 if cell is None else index)
        table.append(route + [-1] * (longest - len(route)))
    return table


def back(path: Sequence) -> list:
    return list(path)[::-1]


def fh(path: Sequence[slow.Cell], H: int) -> list[slow.Cell]:
    return [(H - 1 - y, x) for y, x in path]


def fw(path: Sequence[slow.Cell], W: int) -> list[slow.Cell]:
    return [(y, W - 1 - x) for y, x in path]


def zigzag(H: int, W: int) -> list[list[slow.Cell]]:
    pair = [slow.row_snake(H, W), slow.transposed(slow.row_snake, H, W)]
    return [*pair, *(fw(p, W) for p in pair), *(fh(p, H) for p in pair), *(fh(fw(p, W), H) for p in pair)]


def symmetries(base: Callable[[int, int], list[slow.Cell]]) -> Callable[[int, int], list[list[slow.Cell]]]:
    """The cells (i, j) of the base are (i, j), (j, i), (j, W - 1 - i), (i, W - 1 - j) of the image; then all reversed."""

    def paths(H: int, W: int) -> list[list[slow.Cell]]:
        upright, lying = base(H, W), base(W, H)
        four = [upright, [(j, i) for i, j in lying], [(j, W - 1 - i) for i, j in lying], fw(upright, W)]
        return [*four, *map(back, four)]

    return paths


def nested(H: int, W: int) -> list[list[slow.Cell]]:
    a, b = slow.stripes(H, W, 4, 1), slow.transposed(slow.stripes, H, W, 4, 1)
    # The image turned by 180 degrees is read by the same rule, so its cells are the opposite ones.
    turned = fh(fw(a, W), H)
    # Turned and transposed: cell (i, j) of that view is (H - 1 - j, W - 1 - i) of the image.
    return [a, turned, b, fh(fw(b, W), H)]


def cross(H: int, W: int) -> list[list[slow.Cell]]:
    r, c = slow.rows(H, W), slow.columns(H, W)
    return [r, c, back(r), back(c)]


def continuous(H: int, W: int) -> list[list[slow.Cell]]:
    r, c = slow.row_snake(H, W), slow.transposed(slow.row_snake, H, W)
    return [r, back(r), c, back(c)]


def cross_rotate(H: int, W: int) -> list[list[slow.Cell]]:
    right_to_left = [(y, x) for x in reversed(range(W)) for y in range(H)]
    return [slow.rows(H, W), right_to_left, back(slow.rows(H, W)), back(right_to_left)]


def window(H: int, W: int) -> list[list[slow.Cell | None]]:
    w3 = slow.windows(H, W, 3)
    return [slow.rows(H, W), back(slow.columns(H, W)), w3, back(w3), slow.windows(H, W, 5)]


def heads(H: int, W: int) -> list[list[slow.Cell]]:
    x, s = slow.zigzag_diagonals(H, W), slow.clockwise(H, W)
    return [p for a in (x, fw(x, W), s, fh(s, H)) for p in (a, back(a))]


def diagonal(H: int, W: int) -> list[list[slow.Cell]]:
    a = slow.diagonals(H, W)
    return [a, fw(a, W), back(a), back(fw(a, W))]


def atrous(H: int, W: int, side: int, rate: int) -> list[list[slow.Cell | None]]:
    def read(H: int, W: int) -> list[slow.Cell | None]:
        path = []
        for top in range(0, H, side * rate):
            for left in range(0, W, side * rate):
                for y in range(top, top + rate):
                    for x in range(left, left + rate):
                        path += [(y + i * rate, x + j * rate) for i in range(side) for j in range(side)]
        return [cell if cell[0] < H and cell[1] < W else None for cell in path]

    rows, columns = read(H, W), [cell and cell[::-1] for cell in read(W, H)]
    return [rows, columns, back(rows), back(columns)]


PLANES = {
    ("alternating", ()): lambda H, W: [slow.rows(H, W), back(slow.rows(H, W))],
    ("atrous_window", ()): lambda H, W: atrous(H, W, 2, 2),
    ("atrous_window", (("side", 3), ("rate", 2))): lambda H, W: atrous(H, W, 3, 2),
    ("raster", ()): lambda H, W: [slow.rows(H, W)],
    ("bidirectional", ()): lambda H, W: [slow.rows(H, W), back(slow.rows(H, W))],
    ("snake", ()): lambda H, W: [slow.row_snake(H, W), back(slow.row_snake(H, W))],
    ("cross", ()): cross,
    ("cross_unidirectional", ()): lambda H, W: [slow.rows(H, W)] * 4,
    ("cross_bidirectional", ()): lambda H, W: [slow.rows(H, W)] * 2 + [back(slow.rows(H, W))] * 2,
    ("nd_2d", ()): lambda H, W: [p for a in (slow.rows(H, W), slow.columns(H, W)) for p in (a, back(a))],
    ("group", ()): cross,
    ("cross_rotate", ()): cross_rotate,
    ("continuous", ()): continuous,
    ("window", (("directions", ("h", "v_flip", "w3", "w3_flip", "w5")),)): window,
    ("skip", ()): lambda H, W: slow.phases(H, W, 2),
    ("skip", (("step", 3),)): lambda H, W: slow.phases(H, W, 3),
    ("zigzag", ()): zigzag,
    ("nested_s", (("scan_len", 4), ("shift", 1))): nested,
    ("multi_head", (("heads", ("X", "S")),)): heads,
    ("diagonal", ()): diagonal,
    ("spiral", ()): lambda H, W: [slow.clockwise(H, W), back(slow.clockwise(H, W))],
    ("gilbert", (("axis", ("x_is_column",)),)): lambda H, W: [slow.gilbert(H, W)],
    ("mambaad_sweep", ()): symmetries(slow.rows),
    ("mambaad_scan", ()): symmetries(slow.row_snake),
    ("mambaad_zigzag", ()): symmetries(slow.zigzag_diagonals),
    ("mambaad_zorder", ()): symmetries(slow.morton),
}


@pytest.mark.parametrize(("name", "options"), PLANES)
@given(H=SIDES, W=SIDES)
def test_planes(name: str, options: tuple, H: int, W: int) -> None:
    wanted = PLANES[name, options](H, W)
    assert scans.create_scan(name, **dict(options)).routes((H, W)).tolist() == flat(wanted, (H, W))


def d_h_w(D: int, H: int, W: int, order: str) -> list[slow.Cell]:
    """All cells, sorted by their coordinates in this order of the axes."""
    cells = [(d, h, w) for d in range(D) for h in range(H) for w in range(W)]
    return sorted(cells, key=lambda cell: [cell["dhw".index(letter)] for letter in order])


def tri_orientated(D: int, H: int, W: int) -> list[list[slow.Cell]]:
    raster = d_h_w(D, H, W, "dhw")
    return [raster, back(raster), [raster[t % D * H * W + t // D] for t in range(D * H * W)]]


def snake_of_snakes(D: int, H: int, W: int) -> list[list[slow.Cell]]:
    path: list[slow.Cell] = []
    for d in range(D):
        plane = [(d, y, x) for y, x in slow.row_snake(H, W)]
        path += plane if d % 2 == 0 else back(plane)
    return [path, back(path)]


def cubes(D: int, H: int, W: int) -> list[list[slow.Cell | None]]:
    path: list[slow.Cell | None] = []
    for d0 in range(0, D, 2):
        for h0 in range(0, H, 2):
            for w0 in range(0, W, 2):
                inside = [(d, h, w) for d in (d0, d0 + 1) for h in (h0, h0 + 1) for w in (w0, w0 + 1)]
                path += [cell if cell[0] < D and cell[1] < H and cell[2] < W else None for cell in inside]
    return [path]


def windows_in_slices(D: int, H: int, W: int, side: int) -> list:
    cells = [(d, h, w) for d in range(D) for h in range(H) for w in range(W)]
    path = sorted(cells, key=lambda cell: (cell[0], cell[1] // side, cell[2] // side, *cell))
    return [path, back(path)]


VOLUMES = {
    ("raster", ()): lambda *s: [d_h_w(*s, "dhw")],
    ("cross", ()): lambda *s: [p for f in (list, back) for o in ("dhw", "hwd", "wdh") for p in [f(d_h_w(*s, o))]],
    ("axes", (("orders", ("whd", "hdw_flip")),)): lambda *s: [d_h_w(*s, "whd"), back(d_h_w(*s, "hdw"))],
    ("nd_3d", ()): lambda *s: [p for o in ("dhw", "dwh", "whd") for p in (d_h_w(*s, o), back(d_h_w(*s, o)))],
    ("tri_orientated", ()): tri_orientated,
    ("snake", ()): snake_of_snakes,
    ("window", (("directions", ("w2",)),)): cubes,
    ("slice_window", (("side", 3),)): lambda *s: windows_in_slices(*s, 3),
    ("slices", ()): lambda *s: [d_h_w(*s, "dhw"), d_h_w(*s, "hwd"), d_h_w(*s, "wdh")],
}


@pytest.mark.parametrize(("name", "options"), VOLUMES)
@given(size=st.tuples(*[st.integers(1, 5)] * 3))
def test_volumes(name: str, options: tuple, size: tuple[int, int, int]) -> None:
    scan = scans.create_scan(name, ndim=3, **dict(options))
    assert scan.routes(size).tolist() == flat(VOLUMES[name, options](*size), size)


@given(length=st.integers(1, 70), rate=st.integers(1, 12))
def test_sequence_reorder(length: int, rate: int) -> None:
    columns = -(-length // rate)
    wanted = [t % columns * rate + t // columns for t in range(columns * rate)]
    plain = [*range(length)] + [-1] * (columns * rate - length)
    routes = scans.create_scan("sequence_reorder", rate=rate).routes((length,)).tolist()
    assert routes == [plain, [cell if cell < length else -1 for cell in wanted]]


@given(length=st.integers(1, 70), segment=st.integers(1, 80))
def test_local_bidirectional(length: int, segment: int) -> None:
    wanted = [t for start in range(0, length, segment) for t in reversed(range(start, min(start + segment, length)))]
    scan = scans.create_scan("local_bidirectional", segment=segment)
    assert scan.routes((length,)).tolist() == [[*range(length)], wanted]
    assert scan.segments((length,)) == (length, segment)


@pytest.mark.parametrize(("length", "segment"), [(1, 4), (128, 4), (129, 8), (256, 8), (257, 16), (4096, 16)])
def test_published_segments(length: int, segment: int) -> None:
    assert scans.create_scan("local_bidirectional").segments((length,))[1] == segment


@given(size=st.tuples(*[st.integers(1, 6)] * 3))
def test_moves_of_a_snake_through_a_volume(size: tuple[int, int, int]) -> None:
    scan = scans.create_scan("continuous", ndim=3)
    moves = {
        0: (0, 0, 0),
        1: (0, 0, 1),
        2: (0, 0, -1),
        3: (0, -1, 0),
        4: (0, 1, 0),
        5: (1, 0, 0),
        6: (-1, 0, 0),
    }
    assert scan.num_directions == len(moves)
    for route, ids in zip(scan.routes(size), scan.directions(size).tolist(), strict=True):
        cells = torch.stack(torch.unravel_index(route, size), 1)
        steps = torch.diff(cells, dim=0, prepend=cells[:1])
        assert ids[0] == 0
        assert 0 not in ids[1:]
        assert steps.tolist() == [list(moves[move]) for move in ids]


@pytest.mark.parametrize("bits", [1, 2, 3])
@pytest.mark.parametrize("name", ["hilbert_3d", "morton_3d"])
def test_cubes_are_finished_one_by_one(name: str, bits: int) -> None:
    """Every aligned cube of side 2**b is visited in one go: what makes these curves local."""
    side = 2**bits
    path = scans.create_scan(name).routes((side,) * 3)[0]
    cells = torch.stack(torch.unravel_index(path, (side,) * 3), 1)
    for b in range(bits + 1):
        for piece in cells.split(8**b):
            assert len((piece >> b).unique(dim=0)) == 1


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_hilbert_cubes_are_walked_step_by_step(bits: int) -> None:
    side = 2**bits
    path = scans.create_scan("hilbert_3d").routes((side,) * 3)[0]
    assert torch.stack(torch.unravel_index(path, (side,) * 3)).diff().abs().sum(0).eq(1).all()


@pytest.mark.parametrize("name", ["hilbert", "gilbert_3d", "hilbert_3d"])
@given(size=st.tuples(*[st.integers(1, 4)] * 3))
def test_even_boxes_are_walked_step_by_step(name: str, size: tuple[int, int, int]) -> None:
    size = tuple(2 * side for side in size)
    for path in scans.create_scan(name, ndim=3).routes(size):
        assert torch.stack(torch.unravel_index(path, size)).diff().abs().sum(0).eq(1).all()
