"""The image mixer: what it computes, and what it refuses."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.tolerances import TOLERANCES
from visionssm.mixers import ImageScan
from visionssm.mixers.schedule import layer_scans
from visionssm.scans import create_scan, list_scans


def mixer(scan: str = "cross", *, ndim: int = 2, d_inner: int = 24, d_state: int = 2, **options: object) -> ImageScan:
    order = layer_scans(scan, 1, ndim=ndim)[0]
    return ImageScan(12, scan=order, d_inner=d_inner, d_state=d_state, dt_rank=3, **options)


def by_copies(m: ImageScan, x: Tensor) -> Tensor:
    """The published way: copy the map into K sequences, project each, scan each step by step, put back, add."""
    routes = m.paths.scan.routes(x.shape[1:-1])
    x_BLD = x.flatten(1, -2)
    total = torch.zeros_like(x_BLD)
    segments = m.paths.scan.segments(x.shape[1:-1])
    for k, route in enumerate(routes):
        padded = F.pad(x_BLD, (0, 0, 0, 1))  # position -1 is a zero token
        sequence = padded[:, route]
        dt_low, B, C = (sequence @ m.x_proj[k].T).split(m.dims, -1)
        dt = F.softplus(dt_low @ m.dt_proj[k].T + m.dt_bias[k])
        h = torch.zeros(x.shape[0], *m.A_log[k].shape, dtype=x.dtype)
        for t, position in enumerate(route.tolist()):
            if t % segments[k] == 0:
                h = torch.zeros_like(h)
            h = torch.exp(-dt[:, t, :, None] * m.A_log[k].exp()) * h
            h = h + (dt * sequence)[:, t, :, None] * B[:, t, None, :]
            if position >= 0:
                y = (h * C[:, t, None, :]).sum(-1) + m.D[k] * sequence[:, t]
                total = total.index_add(1, torch.tensor([position]), y[:, None])
    return total.view(x.shape)


TABLES = [name for name in list_scans(2) if not create_scan(name).content]


@pytest.mark.parametrize("scan", [name for name in TABLES if create_scan(name).groups == 1])
def test_any_order_scans_as_copies_would(scan: str) -> None:
    m = mixer(scan).double()
    x = torch.randn(2, 3, 5, 24, dtype=torch.float64)
    torch.testing.assert_close(m.scan(x), by_copies(m, x), **TOLERANCES[torch.float64])


@pytest.mark.parametrize("scan", ["cross", "raster", "hilbert", "tri_orientated"])
def test_volumes(scan: str) -> None:
    m = mixer(scan, ndim=3).double()
    x = torch.randn(1, 2, 3, 4, 24, dtype=torch.float64)
    torch.testing.assert_close(m.scan(x), by_copies(m, x), **TOLERANCES[torch.float64])
    assert m(torch.randn(1, 2, 3, 4, 12, dtype=torch.float64)).shape == (1, 2, 3, 4, 12)


@pytest.mark.parametrize("scan", [name for name in TABLES if create_scan(name).groups > 1])
def test_channel_groups_do_not_mix(scan: str) -> None:
    m = mixer(scan)
    x = torch.randn(1, 4, 4, 24, requires_grad=True)
    share = 24 // m.groups
    m.scan(x)[..., :share].sum().backward()
    assert x.grad[..., :share].any()
    assert not x.grad[..., share:].any()


def test_the_gate_multiplies_the_normed_output() -> None:
    m = mixer()
    x = torch.randn(1, 3, 4, 12)
    inner, z = m.in_proj(x).chunk(2, -1)
    inner = F.silu(m.conv(inner.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
    torch.testing.assert_close(m(x), m.out_proj(m.out_norm(m.scan(inner)) * F.silu(z)))


def test_schedules_and_lists_of_orders() -> None:
    orders = layer_scans("nd_2d", 4)
    assert len({order.key for order in orders}) == 4
    assert [o.name for o in layer_scans(["raster", {"name": "window", "directions": ["w2"]}], 2)] == [
        "raster",
        "window",
    ]
    with pytest.raises(ValueError, match="lists 2 orders, but the model has 3 layers"):
        layer_scans(["raster", "cross"], 3)
    with pytest.raises(ValueError, match="need a 'name'"):
        layer_scans({"directions": ["w2"]}, 1)
    with pytest.raises(ValueError, match="rank"):
        layer_scans("cross_rotate", 1, ndim=3)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="splits the channels into 4 groups"):
        mixer("group", d_inner=22)
    with pytest.raises(ValueError, match="unknown merge"):
        mixer(merge="summ")
