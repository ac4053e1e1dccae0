"""Every mixer takes every kind of order: tables read off each image, and pieces that each start anew."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.tolerances import TOLERANCES
from visionssm.mixers import (
    AttentiveScan,
    DirectionScan,
    GroupScan,
    ImageScan,
    MultiScaleScan,
    SequenceScan,
    StateFusion,
)
from visionssm.mixers.merges import ShuffleMerge
from visionssm.mixers.paths import Paths
from visionssm.mixers.schedule import layer_scans
from visionssm.mixers.wavefront import WavefrontScan
from visionssm.scans import ScanOrder, create_scan, grid, list_scans, register_scan, registry, scan_from_key, with_token

H, W, C = 4, 6, 16
SHAPE: dict[str, Any] = {"d_inner": 32, "dt_rank": 2}


def _sequence(order: ScanOrder, merge: nn.Module | None = None) -> nn.Module:
    mixer = SequenceScan(C, scan=order, d_state=2, merge=merge, **SHAPE)
    return Flat(mixer)


class Flat(nn.Module):
    """A sequence mixer, of an image."""

    def __init__(self, mixer: SequenceScan) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, x: Tensor) -> Tensor:
        return self.mixer(x.flatten(1, 2), x).view_as(x)


class WithClassToken(nn.Module):
    """The same, with a class token in the middle, whose output is added to that of every patch."""

    def __init__(self, mixer: SequenceScan) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, x: Tensor) -> Tensor:
        patches = x.flatten(1, 2)
        middle = patches.shape[1] // 2
        token = patches.mean(1, keepdim=True)
        y = self.mixer(torch.cat([patches[:, :middle], token, patches[:, middle:]], 1), x)
        return (torch.cat([y[:, :middle], y[:, middle + 1 :]], 1) + y[:, middle : middle + 1]).view_as(x)


MIXERS: dict[str, Callable[[ScanOrder], nn.Module]] = {
    "image": lambda order: ImageScan(C, scan=order, d_state=2, **SHAPE),
    "image, merge": lambda order: ImageScan(C, scan=order, d_state=2, merge="gated", **SHAPE),
    "sequence": _sequence,
    "sequence, token": lambda order: WithClassToken(
        SequenceScan(C, scan=with_token(order), d_state=2, **SHAPE),
    ),
    "sequence, merge": lambda order: _sequence(order, ShuffleMerge(32, order.num_routes)),
    "direction": lambda order: DirectionScan(C, scan=order, d_state=2, **SHAPE),
    "direction, exact": lambda order: DirectionScan(C, scan=order, d_state=2, align="exact", **SHAPE),
    "group": lambda order: GroupScan(C, scan=order, groups=4, d_state=2, dt_rank=2),
    "multi_scale": lambda order: MultiScaleScan(
        C, scan=order, d_state=2, gate=True, norm="sum", upsample="nearest", **SHAPE
    ),
    "state_fusion": lambda order: StateFusion(C, scan=order, **SHAPE),
    "attentive": lambda order: AttentiveScan(C, scan=order, d_state=2, categories=5, rank=3, **SHAPE),
    "wavefront": lambda order: WavefrontScan(C, scan=order, d_state=2, dt_rank=2),
}


def planar(name: str) -> ScanOrder:
    return layer_scans([name], 1)[0]


CONTENT = [name for name in list_scans() if create_scan(name).content]
SEGMENTED = [name for name in list_scans(2) if create_scan(name).segmented]
GROUPED = [name for name in list_scans(2) if create_scan(name).groups > 1]


@pytest.fixture
def own_orders() -> Iterator[None]:
    """Two orders of the user's own: routes written out, for one size each; and rows that each start anew."""

    class WrittenOut(ScanOrder):
        table: tuple[tuple[int, ...], ...] = ()

        @property
        def num_routes(self) -> int:
            return len(self.table)

        def paths(self, size: tuple[int, ...]) -> list[Tensor]:
            return [torch.tensor(path) for path in self.table]

    class Rows(ScanOrder):
        num_routes = 1
        segmented = True

        def paths(self, size: tuple[int, ...]) -> list[Tensor]:
            return [grid(size).flatten()]

        def segments(self, size):
            return (size[-1],)

    before = dict(registry._SCANS)
    register_scan("written_out")(WrittenOut)
    register_scan("rows")(Rows)
    yield
    registry._SCANS.clear()
    registry._SCANS.update(before)


def inner_scan(paths: Paths) -> ScanOrder:
    """The order that a user named, below those that mixers make of it."""
    scan = paths.scan
    while scan.wraps:
        scan = scan_from_key(scan.scan)  # pyright: ignore[reportAttributeAccessIssue]
    return scan


def neutral(mixer: nn.Module) -> None:
    """Orders read off the image that differ among images, without what they add to the scan's input and readout."""
    for name, parameter in mixer.named_parameters():
        if ".content." in name and ".router." in name:
            nn.init.normal_(parameter)
        if ".content." in name and (name.endswith((".prompt", ".direction")) or ".embedding." in name):
            nn.init.zeros_(parameter)


