"""Orders that are read off the image, and merges by name: what they compute, that they learn, and what they refuse."""

import pytest
import torch
from torch import Tensor, nn

import visionssm
from tests.tolerances import TOLERANCES
from visionssm.mixers import ImageScan
from visionssm.mixers.content import ClusterRoutes
from visionssm.mixers.merges import MERGES, RouteAttention, create_merge
from visionssm.scans import create_scan, list_scans
from visionssm_kernels import routed_scan

CONTENT = [name for name in list_scans() if create_scan(name).content]


def mixer(scan: str, ndim: int = 2, **options: object) -> ImageScan:
    order = create_scan(scan, ndim=ndim) if ndim == 3 else create_scan(scan)
    return ImageScan(12, scan=order, d_inner=24, d_state=3, dt_rank=2, **options)


def test_there_are_three() -> None:
    assert CONTENT == ["adaptive", "cluster", "semantic"]
    assert set(CONTENT) <= set(list_scans(2)) & set(list_scans(3))


@pytest.mark.parametrize("scan", CONTENT)
@pytest.mark.parametrize("ndim", [2, 3])
def test_every_image_has_its_own_order_and_every_parameter_learns(scan: str, ndim: int) -> None:
    m = mixer(scan, ndim).train()
    x = torch.randn(2, *(3, 4, 5)[-ndim:], 12)
    m(x).square().sum().backward()
    assert not [name for name, p in m.named_parameters() if p.grad is None or not p.grad.any()]
    m.eval()
    _, order, _ = m.paths.content(torch.randn(2, 20, 24))
    assert order.shape == (2, m.x_proj.shape[0], 20)
    assert not torch.equal(order[0], order[1])
    assert order.sort(-1).values.eq(torch.arange(20)).all()
    with torch.no_grad():
        torch.testing.assert_close(
            m(x)[:1], m(x[:1])
        )  # an image's order does not depend on its neighbours in the batch
        assert m(x[:0]).shape == (0, *x.shape[1:])


@pytest.mark.parametrize("scan", CONTENT)
def test_the_scan_visits_positions_in_the_sorted_order(scan: str) -> None:
    """As if the tokens were sorted by hand, scanned in raster order, and put back."""
    m = mixer(scan).double().eval()
    x = torch.randn(2, 3, 4, 24, dtype=torch.float64)
    u, order, prompt = m.paths.content(x.flatten(1, 2))
    total = torch.zeros(2, 12, 24, dtype=torch.float64)
    for k in range(m.x_proj.shape[0]):
        u_BLD = u[:, :, min(k, u.shape[2] - 1)]
        dt, B, C = (u_BLD @ m.x_proj[k].T).split(m.dims, -1)
        C = C if prompt is None else C + prompt
        steps = order[:, k].long().unsqueeze(-1)
        by_step = [t.gather(1, steps.expand_as(t)).unsqueeze(2) for t in (u_BLD, dt @ m.dt_proj[k].T, B, C)]
        A = -m.A_log[k : k + 1].exp()
        y = routed_scan(*by_step[:2], A, *by_step[2:], m.D[k : k + 1], m.dt_bias[k : k + 1], backend="reference")
        total = total.scatter_add(1, steps.expand_as(y), y)
    torch.testing.assert_close(m.scan(x), total.view(x.shape), **TOLERANCES[torch.float64])


def test_centres_find_the_clusters_and_rest_in_evaluation() -> None:
    routes = ClusterRoutes(8, 2, create_scan("cluster", clusters=3, decay=0.0)).train()
    axes = torch.eye(8)[:3]
    kinds = torch.arange(60) % 3
    x = (axes[kinds] + 0.01 * torch.randn(60, 8)).unsqueeze(0)
    _, order, _ = routes(x)
    sorted_kinds = kinds[order[0, 0].long()]
    assert sorted_kinds.diff().ne(0).sum() == 2  # each kind lies together
    before = routes.centres.clone()
    routes.eval()(torch.randn(1, 60, 8))
    assert torch.equal(routes.centres, before)


