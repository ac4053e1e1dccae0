"""The locally bi-directional scan against its definition, its gradients, and torch's machinery around it."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import visionssm_kernels as vk
from tests.kernels.test_ops import RUNS_HERE, make, permutations
from tests.tolerances import TOLERANCES
from visionssm_kernels.bidirectional import published_segment

CASES = json.loads((Path(__file__).parents[1] / "parity" / "scans" / "local_bidirectional.json").read_text())["cases"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["options"]))
def test_the_published_outputs(case: dict) -> None:
    decay_LK, input_LK, C_LK = (torch.tensor(case[key], dtype=torch.float64) for key in "abc")  # one state per route
    dt = -decay_LK.log()
    got = vk.locally_bidirectional_scan(
        (input_LK / dt)[None, ..., None],
        dt.expm1().log()[None, ..., None],  # softplus undone
        -torch.ones(dt.shape[1], 1, 1, dtype=torch.float64),
        torch.ones_like(dt)[None, ..., None],
        C_LK[None, ..., None],
        segment=case["options"]["segment"],
    )
    torch.testing.assert_close(got[0, :, 0], torch.tensor(case["y"], dtype=torch.float64), **TOLERANCES[torch.float64])


def definition(inputs: dict[str, Tensor], order: Tensor | None, segment: int, merge: str) -> Tensor:
    """Step by step: the state from the start of the route, and the state from the end of the segment."""
    u, delta, A, B, C, D, bias = inputs.values()
    batch, length, K, channels = delta.shape
    order = torch.arange(length).expand(K, -1) if order is None else order
    out = u.new_zeros(batch, length, K, channels)
    for b in range(batch):
        for k in range(K):
            table = (order[b, k] if order.dim() == 3 else order[k]).tolist()

            def token(p: int, b: int = b, k: int = k) -> tuple[Tensor, Tensor]:  # decay and input, (D, N)
                raw = delta[b, p, k] if p >= 0 else torch.zeros_like(bias[k])
                dt = F.softplus(raw + bias[k])[:, None]
                here = u[b, p, min(k, u.shape[2] - 1)][:, None] * B[b, p, k] if p >= 0 else torch.zeros_like(A[k])
                return torch.exp(dt * A[k]), dt * here

            steps = [token(p) for p in table]
            forward, h = [], torch.zeros_like(A[k])
            for decay, x in steps:
                h = decay * h + x
                forward.append(h)
            for start in range(0, len(steps), segment):
                r = torch.zeros_like(A[k])
                for t in reversed(range(start, min(start + segment, len(steps)))):
                    decay, x = steps[t]
                    r = decay * r + x
                    p = table[t]
                    if p >= 0:
                        state = forward[t] + r - x
                        skip = D[k] * u[b, p, min(k, u.shape[2] - 1)]
                        out[b, p, k] = (state * C[b, p, k]).sum(-1) + skip
    return out.sum(2) if merge == "sum" else out


@pytest.mark.parametrize(
    ("table", "segment", "merge", "shared"),
    [
        ("none", 4, "sum", True),
        ("permutation", 8, "none", False),
        ("padded", 5, "sum", True),
        ("per image", 3, "none", True),
        ("permutation", 64, "sum", True),
    ],
)
@pytest.mark.parametrize("backend", RUNS_HERE)
def test_outputs_and_gradients(backend: str, table: str, segment: int, merge: str, shared: bool) -> None:
    length = 21
    order = {
        "none": None,
        "permutation": permutations(2, length=length),
        "padded": permutations(2, length=length)[:, :15].masked_fill(torch.rand(2, 15) < 0.3, -1),
        "per image": permutations(2, 2, length=length),
    }[table]
    inputs = make(2, length, 2, 3, 2, shared_u=shared)
    exact = {name: t.detach().double().requires_grad_() for name, t in inputs.items()}
    wanted = definition(exact, order, segment, merge)
    got = vk.locally_bidirectional_scan(**inputs, segment=segment, order=order, merge=merge, backend=backend)
    torch.testing.assert_close(got.double(), wanted, **TOLERANCES[torch.float32])
    probe = torch.randn_like(wanted)
    ours = torch.autograd.grad((got * probe.float()).sum(), list(inputs.values()))
    theirs = torch.autograd.grad((wanted * probe).sum(), list(exact.values()))
    for one, other in zip(ours, theirs, strict=True):
        scale = max(other.abs().max().item(), 1.0)
        torch.testing.assert_close(one.double() / scale, other / scale, **TOLERANCES[torch.float32])


def test_gradients_are_those_of_finite_differences() -> None:
    inputs = make(1, 5, 2, 2, 2, dtype=torch.float64)
    order = torch.tensor([[4, 0, -1, 2], [1, 3, 2, 0]])
    names = list(inputs)

    def run(*tensors: Tensor) -> Tensor:
        return vk.locally_bidirectional_scan(**dict(zip(names, tensors, strict=True)), order=order, segment=2)

    torch.autograd.gradcheck(run, tuple(inputs.values()))


def test_a_segment_as_long_as_the_route_is_a_scan_in_both_directions() -> None:
    inputs = make(2, 30, 1, 8, 4, grad=False)
    got = vk.locally_bidirectional_scan(**inputs, segment=30)
    both = {name: torch.cat([t, t], 2 if t.dim() == 4 else 0) for name, t in inputs.items()}
    table = torch.stack([torch.arange(30), torch.arange(29, -1, -1)])
    own = torch.einsum("blkn,blkn,blkd->bld", inputs["B"], inputs["C"], F.softplus(inputs["delta"] + inputs["bias"]))
    u = inputs["u"].squeeze(2)
    wanted = vk.routed_scan(**both, order=table) - own * u - inputs["D"] * u
    torch.testing.assert_close(got, wanted, **TOLERANCES[torch.float32])


def test_the_published_segment_depends_on_the_length() -> None:
    assert [published_segment(n) for n in (1, 128, 129, 256, 257, 5000)] == [4, 4, 8, 8, 16, 16]
    inputs = make(1, 196, 1, 3, 2, grad=False)
    both = [vk.locally_bidirectional_scan(**inputs, segment=segment) for segment in (0, 8)]
    assert torch.equal(*both)
    with pytest.raises(ValueError, match="segment must be 0 or more steps, got -4"):
        vk.locally_bidirectional_scan(**inputs, segment=-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_no_worse_than_twice_plain_torch(dtype: torch.dtype) -> None:
    inputs = make(2, 100, 2, 16, 8, grad=False)
    halves = {n: t.to(dtype) if n in ("u", "delta", "B", "C") else t for n, t in inputs.items()}
    exact = vk.locally_bidirectional_scan(**{n: t.double() for n, t in halves.items()}, segment=8)
    errors = {}
    for backend in ("chunked", "auto"):
        got = vk.locally_bidirectional_scan(**halves, segment=8, backend=backend)
        assert got.dtype == dtype
        errors[backend] = (got.double() - exact).abs().max()
    assert errors["auto"] <= 2 * errors["chunked"]


class LocalScan(torch.nn.Module):
    def forward(self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        return vk.locally_bidirectional_scan(u * 2, delta, A, B, C, segment=4) + 1


def test_compiles_into_one_graph_with_gradients() -> None:
    inputs = make(2, 18, 2, 4, 4)
    args = tuple(inputs[name] for name in ("u", "delta", "A", "B", "C"))
    compiled = torch.compile(LocalScan(), fullgraph=True, backend="aot_eager")
    wanted = torch.autograd.grad(LocalScan()(*args).sum(), args)
    for one, other in zip(torch.autograd.grad(compiled(*args).sum(), args), wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_flops_are_those_of_the_two_scans() -> None:
    inputs = make(2, 30, 3, 8, 4, grad=False)
    with FlopCounterMode(display=False) as counter:
        vk.locally_bidirectional_scan(**inputs, segment=8, backend="numba")
    assert counter.get_total_flops() == 2 * 30 * 3 * 8 * (2 * 9 * 4 + 1)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_trace_holds_for_routes_of_its_length() -> None:
    def scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        return vk.locally_bidirectional_scan(u, delta, A, B, C, segment=0)

    def args(length: int) -> tuple[Tensor, ...]:
        maps = (torch.randn(1, length, 2, size) for size in (5, 5, 4, 4))
        u, delta, B, C = maps
        return u, delta, -torch.rand(2, 5, 4), B, C

    traced = torch.jit.trace(scan, args(20), check_trace=False)
    given = args(20)
    torch.testing.assert_close(traced(*given), scan(*given))
    with pytest.raises(RuntimeError, match="traced for routes of 20 steps, which decide segments, got 130 steps"):
        traced(*args(130))
