"""Every order equals the table read out of the published code, at every size; see tests/parity/scans/*.json."""

import json
from pathlib import Path

import pytest
import torch

from visionssm import scans

FOLDER = Path(__file__).parents[1] / "parity" / "scans"
FILES = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
DATA_DEPENDENT = {"adaptive", "points", "semantic", "shuffle"}  # tests/scans/test_dynamic.py, test_points.py

GROUPS = {"group": 4, "multi_head": 4, "slices": 2}  # orders that split the channels


def cases(field: str) -> list:
    """(name, options, size, case) of all cases that have the field."""
    found = []
    for name, file in FILES.items():
        for case in file["cases"]:
            size, options = tuple(case["size"]) if "size" in case else (), case.get("options", {})
            if field in case:
                found.append(pytest.param(name, options, size, case, id=f"{name}-{size}-{options}"))
    return found


def padded(routes: list[list[int]]) -> list[list[int]]:
    longest = max(map(len, routes))
    return [route + [-1] * (longest - len(route)) for route in routes]


@pytest.mark.parametrize("name", sorted(FILES))
def test_every_table_has_an_order(name: str) -> None:
    assert name in scans.list_scans() or name in {"points", "shuffle"}  # of point sets, of chance: functions


@pytest.mark.parametrize(
    ("name", "options", "size", "case"), [c for c in cases("routes") if c.values[0] not in DATA_DEPENDENT]
)
def test_routes(name: str, options: dict, size: tuple[int, ...], case: dict) -> None:
    scan = scans.create_scan(name, **options)
    assert scan.routes(size).tolist() == padded(case["routes"])
    assert scan.groups == GROUPS.get(name, 1)


@pytest.mark.parametrize(("name", "options", "size", "case"), cases("directions"))
def test_directions(name: str, options: dict, size: tuple[int, ...], case: dict) -> None:
    assert scans.create_scan(name, **options).directions(size).tolist() == case["directions"]


@pytest.mark.parametrize(("name", "options", "size", "case"), cases("curves"))
def test_curves(name: str, options: dict, size: tuple[int, ...], case: dict) -> None:
    assert scans.create_scan(name, curve=True, **options).routes(size).tolist() == case["curves"]


@pytest.mark.parametrize(("name", "options", "size", "case"), cases("low_routes"))
def test_low_routes(name: str, options: dict, size: tuple[int, ...], case: dict) -> None:
    scan = scans.create_scan(name, **options)
    assert list(scan.low_size(size)) == case["low_size"]
    assert scan.low_routes(size).tolist() == case["low_routes"]
    for low in (1, 2):
        kept = {1: [2], 2: [0, 2]}[low]
        fewer = scans.create_scan(name, low=low).low_routes(size).tolist()
        assert fewer == [case["low_routes"][route] for route in kept]


@pytest.mark.parametrize(("name", "options", "size", "case"), cases("segment_lengths"))
def test_segments(name: str, options: dict, size: tuple[int, ...], case: dict) -> None:
    scan = scans.create_scan(name, **options)
    assert scan.segmented
    assert list(scan.segments(size)) == case["segment_lengths"]


@pytest.mark.parametrize("factorization", ["hw_t", "h_w_t"])
@pytest.mark.parametrize("case", FILES["nd_3d_factorised"]["cases"], ids=lambda case: str(case["size"]))
def test_factorised(factorization: str, case: dict) -> None:
    scan = scans.create_scan("nd_3d_factorised", factorization=factorization)
    assert scan.routes(case["size"]).tolist() == case[factorization]["routes"]
    assert list(scan.segments(case["size"])) == case[factorization]["segment_lengths"]


@pytest.mark.parametrize("case", FILES["window"]["cases"], ids=lambda case: str(case["size"]))
def test_published_unscan(case: dict) -> None:
    scan = scans.create_scan("window", directions=FILES["window"]["options"]["directions"])
    table = dict(zip(scan.directions, scan.published_unscan(case["size"]).tolist(), strict=True))
    cells = list(range(case["size"][0] * case["size"][1]))
    for direction in scan.directions:
        assert table[direction] == case.get("published_wrong_inverse", {}).get(direction, cells)


@pytest.mark.parametrize("scans_option", [0, 1, 2, 3])
def test_cross_kinds_are_the_named_orders(scans_option: int) -> None:
    name = ("cross", "cross_unidirectional", "cross_bidirectional", "cross_rotate")[scans_option]
    assert FILES[name]["options"]["scans"] == scans_option
    routes = scans.create_scan("cross", scans=scans_option).routes((5, 8))
    assert torch.equal(routes, scans.create_scan(name).routes((5, 8)))


@pytest.mark.parametrize("heads", [("C", "X", "S"), ("Z", "C")])
def test_heads_are_chosen(heads: tuple[str, ...]) -> None:
    case = FILES["multi_head"]["cases"][2]
    wanted = [route for head in heads for route in case["routes"]["CXSZ".index(head) * 4 :][:4]]
    scan = scans.create_scan("multi_head", heads=heads)
    assert scan.routes(case["size"]).tolist() == wanted
    assert (scan.groups, scan.merge) == (len(heads), "concat")


@pytest.mark.parametrize("num_direction", [2, 4])
@pytest.mark.parametrize("base", ["hilbert", "scan", "sweep", "zigzag", "zorder"])
def test_fewer_directions(base: str, num_direction: int) -> None:
    case = FILES[f"mambaad_{base}"]["cases"][-1]
    half = num_direction // 2
    scan = scans.create_scan(f"mambaad_{base}", num_direction=num_direction)
    assert scan.routes(case["size"]).tolist() == case["routes"][:half] + case["routes"][4 : 4 + half]


@pytest.mark.parametrize("name", ["zigzag", "zigzag_hilbert", "nd_2d", "nd_3d", "nd_3d_factorised", "random", "axes"])
def test_one_route_per_layer(name: str) -> None:
    scan = scans.create_scan(name)
    size = (5, 5) if scan.ndim == 2 else (2, 3, 5)
    routes = scan.routes(size)
    for index in range(scan.num_routes + 2):
        layer = scan.for_layer(index, scan.num_routes + 2)
        assert layer.num_routes == 1
        assert torch.equal(layer.routes(size), routes[[index % scan.num_routes]])
        assert layer.segments(size) == (scan.segments(size)[index % scan.num_routes],)
        assert layer.for_layer(1, 2) == layer  # a route is chosen once


@pytest.mark.parametrize("name", ["zigzag", "zigzag_hilbert"])
def test_first_routes_only(name: str) -> None:
    case = FILES[name]["cases"][1]
    scan = scans.create_scan(name, count=3)
    assert scan.routes(case["size"]).tolist() == case["routes"][:3]
    assert scan.for_layer(4, 12).routes(case["size"]).tolist() == [case["routes"][1]]


def test_stripes_shift_in_odd_layers() -> None:
    scan = scans.create_scan("nested_s", scan_len=8)
    assert [scan.for_layer(index, 4).shift for index in range(4)] == [0, 4, 0, 4]
    assert scan.for_layer(0, 4) == scan