@pytest.mark.parametrize("scan", CONTENT)
def test_a_backbone_trains_with_it(scan: str) -> None:
    model = visionssm.create_model("vmamba_nano", scan=scan, depths=(1, 1), num_classes=3).train()
    model(torch.randn(2, 3, 32, 40)).square().mean().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    assert torch.jit.script(model.eval())(torch.randn(1, 3, 32, 32)).shape == (1, 3)


def by_name(merge: nn.Module, y: Tensor) -> Tensor:
    """The same merges, one position at a time."""
    name = type(merge).__name__
    out = torch.zeros_like(y[:, :, 0])
    for b in range(y.shape[0]):
        gate = torch.ones_like(y[b, 0])
        if name == "GatedMerge":
            mean = torch.stack([merge.gate.norm(y[b, at]) for at in range(y.shape[1])]).mean(0)
            gate = torch.sigmoid(merge.gate.select(merge.gate.act(merge.gate.reduce(mean))))
        if name == "ShuffleMerge":
            mean = y[b].mean(0)
            for d in range(y.shape[-1]):
                gate[:, d] = torch.sigmoid(merge.weight[d] @ mean[:, d] + merge.bias[d])
        for at in range(y.shape[1]):
            routes = y[b, at]
            out[b, at] = (gate * routes).sum(0)
            if name == "MeanMerge":
                out[b, at] = routes.mean(0)
            if name == "RouteAttention":
                spread = routes.std(0) / ((routes - routes.amin(0)).mean(0) + 1e-5)
                out[b, at] = routes.sum(0) * spread.relu()
            if name == "ConcatMerge":
                out[b, at] = merge.proj.weight @ routes.flatten()
    return out


@pytest.mark.parametrize("name", MERGES)
def test_merges_by_hand_with_gradients(name: str) -> None:
    merge = create_merge(name, 8, 3).double()
    for parameter in merge.parameters():
        nn.init.normal_(parameter)
    y = torch.randn(2, 5, 3, 8, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(merge(y), by_name(merge, y), **TOLERANCES[torch.float64])
    assert torch.autograd.gradcheck(lambda y, *_: merge(y), (y, *merge.parameters()))


@pytest.mark.parametrize("name", MERGES)
@pytest.mark.parametrize("scan", ["cross", "multi_head"])
def test_merges_in_the_image_mixer(name: str, scan: str) -> None:
    order = create_scan(scan)
    m = ImageScan(12, scan=order, d_inner=32, d_state=2, dt_rank=2, merge=name)
    x = torch.randn(2, 4, 5, 12, requires_grad=True)
    m(x).square().sum().backward()
    assert x.grad.isfinite().all()
    assert not [name for name, p in m.named_parameters() if p.grad is None or not p.grad.any()]
    with torch.no_grad():
        added = ImageScan(12, scan=order, d_inner=32, d_state=2, dt_rank=2)
        added.load_state_dict(m.state_dict(), strict=False)
        same = torch.allclose(added.scan(torch.ones(1, 4, 5, 32)), m.scan(torch.ones(1, 4, 5, 32)), atol=1e-5)
    assert same == (name in ("sum", "concat"))  # a concatenation begins as the sum


def test_routes_that_agree_have_a_gradient() -> None:
    y = torch.ones(1, 2, 4, 3, requires_grad=True)
    RouteAttention()(y).sum().backward()
    assert y.grad.isfinite().all()


def test_a_backbone_takes_a_merge() -> None:
    model = visionssm.create_model("vmamba_nano", scan="multi_head", merge="route", depths=(1, 1), num_classes=3)
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 3)
    with pytest.raises(ValueError, match=r"unknown merge 'rout'.*'route'"):
        visionssm.create_model("vmamba_nano", merge="rout")
    with pytest.raises(ValueError, match="at least 2"):
        visionssm.create_model("vmamba_nano", scan="raster", merge="route")
