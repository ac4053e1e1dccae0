"""The state fusion against obvious loops: values, gradients, and torch's machinery."""

import pytest
import torch
from torch import Tensor

from tests.tolerances import HALF_PRECISION_ERROR_RATIO, TOLERANCES
from visionssm_kernels import backends, fuse_states

BACKENDS = [name for name in ("numba", "chunked") if name in backends("cpu").available]
SIZES = [(1, 1), (2, 9), (7, 4), (12, 13)]


def slow_fusion(h: Tensor, weight: Tensor, dilations: tuple[int, ...]) -> Tensor:
    """Every tap of every kernel; positions outside are those at the border."""
    height, width = h.shape[1:3]
    fused, half = torch.zeros_like(h), weight.shape[-1] // 2
    for kernel, dilation in zip(weight, dilations, strict=True):
        for row in range(-half, half + 1):
            for column in range(-half, half + 1):
                y = (torch.arange(height) + row * dilation).clamp(0, height - 1)
                x = (torch.arange(width) + column * dilation).clamp(0, width - 1)
                fused = fused + kernel[:, row + half, column + half] * h[:, y][:, :, x]
    return fused


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [3, 16, 40, 96])
def test_values_and_gradients(backend: str, size: tuple[int, int], channels: int) -> None:
    h, weight = torch.randn(2, *size, channels), torch.randn(3, channels, 3, 3)
    inputs = [t.requires_grad_() for t in (h, weight)]
    exact = [t.detach().double().requires_grad_() for t in inputs]
    y, wanted = fuse_states(*inputs, backend=backend), slow_fusion(*exact, (1, 3, 5))
    torch.testing.assert_close(y.double(), wanted, **TOLERANCES[torch.float32])
    probe = torch.randn(y.shape)
    got = torch.autograd.grad(y, inputs, probe)
    for grad, true in zip(got, torch.autograd.grad(wanted, exact, probe.double()), strict=True):
        assert (grad - true).norm() <= TOLERANCES[torch.float32]["rtol"] * true.norm()


@pytest.mark.parametrize("backend", BACKENDS)
def test_other_kernels_and_strides(backend: str) -> None:
    maps = torch.randn(2, 6, 10, 2 * 24)
    h, weight, dilations = maps[:, :, 1::2, 24:], torch.randn(2, 24, 5, 5), (2, 1)
    y = fuse_states(h, weight, dilations, backend=backend)
    wanted = slow_fusion(h.double(), weight.double(), dilations)
    torch.testing.assert_close(y.double(), wanted, **TOLERANCES[torch.float32])
    turned = maps[..., :24].permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    wanted = slow_fusion(turned.double(), weight.double(), dilations)
    torch.testing.assert_close(
        fuse_states(turned, weight, dilations, backend=backend).double(), wanted, **TOLERANCES[torch.float32]
    )
    assert fuse_states(h[:0], weight, dilations, backend=backend).shape == (0, 6, 5, 24)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    h, weight = torch.randn(1, 9, 8, 32).to(dtype), torch.randn(3, 32, 3, 3)
    exact = slow_fusion(h.double(), weight.double(), (1, 3, 5))
    eager = slow_fusion(h, weight.to(dtype), (1, 3, 5))
    y = fuse_states(h, weight)
    assert y.dtype == dtype
    assert (y - exact).abs().max() <= HALF_PRECISION_ERROR_RATIO * (eager - exact).abs().max()


def test_torch_machinery() -> None:
    h, weight = torch.randn(1, 5, 6, 16, requires_grad=True), torch.randn(3, 16, 3, 3, requires_grad=True)
    torch.library.opcheck(torch.ops.visionssm.fuse_states.default, (h, weight, [1, 3, 5]))
    compiled = torch.compile(lambda h, weight: fuse_states(h, weight) * 2, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(h, weight), fuse_states(h, weight) * 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"h": torch.zeros(1, 4, 4)}, "h must be"),
        ({"weight": torch.zeros(3, 5, 3, 3)}, "weight must be"),
        ({"weight": torch.zeros(3, 4, 2, 2)}, "k odd"),
        ({"dilations": (1, 2)}, "dilations"),
        ({"dilations": (1, 2, 0)}, "dilations"),
    ],
)
def test_errors(change: dict, message: str) -> None:
    arguments = {"h": torch.zeros(1, 4, 4, 4), "weight": torch.zeros(3, 4, 3, 3), "dilations": (1, 3, 5), **change}
    with pytest.raises(ValueError, match=message):
        fuse_states(**arguments)