@pytest.mark.parametrize("scan", CONTENT)
@pytest.mark.parametrize("kind", [kind for kind in MIXERS if kind != "multi_scale"])
def test_an_image_is_read_as_if_its_own_order_had_been_written_out(own_orders: None, kind: str, scan: str) -> None:
    mixer = MIXERS[kind](create_scan(scan)).double().eval()
    neutral(mixer)
    (paths,) = (module for module in mixer.modules() if isinstance(module, Paths))
    tables: list[Tensor] = []
    innermost = [
        m for m in paths.modules() if type(m).__name__ in ("SemanticRoutes", "ClusterRoutes", "AdaptiveRoutes")
    ]
    innermost[0].register_forward_hook(lambda module, args, out: tables.append(out[1]))
    x = torch.randn(3, H, W, C, dtype=torch.float64)
    with torch.no_grad():
        got = mixer(x)
    (table_BKL,) = tables
    assert len({tuple(image[0].tolist()) for image in table_BKL}) == 3
    for image in range(3):
        order = create_scan("written_out", table=table_BKL[image].tolist())
        same = MIXERS[kind](order).double().eval()
        missing, unexpected = same.load_state_dict(mixer.state_dict(), strict=False)
        assert not missing
        assert all(".content." in name for name in unexpected)
        with torch.no_grad():
            torch.testing.assert_close(got[image], same(x[image : image + 1])[0], **TOLERANCES[torch.float64])


@pytest.mark.parametrize("scan", [*CONTENT, *SEGMENTED, *GROUPED])
@pytest.mark.parametrize("kind", MIXERS)
def test_every_mixer_trains_and_scripts_with_it(kind: str, scan: str) -> None:
    if scan in GROUPED and kind == "sequence, merge":
        with pytest.raises(ValueError, match="merge must be None"):
            MIXERS[kind](planar(scan))
        return
    mixer = MIXERS[kind](planar(scan)).train()
    (paths, *_) = (module for module in mixer.modules() if isinstance(module, Paths))
    assert inner_scan(paths) == planar(scan)
    x = torch.randn(2, H, W, C)
    mixer(x).square().sum().backward()
    assert not [name for name, p in mixer.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not [name for name, p in mixer.named_parameters() if ".content." in name and not p.grad.any()]
    mixer.eval()
    with torch.no_grad():
        scripted = torch.jit.script(mixer)
        for size in ((H, W), (5, 3)):
            x = torch.randn(2, *size, C)
            torch.testing.assert_close(scripted(x), mixer(x), **TOLERANCES[torch.float32])
            torch.testing.assert_close(mixer(x)[1:], mixer(x[1:]), **TOLERANCES[torch.float32])


@pytest.mark.parametrize("kind", ["image", "sequence", "direction", "state_fusion", "wavefront"])
def test_pieces_are_images_of_their_own(own_orders: None, kind: str) -> None:
    """Rows that each start anew give what as many images of one row give, wherever nothing else looks across rows."""
    rows, raster = (MIXERS[kind](create_scan(name)).double().eval() for name in ("rows", "raster"))
    raster.load_state_dict(rows.state_dict())
    parts = [rows.scan, raster.scan] if hasattr(rows, "scan") and kind != "wavefront" else [rows, raster]
    width = C if parts[0] is rows else 32
    if kind == "state_fusion":  # its fusion does look across rows; as good as none with these weights
        for mixer in (rows, raster):
            nn.init.zeros_(mixer.fusion.kernels)
            with torch.no_grad():
                mixer.fusion.kernels.chunk(3)[0][:, 0, 1, 1] = 1.0
                mixer.fusion.alpha.fill_(1.0)
    x = torch.randn(2, H, W, width, dtype=torch.float64)
    with torch.no_grad():
        got, wanted = parts[0](x), parts[1](x.view(2 * H, 1, W, width)).view(x.shape)
        torch.testing.assert_close(got, wanted, **TOLERANCES[torch.float64])
        assert not torch.allclose(got, parts[1](x))


def test_a_class_token_joins_one_piece(own_orders: None) -> None:
    order = with_token(create_scan("rows"))
    assert order.segments((3, 2)) == (3,)
    assert order.routes((3, 2)).tolist() == [[0, 1, -1, 2, 3, 4, 5, 6, -1]]
    mixer = SequenceScan(C, scan=order, d_state=2, **SHAPE).double().eval()
    alone = SequenceScan(C, scan=None, d_state=2, **SHAPE).double().eval()
    alone.load_state_dict(mixer.state_dict())
    x = torch.randn(2, 7, C, dtype=torch.float64)
    with torch.no_grad():
        wanted = torch.cat([alone(piece, None) for piece in x.split([2, 3, 2], 1)], 1)
        torch.testing.assert_close(mixer(x, torch.empty(2, 3, 2, C)), wanted, **TOLERANCES[torch.float64])
