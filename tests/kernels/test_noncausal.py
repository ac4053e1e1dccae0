"""Non-causal state space duality against its definition, token by token; and torch's machinery around it."""

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tests.tolerances import HALF_PRECISION_ERROR_RATIO, TOLERANCES
from visionssm_kernels import noncausal_ssd

SHAPES = [(2, 12, 3, 5, 4), (1, 1, 1, 1, 1), (2, 63, 2, 3, 7), (0, 4, 2, 3, 2), (2, 0, 2, 3, 2)]


def make(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    batch, length, heads, width, d_state = shape
    x = torch.randn(batch, heads, length, width, dtype=dtype).transpose(1, 2)  # as a caller may have it: strided
    B, C = torch.randn(batch, length, 2 * d_state, dtype=dtype).split(d_state, -1)
    weight = torch.rand(batch, length, heads)
    inputs = {"x": x, "weight": weight.to(torch.promote_types(dtype, torch.float32)), "B": B, "C": C}
    inputs["D"] = torch.randn(heads, dtype=inputs["weight"].dtype)
    return {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}


def by_token(x: Tensor, weight: Tensor | None, B: Tensor, C: Tensor | None, D: Tensor | None) -> Tensor:
    """The definition: one outer product per token, head and image, in the order of the tokens."""
    heads = []
    for h in range(x.shape[2]):
        state = x.new_zeros(x.shape[0], B.shape[2], x.shape[3])
        for t in range(x.shape[1]):
            factor = x.new_ones(x.shape[0]) if weight is None else weight[:, t, h]
            state = state + B[:, t, :, None] * (factor[:, None] * x[:, t, h])[:, None]
        if C is None:
            heads.append(state)
            continue
        skip = 0.0 if D is None else D[h] * x[:, :, h]
        heads.append(torch.stack([(C[:, t, :, None] * state).sum(1) for t in range(x.shape[1])], 1) + skip)
    return torch.stack(heads, 1 if C is None else 2)


@pytest.mark.parametrize("without", [(), ("weight",), ("D",), ("C", "D"), ("weight", "C", "D")], ids="-".join)
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape[1]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_outputs_and_gradients(dtype: torch.dtype, shape: tuple[int, ...], without: tuple[str, ...]) -> None:
    inputs = {name: None if name in without else tensor for name, tensor in make(shape, dtype).items()}
    exact = {name: None if x is None else x.detach().double().requires_grad_() for name, x in inputs.items()}
    wanted = by_token(**exact)
    got = noncausal_ssd(**inputs)
    assert got.dtype == dtype
    probe = torch.randn_like(wanted)
    results = []
    for y, given in ((got, inputs), (wanted, exact)):
        tensors = [x for x in given.values() if x is not None]
        results.append([y, *torch.autograd.grad((y * probe).sum(), tensors, materialize_grads=True)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one.double(), other, **TOLERANCES[dtype])


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if 0 in shape])
def test_nothing_to_add_up(shape: tuple[int, ...]) -> None:
    inputs = make(shape)
    assert noncausal_ssd(**inputs).shape == inputs["x"].shape
    state = noncausal_ssd(inputs["x"], inputs["weight"], inputs["B"])
    assert torch.equal(state, torch.zeros(shape[0], shape[2], shape[4], shape[3]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    inputs = {name: tensor.detach() for name, tensor in make((2, 63, 2, 8, 16), dtype).items()}
    wanted = by_token(**{name: tensor.double() for name, tensor in inputs.items()})
    eager = by_token(**{name: tensor.to(dtype) for name, tensor in inputs.items()})
    got = noncausal_ssd(**inputs)
    assert got.dtype == dtype
    assert (got - wanted).abs().max() <= HALF_PRECISION_ERROR_RATIO * (eager - wanted).abs().max()


def test_any_order_of_the_tokens_gives_the_same() -> None:
    inputs = {name: tensor.detach() for name, tensor in make((2, 12, 3, 5, 4), torch.float64).items()}
    shuffled = torch.randperm(12)
    moved = {name: tensor if name == "D" else tensor[:, shuffled] for name, tensor in inputs.items()}
    torch.testing.assert_close(
        noncausal_ssd(**moved), noncausal_ssd(**inputs)[:, shuffled], **TOLERANCES[torch.float64]
    )


class Module(torch.nn.Module):
    def forward(self, x: Tensor, weight: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
        return noncausal_ssd(x, weight, B, C, D) + noncausal_ssd(x, None, B).sum()


def test_scripts_compiles_and_exports_with_open_sizes() -> None:
    inputs = tuple(make((2, 12, 3, 5, 4)).values())
    other = tuple(make((3, 20, 3, 5, 4)).values())
    module = Module()
    scripted = torch.jit.script(module)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    open_size = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    program = torch.export.export(module, inputs, dynamic_shapes=(open_size,) * 4 + (None,)).module()
    for run in (scripted, compiled, program):
        for given in (inputs, other):
            torch.testing.assert_close(run(*given), module(*given), **TOLERANCES[torch.float32])
    torch._dynamo.reset()


def test_the_flop_counter_sees_both_products() -> None:
    batch, length, heads, width, d_state = 2, 63, 2, 3, 7
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        noncausal_ssd(**make((batch, length, heads, width, d_state)))
    assert counter.get_total_flops() == 2 * (2 * batch * length * d_state * heads * width)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 12, 15)}, r"x must be floating \(B, L, H, P\), got torch.float32 .*2, 12, 15"),
        ({"x": torch.zeros(2, 12, 3, 5, dtype=torch.int64)}, "x must be floating"),
        ({"weight": torch.zeros(2, 12)}, r"weight must be \(B, L, H\) = .*2, 12, 3.*, got .*2, 12\]"),
        ({"B": torch.zeros(2, 11, 4)}, r"B must be \(B, L, N\) with .*2, 12.* first"),
        ({"C": torch.zeros(2, 12, 5)}, r"C must be shaped like B, .*2, 12, 4"),
        ({"D": torch.zeros(4)}, r"D must be \(H\) = .*3.*, got .*4"),
        ({"C": None}, "D is part of the readout"),
    ],
)
def test_refusals(change: dict[str, Tensor | None], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        noncausal_ssd(**{**make((2, 12, 3, 5, 4)), **change})
