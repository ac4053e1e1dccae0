"""The state-fusion mixer against obvious loops: both forms of the fusion, scan, values and gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.tolerances import TOLERANCES
from visionssm.mixers import StateFusion
from visionssm.mixers.state_fusion import FuseStates
from visionssm.scans import create_scan


def randomized(module: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for param in module.parameters():
            param.copy_(torch.randn_like(param) / max(1, param.shape[-1]) ** 0.5)
    return module.double()


def slow_fusion(fusion: FuseStates, h_BHWD: Tensor) -> Tensor:
    """Every tap of every kernel; positions outside are those at the border."""
    height, width = h_BHWD.shape[1:3]
    fused = torch.zeros_like(h_BHWD)
    for i, dilation in enumerate((1, 3, 5)):
        for row in range(3):
            for column in range(3):
                y = (torch.arange(height) + (row - 1) * dilation).clamp(0, height - 1)
                x = (torch.arange(width) + (column - 1) * dilation).clamp(0, width - 1)
                fused = fused + fusion.scaled_kernels()[i, :, row, column] * h_BHWD[:, y][:, :, x]
    return fused


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (7, 4), (12, 13)])
def test_both_forms_of_the_fusion(size: tuple[int, int]) -> None:
    fusion = randomized(FuseStates(3))
    h = torch.randn(2, *size, 3, dtype=torch.float64)
    wanted = slow_fusion(fusion, h)
    torch.testing.assert_close(fusion(h), wanted, **TOLERANCES[torch.float64])
    with torch.no_grad():
        torch.testing.assert_close(fusion(h), wanted, **TOLERANCES[torch.float64])


def test_taps_of_the_merged_kernel() -> None:
    taps = (FuseStates(1).merged_kernel()[0, 0] != 0).nonzero().tolist()
    offsets = {tuple(5 + d * s for s in (r, c)) for d in (1, 3, 5) for r in (-1, 0, 1) for c in (-1, 0, 1)}
    assert {tuple(tap) for tap in taps} == offsets
    assert FuseStates(1).merged_kernel()[0, 0, 5, 5] == 3


def test_evaluation_follows_every_change_of_the_weights() -> None:
    fusion, other = FuseStates(4), randomized(FuseStates(4)).float()
    h = torch.randn(1, 6, 6, 4)

    def evaluate() -> tuple[Tensor, Tensor]:
        fusion.eval()
        with torch.no_grad():
            return fusion(h), slow_fusion(fusion, h)

    first = evaluate()[0]
    fusion.load_state_dict(other.state_dict())
    after_load = evaluate()
    torch.testing.assert_close(*after_load, **TOLERANCES[torch.float32])
    assert not torch.allclose(first, after_load[0], atol=1e-2)
    fusion.train()(h).square().mean().backward()
    torch.optim.SGD(fusion.parameters(), lr=0.1).step()
    after_step = evaluate()
    torch.testing.assert_close(*after_step, **TOLERANCES[torch.float32])
    assert not torch.allclose(after_load[0], after_step[0], atol=1e-3)


def slow_scan(mixer: StateFusion, x_BHWD: Tensor, order_KT: Tensor) -> Tensor:
    x_BLD = x_BHWD.flatten(1, 2)
    dt_low, B_BL1, C_BL1 = (x_BLD @ mixer.x_proj.T).split(mixer.dims, -1)
    dt_BLD = F.softplus(dt_low @ mixer.dt_proj.T + mixer.dt_bias)
    states_BLD = torch.zeros_like(x_BLD)
    for route in order_KT.tolist():
        h_BD = torch.zeros_like(x_BLD[:, 0])
        for p in route:
            h_BD = torch.exp(-dt_BLD[:, p] * mixer.A_log.exp()[:, 0]) * h_BD + dt_BLD[:, p] * B_BL1[:, p] * x_BLD[:, p]
            states_BLD = states_BLD.index_add(1, torch.tensor([p]), h_BD[:, None])
    fused_BLD = slow_fusion(mixer.fusion, states_BLD.view_as(x_BHWD)).flatten(1, 2)
    return (fused_BLD * C_BL1 + x_BLD * mixer.D).view_as(x_BHWD)


@pytest.mark.parametrize("name", ["raster", "cross", "hilbert"])
def test_scan_and_gradients_are_those_of_the_loop(name: str) -> None:
    scan = create_scan(name)
    mixer = randomized(StateFusion(4, scan=scan, d_inner=6, dt_rank=2))
    with torch.no_grad():
        mixer.A_log.zero_()  # exact in float32, which the mixer takes exp in
    x = torch.randn(2, 4, 3, 6, dtype=torch.float64, requires_grad=True)
    probe = torch.randn_like(x)
    parts = (mixer.x_proj, mixer.dt_proj, mixer.dt_bias, mixer.D, mixer.fusion.kernels, mixer.fusion.alpha)
    got, wanted = mixer.scan(x), slow_scan(mixer, x, scan.routes((4, 3)))
    torch.testing.assert_close(got, wanted, **TOLERANCES[torch.float64])
    got_grads = torch.autograd.grad((got * probe).sum(), (x, *parts))
    wanted_grads = torch.autograd.grad((wanted * probe).sum(), (x, *parts))
    for got_grad, wanted_grad in zip(got_grads, wanted_grads, strict=True):
        torch.testing.assert_close(got_grad, wanted_grad, **TOLERANCES[torch.float64])
    with torch.no_grad():
        torch.testing.assert_close(mixer.scan(x), wanted, **TOLERANCES[torch.float64])


def test_published_initial_values() -> None:
    mixer = StateFusion(8, scan=create_scan("raster"), d_inner=512, dt_rank=4)
    dt = F.softplus(mixer.dt_bias)
    assert dt.min() >= 1e-4
    assert dt.max() <= 0.1001
    assert mixer.dt_proj.abs().max() <= 4**-0.5
    for value, param in ((0, mixer.A_log), (1, mixer.D), (1, mixer.fusion.kernels), (1, mixer.fusion.alpha)):
        assert torch.equal(param, torch.full_like(param, value))


def test_orders_that_it_cannot_read_are_refused() -> None:
    with pytest.raises(ValueError, match=r"StateFusion reads images, which .* does not do"):
        StateFusion(8, scan=create_scan("raster", ndim=3), d_inner=16, dt_rank=1)
    with pytest.raises(ValueError, match="splits the channels into 4 groups, but d_inner is 18"):
        StateFusion(8, scan=create_scan("group"), d_inner=18, dt_rank=1)
