"""Scan orders built the slow and obvious way, cell by cell, from their definitions; used to judge the fast ones."""

import itertools
from collections.abc import Callable, Iterator

Cell = tuple[int, ...]


def rows(H: int, W: int) -> list[Cell]:
    return [(y, x) for y in range(H) for x in range(W)]


def columns(H: int, W: int) -> list[Cell]:
    return [(y, x) for x in range(W) for y in range(H)]


def row_snake(H: int, W: int) -> list[Cell]:
    return [(y, x if y % 2 == 0 else W - 1 - x) for y in range(H) for x in range(W)]


def transposed(order: Callable[..., list[Cell]], H: int, W: int, *options: int) -> list[Cell]:
    """The order of the transposed image, in cells of the image."""
    return [(y, x) for x, y in order(W, H, *options)]


def windows(H: int, W: int, K: int) -> list[Cell | None]:
    """Windows row by row; None where a window reaches over the border."""
    path: list[Cell | None] = []
    for top in range(0, H, K):
        for left in range(0, W, K):
            for y in range(top, top + K):
                path += [(y, x) if y < H and x < W else None for x in range(left, left + K)]
    return path


def phases(H: int, W: int, step: int) -> list[list[Cell | None]]:
    high, wide = -(-H // step), -(-W // step)
    paths = []
    for px in range(step):
        for py in range(step):
            inside = rows(high, wide) if py % 2 == 0 else columns(high, wide)
            cells = [(py + step * i, px + step * j) for i, j in inside]
            paths.append([cell if cell[0] < H and cell[1] < W else None for cell in cells])
    return paths


def zigzag_diagonals(H: int, W: int) -> list[Cell]:
    """Walk like a bishop that is reflected at the borders."""
    path, y, x, up = [], 0, 0, True
    while len(path) < H * W:
        path.append((y, x))
        if up and x == W - 1:
            y, up = y + 1, False
        elif up and y == 0:
            x, up = x + 1, False
        elif up:
            y, x = y - 1, x + 1
        elif y == H - 1:
            x, up = x + 1, True
        elif x == 0:
            y, up = y + 1, True
        else:
            y, x = y + 1, x - 1
    return path


def diagonals(H: int, W: int) -> list[Cell]:
    return [(y, d - y) for d in range(H + W - 1) for y in range(H) if 0 <= d - y < W]


def clockwise(H: int, W: int) -> list[Cell]:
    """Walk on, and turn right in front of a border or of a cell that has been visited."""
    y, x, dy, dx = 0, 0, 0, 1
    path = [(0, 0)]
    while len(path) < H * W:
        if not (0 <= y + dy < H and 0 <= x + dx < W) or (y + dy, x + dx) in path:
            dy, dx = dx, -dy
        y, x = y + dy, x + dx
        path.append((y, x))
    return path


def morton(H: int, W: int) -> list[Cell]:
    def code(cell: Cell) -> int:
        y, x = (f"{value:020b}" for value in cell)
        return int("".join(a + b for a, b in zip(y, x, strict=True)), 2)

    return sorted(rows(H, W), key=code)


def stripes(H: int, W: int, s: int, d: int) -> list[Cell]:
    borders = sorted({0, W, *range(d, W, s)})
    path = []
    for i, (left, right) in enumerate(itertools.pairwise(borders)):
        walked = range(H) if i % 2 == 0 else range(H - 1, -1, -1)
        for k, y in enumerate(walked):
            path += [(y, x) for x in (range(left, right) if k % 2 == 0 else range(right - 1, left - 1, -1))]
    return path


def gilbert(H: int, W: int) -> list[Cell]:
    """The recursion on (start, major vector, minor vector) with vectors (y, x), along the longer side, ties along x."""
    if W >= H:
        return list(_gilbert(0, 0, 0, W, H, 0))
    return list(_gilbert(0, 0, H, 0, 0, W))


def _sign(v: int) -> int:
    return (v > 0) - (v < 0)


def _gilbert(y: int, x: int, ay: int, ax: int, by: int, bx: int) -> Iterator[Cell]:
    w, h = abs(ay + ax), abs(by + bx)
    uy, ux, vy, vx = _sign(ay), _sign(ax), _sign(by), _sign(bx)
    if h == 1:
        yield from ((y + i * uy, x + i * ux) for i in range(w))
        return
    if w == 1:
        yield from ((y + i * vy, x + i * vx) for i in range(h))
        return
    cy, cx, dy, dx = ay // 2, ax // 2, by // 2, bx // 2
    if 2 * w > 3 * h:
        if abs(cy + cx) % 2 and w > 2:
            cy, cx = cy + uy, cx + ux
        yield from _gilbert(y, x, cy, cx, by, bx)
        yield from _gilbert(y + cy, x + cx, ay - cy, ax - cx, by, bx)
        return
    if abs(dy + dx) % 2 and h > 2:
        dy, dx = dy + vy, dx + vx
    yield from _gilbert(y, x, dy, dx, cy, cx)
    yield from _gilbert(y + dy, x + dx, ay, ax, by - dy, bx - dx)
    yield from _gilbert(y + ay - uy + dy - vy, x + ax - ux + dx - vx, -dy, -dx, cy - ay, cx - ax)
