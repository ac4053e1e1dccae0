"""The two-dimensional scan: every implementation against the recurrence in float64, outputs and all gradients."""

import pytest
import torch
from torch import Tensor

from tests.tolerances import HALF_PRECISION_ERROR_RATIO, TOLERANCES
from visionssm_kernels import backends
from visionssm_kernels.wavefront import wavefront_scan

FAST = [name for name in ("numba", "chunked") if backends("cpu")[name] is None]
SIZES = [  # (B, H, W, D, N)
    (2, 3, 5, 4, 3),
    (1, 7, 4, 40, 16),
    (1, 1, 9, 3, 2),
    (2, 9, 1, 17, 1),
    (1, 1, 1, 1, 1),
]
NAMES = ("u", "delta", "A", "B", "C", "D", "bias")


def inputs(size: tuple[int, ...], dtype: torch.dtype = torch.float32, *, seed: int = 0) -> list[Tensor]:
    batch, rows, columns, channels, states = size
    made = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=made)

    cells = (batch, rows, columns)
    varied = [draw(*cells, channels), draw(*cells, 2, channels), draw(*cells, 2, states), draw(*cells, states)]
    u, delta, B, C = (x.to(dtype) for x in varied)
    return [u, delta, -torch.rand(2, channels, states, generator=made) - 0.1, B, C, draw(channels), draw(2, channels)]


def gradients(args: list[Tensor | None], grad: Tensor, **options: object) -> tuple[Tensor, list[Tensor | None]]:
    leaves = [None if x is None else x.detach().requires_grad_() for x in args]
    y = wavefront_scan(*leaves, **options)  # pyright: ignore
    present = [x for x in leaves if x is not None]
    found = iter(torch.autograd.grad(y, present, grad.to(y.dtype), allow_unused=True, materialize_grads=True))
    return y.detach(), [None if x is None else next(found) for x in leaves]


def oracle(args: list[Tensor | None], grad: Tensor, reverse: bool) -> tuple[Tensor, list[Tensor | None]]:
    wide = [None if x is None else x.double() for x in args]
    return gradients(wide, grad.double(), reverse=reverse, backend="reference")


def test_the_recurrence_by_hand() -> None:
    """Two by two, one channel, one state, decay 1/2, steps 1 and inputs that tell where they came from."""
    u = torch.tensor([[1.0, 10.0], [100.0, 1000.0]]).view(1, 2, 2, 1)
    delta = torch.ones(1, 2, 2, 2, 1).expm1().log()  # softplus gives 1
    A = torch.full((2, 1, 1), 0.5).log()
    B = torch.tensor([2.0, 1.0]).view(2, 1).expand(1, 2, 2, 2, 1)  # from above counts double
    y = wavefront_scan(u, delta, A, B, torch.ones(1, 2, 2, 1), backend="reference")
    first, right = 1.0, 0.5 * 1 + 10
    down = 0.5 * first + 2 * 100
    last = (0.5 * down + 1000 + 0.5 * right + 2 * 1000) / 2
    torch.testing.assert_close(y.flatten(), torch.tensor([first, right, down, last]))
    back = wavefront_scan(u.flip(1, 2), delta, A, B, torch.ones(1, 2, 2, 1), reverse=True, backend="reference")
    torch.testing.assert_close(back.flip(1, 2), y)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("backend", FAST)
def test_outputs_and_gradients(backend: str, size: tuple[int, ...], reverse: bool) -> None:
    args = inputs(size)
    grad = torch.randn(size[:4])
    for kept in (args, [*args[:5], None, None]):
        y, grads = gradients(kept, grad, reverse=reverse, backend=backend)
        wanted, wanted_grads = oracle(kept, grad, reverse)
        torch.testing.assert_close(y, wanted.float(), **TOLERANCES[torch.float32])
        for name, one, other in zip(NAMES, grads, wanted_grads, strict=True):
            if one is not None:
                assert one.shape == other.shape
                torch.testing.assert_close(
                    one, other.float(), **TOLERANCES[torch.float32], msg=lambda m, n=name: f"{n}: {m}"
                )


@pytest.mark.parametrize("reverse", [False, True])
def test_float64_by_diagonals_is_exact(reverse: bool) -> None:
    args = [x.double() for x in inputs((2, 5, 4, 3, 2))]
    grad = torch.randn(2, 5, 4, 3, dtype=torch.float64)
    y, grads = gradients(args, grad, reverse=reverse, backend="chunked")
    wanted, wanted_grads = oracle(args, grad, reverse)
    for one, other in zip([y, *grads], [wanted, *wanted_grads], strict=True):
        torch.testing.assert_close(one, other, **TOLERANCES[torch.float64])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", FAST)
def test_half_precision(backend: str, dtype: torch.dtype) -> None:
    args, grad = inputs((2, 6, 5, 24, 8), dtype), torch.randn(2, 6, 5, 24).to(dtype)
    y, grads = gradients(args, grad, backend=backend)
    wanted, wanted_grads = oracle(args, grad, False)
    assert [x.dtype for x in grads] == [x.dtype for x in args]
    rounded = [wanted.to(dtype).double(), *(w.to(x.dtype).double() for w, x in zip(wanted_grads, args, strict=True))]
    for one, other, best in zip([y, *grads], [wanted, *wanted_grads], rounded, strict=True):
        allowed = HALF_PRECISION_ERROR_RATIO * (best - other).abs().max() + TOLERANCES[torch.float32]["atol"] * 10
        assert (one.double() - other).abs().max() <= allowed


