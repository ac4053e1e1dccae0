"""What every registered order promises, at any size."""

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from visionssm import scans

RANKS = {name: scans.create_scan(name).ndims for name in scans.list_scans()}
ORDERS = [(name, ndim) for ndim in (1, 2, 3) for name in scans.list_scans() if ndim in RANKS[name]]
SIDES = {1: st.integers(1, 150), 2: st.integers(1, 20), 3: st.integers(1, 6)}
# Per rank: a single cell, lines along each axis, sides that differ.
EDGES = {
    1: [(1,), (2,)],
    2: [(1, 1), (1, 6), (6, 1), (7, 12)],
    3: [(1, 1, 1), (1, 1, 4), (1, 4, 1), (4, 1, 1), (2, 3, 5)],
}


def check(scan: scans.ScanOrder, size: tuple[int, ...]) -> None:
    cells = math.prod(size)
    routes = scan.routes(size)
    assert routes.dtype == torch.int64
    assert routes.shape == (scan.num_routes, scan.length(size))
    assert routes.min() >= -1
    assert routes.max() < cells
    assert scan.padded or routes.min() >= 0
    visits = [route[route >= 0] for route in routes]
    together = torch.cat(visits).bincount(minlength=cells)
    if scan.total:
        assert all(path.bincount(minlength=cells).eq(1).all() for path in visits)
    else:
        assert together.eq(1).all()
    inverse = scan.inverse(size)
    assert inverse.shape == (scan.num_routes, cells)
    for route, steps in zip(routes.tolist(), inverse.tolist(), strict=True):
        assert steps == [route.index(cell) if cell in route else -1 for cell in range(cells)]
    assert torch.equal(scan.routes(size), routes)
    assert (scan.num_routes % scan.groups, scan.merge) == (0, "sum" if scan.groups == 1 else "concat")
    if not scan.segmented:
        assert scan.segments(size) == (scan.length(size),) * scan.num_routes
    for path in visits if scan.adjacency != "none" else ():
        steps = torch.stack(torch.unravel_index(path, size)).diff().abs()
        assert (steps.sum(0) if scan.adjacency == "faces" else steps.amax(0)).eq(1).all()


@pytest.mark.parametrize(("name", "ndim"), ORDERS)
@settings(max_examples=15)
@given(data=st.data())
def test_any_size(name: str, ndim: int, data: st.DataObject) -> None:
    check(scans.create_scan(name, ndim=ndim), data.draw(st.tuples(*[SIDES[ndim]] * ndim)))


@pytest.mark.parametrize(("name", "ndim"), ORDERS)
def test_edges(name: str, ndim: int) -> None:
    for size in EDGES[ndim]:
        check(scans.create_scan(name, ndim=ndim), size)


@pytest.mark.parametrize(("name", "ndim"), ORDERS)
def test_one_key_one_order(name: str, ndim: int) -> None:
    scan = scans.create_scan(name, ndim=ndim)
    for same in (
        scans.scan_from_key(scan.key),
        scans.create_scan(scan.name, **scan.options),
        scans.create_scan(scan),
        copy.deepcopy(scan),
        pickle.loads(pickle.dumps(scan)),
    ):
        assert (same, hash(same), same.key, same.ndim) == (scan, hash(scan), scan.key, ndim)
        assert torch.equal(same.routes(EDGES[ndim][-1]), scan.routes(EDGES[ndim][-1]))
    assert scan.name == name
    assert scan != scan.name
    for index in range(3):
        layer = scan.for_layer(index, 3)
        assert layer.ndim == ndim
        check(layer, EDGES[ndim][-1])


@pytest.mark.parametrize(("name", "ndim"), ORDERS)
def test_default_order_reads_every_rank_it_is_listed_for(name: str, ndim: int) -> None:
    size = EDGES[ndim][-1]
    assert torch.equal(scans.create_scan(name).routes(size), scans.create_scan(name, ndim=ndim).routes(size))


@pytest.mark.parametrize("name", scans.list_scans())
def test_refuses_other_sizes(name: str) -> None:
    scan = scans.create_scan(name)
    unread = next(rank for rank in (1, 3, 4) if rank not in RANKS[name])
    for size in ((3,) * unread, (), (0,) * scan.ndim, (*(4,) * (scan.ndim - 1), -1)):
        with pytest.raises(ValueError, match=name):
            scan.routes(size)
    with pytest.raises(TypeError, match="float"):
        scan.routes((2.5,) * scan.ndim)
    with pytest.raises(ValueError, match="ndim"):
        scans.create_scan(name, ndim=4)


def test_routes_are_the_callers_own() -> None:
    scan = scans.create_scan("cross")
    scan.routes((2, 2)).zero_()
    assert scan.routes((2, 2))[0].tolist() == [0, 1, 2, 3]


def test_random_depends_on_its_seed_alone() -> None:
    first = scans.create_scan("random", seed=1).routes((8, 8))
    torch.manual_seed(5)
    assert torch.equal(first, scans.create_scan("random", seed=1).routes((8, 8)))
    assert not torch.equal(first, scans.create_scan("random", seed=2).routes((8, 8)))
    assert len(first.unique(dim=0)) == 8
