"""Names, options, and the messages when they are wrong."""

import pytest
import torch
from torch import Tensor

from visionssm import scans
from visionssm.scans import registry


@pytest.fixture
def knight():
    """An order of the user's own, with an option."""

    class Knight(scans.ScanOrder):
        jump: int = 2

        num_routes = 1

        def check(self) -> None:
            if self.jump < 1:
                raise ValueError(f"jump={self.jump} must be positive")

        def paths(self, size: tuple[int, ...]) -> list[Tensor]:
            cells = scans.grid(size).flatten()
            return [torch.cat([cells[start :: self.jump] for start in range(self.jump)])]

    yield scans.register_scan("knight")(Knight)
    del registry._SCANS["knight"]


def test_an_order_of_ones_own(knight: type) -> None:
    scan = scans.create_scan("knight", jump=3)
    assert isinstance(scan, knight)
    assert scan.routes((2, 4)).tolist() == [[0, 3, 6, 1, 4, 7, 2, 5]]
    assert scans.scan_from_key(scan.key) == scan
    assert "knight" in scans.list_scans(ndim=2)
    assert "knight" not in scans.list_scans(ndim=3)
    assert repr(scan) == "create_scan('knight', jump=3)"
    assert scan != scans.create_scan("knight")
    with pytest.raises(ValueError, match="jump=0"):
        scans.create_scan("knight", jump=0)


def test_orders_are_frozen(knight: type) -> None:
    with pytest.raises(AttributeError):
        scans.create_scan("knight").jump = 3


def test_a_name_is_taken_once(knight: type) -> None:
    with pytest.raises(ValueError, match="replace=True"):
        scans.register_scan("knight")(knight)
    assert scans.register_scan("knight", replace=True)(knight) is knight
    with pytest.raises(ValueError, match="must not contain"):
        scans.register_scan("a|b")
    with pytest.raises(TypeError, match="subclass of ScanOrder"):
        scans.register_scan("new")(int)
    assert "new" not in scans.list_scans()


def test_list_scans() -> None:
    names = scans.list_scans()
    assert names == sorted(names)
    for ndim in (1, 2, 3):
        listed = scans.list_scans(ndim)
        assert set(listed) <= set(names)
        assert all(ndim in scans.create_scan(name).ndims for name in listed)
        assert not any(scans.create_scan(name).wraps for name in listed)
    assert {"cross", "hilbert", "window"} <= set(scans.list_scans(2)) & set(scans.list_scans(3))
    assert "select" not in names


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("crss", {}, "did you mean 'cross'"),
        ("crss", {}, "accepted: .*bidirectional.*window"),
        ("cross", {"scan": 1}, "no option 'scan'; did you mean 'scans'"),
        ("cross", {"scans": 7}, "scans=7 is not one of"),
        ("cross", {"scans": "0"}, "kind of its default"),
        ("cross", {"scans": 3, "ndim": 3}, "ndim must be 2"),
        ("spiral", {"ndim": 3}, "ndim=3"),
        ("window", {"directions": []}, "must not be empty"),
        ("window", {"directions": "h"}, "kind of its default"),
        ("window", {"directions": ["h", 3]}, "kind of its default"),
        ("window", {"directions": ["w0"]}, "'w0' is not"),
        ("window_column_first", {"directions": ["x"]}, "'x' is not"),
        ("nested_s", {"scan_len": 4, "shift": 4}, "shift < scan_len"),
        ("nested_s", {"scan_len": 0}, "scan_len >= 1"),
        ("skip", {"step": 0}, "positive"),
        ("atrous_window", {"rate": 0}, "rate=0 must be positive"),
        ("skip", {"step": True}, "kind of its default"),
        ("sequence_reorder", {"rate": 0}, "positive"),
        ("local_bidirectional", {"segment": -1}, "segment=-1"),
        ("zigzag", {"count": 9}, "1..8"),
        ("random", {"count": 0}, "positive"),
        ("gilbert", {"axis": ["y"]}, "x_is_column"),
        ("mambaad_scan", {"num_direction": 3}, "2, 4, 8"),
        ("multi_head", {"heads": ["Q"]}, "'C', 'X', 'S', 'Z'"),
        ("multi_scale", {"low": 4}, "1, 2, 3"),
        ("multi_scale", {"stride": 0}, "positive"),
        ("tri_orientated", {"nslices": -1}, "negative"),
        ("nd_3d_factorised", {"factorization": "w"}, "hw_t"),
        ("axes", {"orders": ["hh"]}, "'hh'"),
        ("axes", {"orders": ["dhw"]}, "ndim=2"),
        ("select", {"scan": "cross", "which": [4]}, "0..3"),
        ("select", {"scan": "cross", "which": []}, "0..3"),
        ("with_token", {}, "needs the option 'scan'"),
    ],
)
def test_refusals(name: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scans.create_scan(name, **options)


def test_an_existing_order_takes_no_options() -> None:
    with pytest.raises(ValueError, match="exists already"):
        scans.create_scan(scans.create_scan("cross"), scans=1)


def test_slices_must_divide_the_volume() -> None:
    with pytest.raises(ValueError, match="nslices=7 does not divide the 30"):
        scans.create_scan("tri_orientated", nslices=7).routes((2, 3, 5))


@pytest.mark.parametrize(("index", "depth"), [(-1, 3), (3, 3), (0, 0)])
def test_layers_are_counted_from_zero(index: int, depth: int) -> None:
    with pytest.raises(ValueError, match="layer index"):
        scans.create_scan("zigzag").for_layer(index, depth)


def test_options_that_are_no_plain_values(knight: type) -> None:
    class Odd(scans.ScanOrder):
        thing: object = None
        num_routes = 1

        def paths(self, size: tuple[int, ...]) -> list[Tensor]:
            return [scans.grid(size).flatten()]

    with pytest.raises(TypeError, match="not JSON serializable"):
        Odd(thing=object())


@pytest.mark.parametrize("scan", ["window", "slices", "skip"])
def test_select_takes_over_what_the_order_promises(scan: str) -> None:
    source = scans.create_scan(scan)
    chosen = scans.create_scan("select", scan=source.key, which=[1, 0])
    assert (chosen.padded, chosen.total, chosen.segmented) == (source.padded, source.total, source.segmented)
    assert torch.equal(chosen.routes((5, 8)), source.routes((5, 8))[[1, 0]])
    assert chosen.segments((5, 8)) == (source.segments((5, 8))[1], source.segments((5, 8))[0])
    assert torch.equal(chosen.inverse((5, 8)), source.inverse((5, 8))[[1, 0]])
    assert scans.scan_from_key(chosen.key) == chosen


def test_select_in_three_dimensions() -> None:
    chosen = scans.create_scan("select", scan="cross", which=[5], ndim=3)
    assert torch.equal(chosen.routes((2, 3, 4)), scans.create_scan("cross", ndim=3).routes((2, 3, 4))[[5]])