@pytest.mark.parametrize("backend", FAST)
def test_strided_inputs_and_no_images(backend: str) -> None:
    args = inputs((2, 4, 3, 20, 4))
    wanted = wavefront_scan(*args, backend=backend)
    strided = [torch.stack([x, x], -1)[..., 0] if i < 2 else x.transpose(1, 2).contiguous().transpose(1, 2)
               for i, x in enumerate(args[:5]) if i != 2]  # fmt: skip
    got = wavefront_scan(strided[0], strided[1], args[2], strided[2], strided[3], *args[5:], backend=backend)
    torch.testing.assert_close(got, wanted, rtol=0, atol=0)
    empty = [x[:0] if i in (0, 1, 3, 4) else x for i, x in enumerate(args)]
    y, grads = gradients(empty, torch.zeros(0, 4, 3, 20), backend=backend)
    assert y.shape == (0, 4, 3, 20)
    assert all(g.shape == x.shape and not g.any() for g, x in zip(grads, empty, strict=True))


@pytest.mark.skipif("numba" not in FAST, reason="needs the CPU kernels")
def test_threads_change_no_bit() -> None:
    args, grad = inputs((3, 6, 5, 50, 8)), torch.randn(3, 6, 5, 50)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(gradients(args, grad, backend="numba"))
    finally:
        torch.set_num_threads(before)
    for one, other in zip([results[0][0], *results[0][1]], [results[1][0], *results[1][1]], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("backend", FAST)
def test_operator(backend: str) -> None:
    args = [x.requires_grad_() for x in inputs((1, 3, 4, 5, 2))]
    torch.library.opcheck(torch.ops.visionssm.wavefront_scan, (*args, False, backend))
    torch.library.opcheck(torch.ops.visionssm.wavefront_scan, (*args[:5], None, None, True, backend))


@pytest.mark.parametrize("backend", FAST)
def test_compiles_and_exports_with_open_sizes(backend: str) -> None:
    class Scan(torch.nn.Module):
        def forward(self, *args: Tensor) -> Tensor:
            return wavefront_scan(*args, reverse=True, backend=backend)

    args, other = inputs((2, 4, 5, 6, 3)), inputs((2, 7, 3, 6, 3), seed=1)
    scan = Scan()
    compiled = torch.compile(scan, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*args), scan(*args))
    torch._dynamo.reset()
    height, width = torch.export.Dim("height", min=2, max=64), torch.export.Dim("width", min=2, max=64)
    cells = {1: height, 2: width}
    program = torch.export.export(
        scan, tuple(args), dynamic_shapes=((cells, cells, None, cells, cells, None, None),), strict=False
    )
    torch.testing.assert_close(program.module()(*other), scan(*other))


def test_flops() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    args = [x.requires_grad_() for x in inputs((2, 4, 5, 6, 3))]
    with FlopCounterMode(display=False) as counter:
        y = wavefront_scan(*args, backend=FAST[0])
    assert counter.get_total_flops() == 2 * 4 * 5 * 6 * (18 * 3 + 1)
    if FAST[0] == "numba":
        with FlopCounterMode(display=False) as counter:
            y.sum().backward()
        assert counter.get_total_flops() == 2 * 2 * 4 * 5 * 6 * (18 * 3 + 1)


@pytest.mark.parametrize(
    ("index", "change", "error", "message"),
    [
        (0, lambda x: x[0], ValueError, r"u must be \(B, H, W, D\)"),
        (0, lambda x: x[:, :0], ValueError, "H and W at least 1"),
        (1, lambda x: x[..., 0, :], ValueError, r"delta must be \(1, 3, 4, 2, 5\)"),
        (2, lambda x: x[:1], ValueError, r"A must be \(2, 5, N\)"),
        (3, lambda x: x[..., :1], ValueError, r"B must be \(1, 3, 4, 2, 2\)"),
        (4, lambda x: x.long(), TypeError, "C must be a floating-point tensor, got torch.int64"),
        (5, lambda x: x[:2], ValueError, r"D must be \(5\)"),
        (6, lambda x: x.to("meta"), ValueError, "bias is on meta but u is on cpu"),
    ],
)
def test_refusals(index: int, change, error: type[Exception], message: str) -> None:
    args = inputs((1, 3, 4, 5, 2))
    args[index] = change(args[index])
    with pytest.raises(error, match=message):
        wavefront_scan(*args)
    with pytest.raises(RuntimeError, match="'triton' cannot run here"):
        wavefront_scan(*inputs((1, 3, 4, 5, 2)), backend="triton")
    with pytest.raises(ValueError, match="unknown backend"):
        wavefront_scan(*inputs((1, 3, 4, 5, 2)), backend="gpu")
