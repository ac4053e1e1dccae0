"""The scan of Mamba-2 in chunks against its recurrence; the kernels for GPUs are in `triton_cases.py`."""

import pytest
import torch
from torch import Tensor

from tests.tolerances import TOLERANCES
from visionssm_kernels import routed_scan, ssd_scan


def inputs(length: int, heads: int = 4, groups: int = 2, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    made = torch.Generator().manual_seed(length)
    sizes = ((2, length, heads, 6), (2, length, heads), (heads,), (2, length, groups, 3), (2, length, groups, 3))
    values = [torch.randn(*size, generator=made, dtype=dtype) for size in (*sizes, (heads,), (heads,))]
    values[2] = -values[2].abs() - 0.1
    return [x.requires_grad_() for x in values]


@pytest.mark.parametrize("length", [0, 1, 63, 64, 65, 200])
def test_chunks_against_steps(length: int) -> None:
    args = inputs(length)
    results = []
    for backend in ("reference", "chunked"):
        y = ssd_scan(*args, backend=backend)
        grads = torch.autograd.grad(y, args, torch.ones_like(y).cumsum(-1), allow_unused=True, materialize_grads=True)
        results.append([y, *grads])
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, **TOLERANCES[torch.float64])


def test_it_is_the_selective_scan_with_one_decay_per_head() -> None:
    x, delta, A, B, C, D, bias = inputs(30, heads=3, groups=1)
    wide = [t.flatten(2).unsqueeze(2) for t in (x, delta[..., None].expand_as(x))]
    rates, skip, shift = (t[:, None].expand(3, 6).flatten()[None] for t in (A, D, bias))
    wanted = routed_scan(*wide, rates[..., None].expand(1, 18, 3), B, C, skip, shift, backend="reference")
    torch.testing.assert_close(ssd_scan(x, delta, A, B, C, D, bias).flatten(2), wanted, **TOLERANCES[torch.float64])


def test_long_decays_do_not_overflow() -> None:
    args = [t.detach().float() for t in inputs(300)]
    args[2] = torch.full_like(args[2], -50.0)
    assert ssd_scan(*args, backend="chunked").isfinite().all()


def test_dtypes() -> None:
    args = [t.detach() for t in inputs(20, dtype=torch.float32)]
    half = [t.bfloat16() if i in (0, 1, 3, 4) else t for i, t in enumerate(args)]
    y = ssd_scan(*half)
    assert y.dtype == torch.bfloat16
    exact = ssd_scan(*(t.double() for t in half), backend="reference")
    torch.testing.assert_close(y.double(), exact, **TOLERANCES[torch.bfloat16])


def test_what_the_kernels_do_not_take() -> None:
    with pytest.raises(RuntimeError, match="'triton'"):
        ssd_scan(*inputs(5, dtype=torch.float32), backend="triton")


@pytest.mark.parametrize(
    ("index", "shape", "message"),
    [(0, (2, 5, 4), "x must"), (1, (2, 5, 3), "delta must"), (2, (3,), "A must"), (3, (2, 5, 3, 3), "G dividing 4"),
     (4, (2, 5, 2, 4), "C must"), (5, (1,), "D must"), (6, (1,), "bias must")],
)  # fmt: skip
def test_errors(index: int, shape: tuple[int, ...], message: str) -> None:
    args = inputs(5)
    args[index] = torch.zeros(shape)
    with pytest.raises(ValueError, match=message):
        ssd_scan(*args)
