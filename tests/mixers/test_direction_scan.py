"""The direction-aware mixer against obvious loops: moves, alignment, values and gradients."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.tolerances import TOLERANCES
from visionssm.mixers import DirectionScan
from visionssm.mixers.direction_scan import arrivals, visits
from visionssm.scans import create_scan, list_scans

MOVES = {(0, 1): 1, (0, -1): 2, (-1, 0): 3, (1, 0): 4}  # (rows, columns) of a step to a neighbour


def slow_visits(order_KT: Tensor, width: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Arrivals, ranks and moves, step by step, in two dimensions."""
    arrived, rank, move = (
        torch.zeros(order_KT.shape[0], n, dtype=torch.long) for n in (order_KT.shape[1], length, length)
    )
    for k, route in enumerate(order_KT.tolist()):
        before = None
        count = 0
        for t, p in enumerate(route):
            if p < 0:
                continue
            if before is not None:
                step = (p // width - before // width, p % width - before % width)
                arrived[k, t] = MOVES.get(step, 0)
            rank[k, p], move[k, p] = count, arrived[k, t]
            before, count = p, count + 1
    return arrived, rank, move


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (5, 1), (4, 6), (5, 7), (2, 3, 4), (3, 1, 5)])
def test_continuous_directions(size: tuple[int, ...]) -> None:
    scan = create_scan("continuous", ndim=len(size))
    assert torch.equal(arrivals(scan.routes(size), list(size)), scan.directions(size))


@pytest.mark.parametrize("name", list_scans(ndim=2))
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (6, 4)])
def test_visits_of_any_order(name: str, size: tuple[int, int]) -> None:
    order = create_scan(name).routes(size).int()
    arrived, rank, move = slow_visits(order, size[1], math.prod(size))
    assert torch.equal(arrivals(order, list(size)), arrived)
    got_rank, got_move = visits(order, list(size))
    assert torch.equal(got_rank, rank)
    assert torch.equal(got_move, move)


def test_a_padding_step_is_passed_over() -> None:
    order = torch.tensor([[-1, 0, -1, 1, -1, 3, 0 + 5, -1]])  # 2 x 3: start, right, jump, two to the right
    assert arrivals(order, [2, 3]).tolist() == [[0, 0, 0, 1, 0, 0, 0, 0]]
    order = torch.tensor([[-1, 4, -1, 1, -1, 0, 3, -1]])  # up, left, down
    assert arrivals(order, [2, 3]).tolist() == [[0, 0, 0, 3, 0, 2, 4, 0]]
    assert visits(order, [2, 3])[0].tolist() == [[2, 1, 0, 3, 0, 0]]


def slow_scan(mixer: DirectionScan, x_BHWD: Tensor, order_KT: Tensor) -> Tensor:
    """The published scan, written out: only u is read where the route is, unless `exact`."""
    batch, height, width, channels = x_BHWD.shape
    x_BLD = x_BHWD.flatten(1, 2)
    dt_low, B_BLN, C_BLN = mixer.x_proj(x_BLD).split(mixer.dims, -1)
    dt_BLD = F.softplus(dt_low @ mixer.dt_proj.weight.T + mixer.dt_bias + mixer.dt_bias)
    A_DN = -mixer.A_log.exp()
    arrived = slow_visits(order_KT, width, height * width)[0]
    y_BLD = torch.zeros_like(x_BLD)
    for k, route in enumerate(order_KT.tolist()):
        h_BDN = x_BLD.new_zeros(batch, channels, A_DN.shape[1])
        count = 0
        for t, p in enumerate(route):
            if p < 0:
                h_BDN = torch.exp(F.softplus(2 * mixer.dt_bias)[:, None] * A_DN) * h_BDN
                continue
            source = p if not mixer.raster_aligned else count
            count += 1
            dt, u = dt_BLD[:, source, :, None], x_BLD[:, p, :, None]
            B_BN = B_BLN[:, source] + mixer.direction_B[arrived[k, t]]
            h_BDN = torch.exp(dt * A_DN) * h_BDN + dt * u * B_BN[:, None]
            y = (h_BDN * C_BLN[:, source, None]).sum(-1) + mixer.D * u[..., 0]
            y_BLD = y_BLD.index_add(1, torch.tensor([p]), y[:, None])
    return y_BLD.view_as(x_BHWD)


@pytest.mark.parametrize("align", ["published", "exact"])
@pytest.mark.parametrize("name", ["continuous", "hilbert", "window", "skip", "raster"])
def test_scan_and_gradients_are_those_of_the_loop(name: str, align: str) -> None:
    scan = create_scan(name)
    mixer = DirectionScan(4, scan=scan, d_inner=6, d_state=3, dt_rank=2, align=align).double()
    with torch.no_grad():
        for param in (mixer.D, mixer.dt_bias, mixer.direction_B, mixer.dt_proj.weight):
            param.copy_(torch.randn(param.shape))
        mixer.A_log.zero_()  # exact in float32, which the mixer takes exp in
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    probe = torch.randn_like(x)
    inputs = (x, mixer.x_proj.weight, mixer.dt_proj.weight, mixer.dt_bias, mixer.D, mixer.direction_B)
    got = mixer.scan(x)
    wanted = slow_scan(mixer, x, scan.routes((3, 5)))
    torch.testing.assert_close(got, wanted, **TOLERANCES[torch.float64])
    got_grads = torch.autograd.grad((got * probe).sum(), inputs)
    wanted_grads = torch.autograd.grad((wanted * probe).sum(), inputs)
    for got_grad, wanted_grad in zip(got_grads, wanted_grads, strict=True):
        torch.testing.assert_close(got_grad, wanted_grad, **TOLERANCES[torch.float64])


def test_alignments_agree_for_raster_only() -> None:
    x = torch.randn(1, 4, 5, 6)
    for name, same in (("raster", True), ("continuous", False)):
        published = DirectionScan(6, scan=create_scan(name), d_inner=6, d_state=2, dt_rank=2)
        exact = DirectionScan(6, scan=create_scan(name), d_inner=6, d_state=2, dt_rank=2, align="exact")
        exact.load_state_dict(published.state_dict())
        assert torch.allclose(published.scan(x), exact.scan(x), rtol=1e-6) is same


def test_volumes() -> None:
    mixer = DirectionScan(8, scan=create_scan("continuous", ndim=3), d_inner=16, d_state=4, dt_rank=1, conv_size=3)
    assert mixer.direction_B.shape == (7, 4)
    assert mixer(torch.randn(2, 3, 4, 5, 8)).shape == (2, 3, 4, 5, 8)


def test_first_call_in_inference_mode_leaves_training_possible() -> None:
    mixer = DirectionScan(4, scan=create_scan("continuous"), d_inner=8, d_state=2, dt_rank=1)
    x = torch.randn(1, 13, 3, 4)  # a size that no other test has cached
    with torch.inference_mode():
        mixer(x)
    mixer(x).sum().backward()
    assert mixer.direction_B.grad.abs().sum() > 0


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match="align must be 'published' or 'exact', got 'raster'"):
        DirectionScan(4, scan=create_scan("snake"), d_inner=8, d_state=2, dt_rank=1, align="raster")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="splits the channels into 4 groups, but d_inner is 6"):
        DirectionScan(4, scan=create_scan("group"), d_inner=6, d_state=2, dt_rank=1)
    with pytest.raises(ValueError, match="rank 1"):
        DirectionScan(4, scan=create_scan("raster", ndim=1), d_inner=8, d_state=2, dt_rank=1)
