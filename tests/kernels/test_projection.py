"""The scan that projects dt by itself (`dt_weight`): against a product ahead of the scan, and in torch's own machinery."""

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import visionssm_kernels as vk
from tests.kernels.test_ops import CUSTOM_OPS, RUNS_HERE, make, permutations
from tests.tolerances import TOLERANCES

NAMES = ("u", "delta", "A", "B", "C", "D", "bias", "dt_weight")


def ahead(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same scan with delta as a plain product."""
    rest = dict(inputs)
    rest["delta"] = torch.einsum("blkr,kdr->blkd", inputs["delta"], rest.pop("dt_weight"))
    return rest


def by_operator(inputs: dict[str, Tensor], order: Tensor | None, backend: str, *, keep: bool = True) -> Tensor:
    """The custom operator with the projection as its own business, as traced programs call it."""
    values = [inputs[name] for name in NAMES]
    return torch.ops.visionssm.routed_scan(*values[:7], order, True, "sum", keep, False, backend, 0, 0, values[7])[0]


@pytest.mark.parametrize("backend", [*RUNS_HERE, "reference"])
@pytest.mark.parametrize("rank", [1, 6, 12, 100])
def test_is_a_product_ahead_of_the_scan(backend: str, rank: int) -> None:
    inputs = make(2, 19, 3, 7, 4, rank=rank)
    exact = {name: t.detach().double().requires_grad_() for name, t in inputs.items()}
    order = permutations(3, length=19)
    y, states = vk.routed_scan(**inputs, order=order, return_states=True, backend=backend)
    wanted, wanted_states = vk.routed_scan(**ahead(exact), order=order, return_states=True, backend="reference")
    got = torch.autograd.grad(y.square().sum() + states.square().sum(), list(inputs.values()))
    true = torch.autograd.grad(wanted.square().sum() + wanted_states.square().sum(), list(exact.values()))
    for one, other in zip((y, states, *got), (wanted, wanted_states, *true), strict=True):
        scale = max(other.abs().max().item(), 1.0)
        torch.testing.assert_close(one.double() / scale, other / scale, **TOLERANCES[torch.float32])


def test_gradients_are_those_of_finite_differences() -> None:
    inputs = make(1, 5, 2, 2, 2, dtype=torch.float64, rank=3)
    order = torch.tensor([[4, 0, -1, 2], [1, 3, 2, 0]])

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(inputs, tensors, strict=True))
        return vk.routed_scan(**named, order=order, return_states=True, backend="reference")

    torch.autograd.gradcheck(run, tuple(inputs.values()))


@pytest.mark.parametrize("backend", RUNS_HERE)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stored", ["half", "float32"])
def test_half_precision_rounds_the_factors_and_not_their_product(backend: str, dtype: torch.dtype, stored: str) -> None:
    inputs = make(2, 100, 2, 16, 8, grad=False, rank=12)
    halves = {n: t.to(dtype) if n in ("u", "delta", "B", "C", "dt_weight") else t for n, t in inputs.items()}
    exact = vk.routed_scan(**{n: t.double() for n, t in halves.items()}, backend="reference")
    if stored == "float32":
        halves["dt_weight"] = inputs["dt_weight"]
    got = vk.routed_scan(**halves, backend=backend)
    assert got.dtype == dtype
    rounding = (exact.to(dtype).double() - exact).abs().max()
    assert (got.double() - exact).abs().max() <= 2 * rounding


def test_any_factor_in_float64_makes_it_float64() -> None:
    inputs = make(grad=False, rank=3)
    inputs["dt_weight"] = inputs["dt_weight"].double()
    exact = vk.routed_scan(**{n: t.double() for n, t in inputs.items()}, backend="reference", return_states=True)[1]
    states = vk.routed_scan(**inputs, return_states=True)[1]
    torch.testing.assert_close(states, exact, **TOLERANCES[torch.float64])


def test_shapes_pass_through_on_the_meta_device() -> None:
    with torch.device("meta"):
        inputs = make(rank=3)
        vk.routed_scan(**inputs).sum().backward()
    assert inputs["dt_weight"].grad.shape == (3, 5, 3)


@pytest.mark.parametrize("backend", [*CUSTOM_OPS, "chunked"])
@pytest.mark.parametrize("keep", [False, True])
def test_the_operator_projects_where_its_implementation_does_not(backend: str, keep: bool) -> None:
    inputs, order = make(2, 40, 2, 3, 4, rank=5), permutations(2, length=40).int()
    found = []
    for y in (by_operator(inputs, order, backend, keep=keep), vk.routed_scan(**ahead(inputs), order=order)):
        found.append((y, *torch.autograd.grad(y.square().sum(), list(inputs.values()))))
    for one, other in zip(*found, strict=True):
        scale = max(other.abs().max().item(), 1.0)
        torch.testing.assert_close(one / scale, other / scale, **TOLERANCES[torch.float32])


@pytest.mark.parametrize("backend", CUSTOM_OPS)
@pytest.mark.parametrize("states", [False, True])
def test_opcheck(backend: str, states: bool) -> None:
    inputs, order = make(2, 11, 2, 4, 4, rank=3), permutations(2, length=11).int()
    values = [inputs[name] for name in NAMES]
    args = (*values[:7], order, True, "sum", True, states, backend, 4, 1, values[7])
    torch.library.opcheck(torch.ops.visionssm.routed_scan.default, args)


class Scan(torch.nn.Module):
    def __init__(self, operator: bool) -> None:
        super().__init__()
        self.operator = operator

    def forward(self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor,
                dt_weight: Tensor) -> Tensor:  # fmt: skip
        inputs = dict(zip(NAMES, (u * 2, delta, A, B, C, D, bias, dt_weight), strict=True))
        if self.operator:
            return by_operator(inputs, None, "auto", keep=False) + 1
        return vk.routed_scan(**inputs) + 1


def arguments(length: int = 12) -> tuple[Tensor, ...]:
    inputs = make(2, length, 2, 4, 4, grad=False, rank=3)
    return tuple(inputs[name] for name in NAMES)


@pytest.mark.parametrize("operator", [False, True])
def test_compiles_into_one_graph_with_gradients(operator: bool) -> None:
    args, scan = tuple(t.requires_grad_() for t in arguments()), Scan(operator)
    compiled = torch.compile(scan, fullgraph=True, backend="aot_eager")
    wanted = torch.autograd.grad(scan(*args).sum(), args)
    for one, other in zip(torch.autograd.grad(compiled(*args).sum(), args), wanted, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("operator", [False, True])
def test_exports_with_dynamic_batch_and_length(operator: bool) -> None:
    moving = {0: torch.export.Dim("batch", min=1, max=64), 1: torch.export.Dim("length", min=2, max=4096)}
    shapes = {name: moving if name in ("u", "delta", "B", "C") else None for name in NAMES}
    program = torch.export.export(Scan(operator), arguments(), dynamic_shapes=shapes)
    for size in (5, 40):
        args = arguments(size)
        torch.testing.assert_close(program.module()(*args), Scan(operator)(*args))


def test_is_a_leaf_of_jit_tracing() -> None:
    args, scan = arguments(), Scan(False)
    traced = torch.jit.trace(scan, args, check_trace=False)
    torch.testing.assert_close(traced(*args), scan(*args))


@pytest.mark.parametrize("backend", [*CUSTOM_OPS, "chunked"])
def test_autocast_leaves_the_product_in_float32(backend: str) -> None:
    inputs = make(2, 30, 2, 8, 4, rank=3)
    wanted = vk.routed_scan(**inputs, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        y = vk.routed_scan(**inputs, backend=backend)
        same = by_operator(inputs, None, backend)
        grads = torch.autograd.grad(same.sum(), list(inputs.values()))
    for other, true in zip((y, same), (wanted, wanted), strict=True):
        torch.testing.assert_close(other, true)
    for one, other in zip(grads, torch.autograd.grad(wanted.sum(), list(inputs.values())), strict=True):
        scale = max(other.abs().max().item(), 1.0)
        torch.testing.assert_close(one / scale, other / scale, **TOLERANCES[torch.float32])


def test_flops_count_the_product_wherever_it_is_made() -> None:
    inputs, order = make(2, 30, 3, 8, 4, rank=5), permutations(3, length=30)[:, :20].int()
    counts = []
    for scan in (
        lambda: vk.routed_scan(**ahead(inputs), order=order, backend="numba"),
        lambda: by_operator(inputs, order, "numba"),
    ):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            scan()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] == 2 * 3 * 8 * (20 * (9 * 4 + 1) + 30 * 2 * 5)
