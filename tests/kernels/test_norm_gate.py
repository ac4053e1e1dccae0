"""Norm and gate in one pass against torch's operations in float64, and that gradients go through torch's."""

import pytest
import torch
import torch.nn.functional as F

import visionssm_kernels as vk
from tests.tolerances import TOLERANCES
from visionssm_kernels.backends import is_plain_inference


def oracle(x, gate, weight, bias, norm, eps, scale):
    if norm:
        variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
        x = (x - mean) / (variance + eps).sqrt()
        x = x if weight is None else x * weight
        x = x if bias is None else x + bias
    return x * gate / (1 + torch.exp(-gate)) * scale


def double(x):
    return None if x is None else x.detach().double()


@pytest.mark.parametrize("backend", ["auto", "chunked"])
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("channels", [1, 5, 16, 63, 360])
@pytest.mark.parametrize("rows", [(1,), (3, 7), (2, 5, 4)])
def test_norm_gate(rows, channels, norm, backend):
    wide = torch.randn(*rows, 2 * channels) * 3 + 5
    x, gate = wide.split(channels, -1)  # rows that do not follow each other, as in_proj gives them
    weight, bias = (torch.randn(channels), torch.randn(channels)) if norm else (None, None)
    got = vk.norm_gate(x, gate, weight, bias, norm=norm, eps=1e-4, scale=0.5, backend=backend)
    wanted = oracle(double(x), double(gate), double(weight), double(bias), norm, 1e-4, 0.5)
    torch.testing.assert_close(got.double(), wanted, **TOLERANCES[torch.float32])


@pytest.mark.parametrize("weight", [None, torch.full((24,), 2.0)])
def test_parameters_may_be_missing(weight):
    x, gate = torch.randn(2, 3, 24), torch.randn(2, 3, 24)
    wanted = oracle(double(x), double(gate), double(weight), None, True, 1e-5, 1.0)
    torch.testing.assert_close(vk.norm_gate(x, gate, weight).double(), wanted, **TOLERANCES[torch.float32])


def test_layouts_and_empty_tensors():
    x = torch.randn(4, 6, 24).transpose(0, 1)
    gate = torch.randn(24, 6, 4).permute(1, 2, 0)
    wanted = oracle(x.double(), gate.double(), None, None, True, 1e-5, 1.0)
    torch.testing.assert_close(vk.norm_gate(x, gate).double(), wanted, **TOLERANCES[torch.float32])
    assert vk.norm_gate(x[:0], gate[:0]).shape == (0, 4, 24)


def test_extreme_gates_and_values():
    gate = torch.tensor([-1e30, -100.0, -20.0, 0.0, 20.0, 100.0, 1e30] * 3)
    got = vk.norm_gate(torch.ones(21), gate, norm=False)
    torch.testing.assert_close(got.double(), F.silu(gate.double()), rtol=1e-5, atol=1e-7)
    x = torch.randn(3, 24)
    x[1, 20] = float("nan")
    finite = vk.norm_gate(x, torch.ones_like(x)).isfinite().all(-1)
    assert finite.tolist() == [True, False, True]


def test_half_precision_and_float64_are_torch_s():
    for dtype in (torch.bfloat16, torch.float64):
        x, gate, weight = (torch.randn(2, 24).to(dtype) for _ in range(3))
        assert torch.equal(vk.norm_gate(x, gate, weight[0]), F.layer_norm(x, [24], weight[0]) * F.silu(gate))


@pytest.mark.parametrize("norm", [True, False])
def test_gradients(norm):
    inputs = [torch.randn(2, 24, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    inputs += [torch.randn(24, dtype=torch.float64, requires_grad=True) for _ in range(2 if norm else 0)]
    assert torch.autograd.gradcheck(lambda *t: vk.norm_gate(*t, norm=norm, scale=0.5), inputs)
    single = [t.detach().float().requires_grad_() for t in inputs]
    grad = torch.randn(2, 24)
    got = torch.autograd.grad(vk.norm_gate(*single, norm=norm), single, grad)
    wanted = torch.autograd.grad(vk.norm_gate(*inputs, norm=norm), inputs, grad.double())
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one.double(), other, **TOLERANCES[torch.float32])


def test_results_do_not_depend_on_threads():
    x, gate = torch.randn(2, 500, 96).unbind()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = vk.norm_gate(x, gate)
        torch.set_num_threads(3)
        assert torch.equal(vk.norm_gate(x, gate), one)
    finally:
        torch.set_num_threads(before)


def test_what_does_not_fit_is_named():
    x = torch.randn(2, 24)
    with pytest.raises(ValueError, match="gate must have x's shape"):
        vk.norm_gate(x, x[:, :23])
    with pytest.raises(ValueError, match=r"weight must be \(24,\), got \(23,\)"):
        vk.norm_gate(x, x, x[0, :23])
    with pytest.raises(ValueError, match="bias must be None without a norm"):
        vk.norm_gate(x, x, None, x[0], norm=False)
    with pytest.raises(RuntimeError, match="backend 'triton' cannot run here"):
        vk.norm_gate(x, x, backend="triton")


def test_kernels_are_called_past_the_dispatcher_only_where_nothing_watches():
    from torch.utils.flop_counter import FlopCounterMode

    x = torch.randn(2, 24)
    weight = torch.nn.Parameter(torch.randn(24))
    with torch.no_grad():
        assert is_plain_inference(x, weight, None)
        with FlopCounterMode(display=False):
            assert not is_plain_inference(x)
    assert not is_plain_inference(x, weight)
    assert not is_plain_inference(x.to("meta"))
    seen = []
    torch.func.vmap(lambda row: (seen.append(is_plain_inference(row)), row)[1])(x)
    assert seen == [False]


@pytest.mark.parametrize("channels", [1, 5, 48, 63])
@pytest.mark.parametrize("size", [(1, 7), (2, 5, 9), (1, 11, 40, 50)])
def test_instance_norm(size, channels):
    x, weight, bias = 50 + torch.randn(*size, channels), torch.randn(channels), torch.randn(channels)
    wanted = F.instance_norm(x.double().movedim(-1, 1), weight=weight.double(), bias=bias.double()).movedim(1, -1)
    for backend in ("auto", "chunked"):
        got = vk.instance_norm(x, weight, bias, backend=backend)
        torch.testing.assert_close(got.double(), wanted, **TOLERANCES[torch.float32])
    assert vk.instance_norm(x[:0], weight, bias).shape == (0, *size[1:], channels)


def test_instance_norm_names_what_does_not_fit():
    with pytest.raises(ValueError, match=r"x must be \(B, \*S, C\), got \(3, 4\)"):
        vk.instance_norm(torch.randn(3, 4))
    with pytest.raises(ValueError, match=r"bias must be \(4,\), got \(3,\)"):
        vk.instance_norm(torch.randn(2, 3, 4), torch.ones(4), torch.ones(3))


def test_gradients_of_instance_norm_are_torchs():
    x = torch.randn(2, 6, 5, requires_grad=True)
    (got,) = torch.autograd.grad(vk.instance_norm(x).square().sum(), x)
    (wanted,) = torch.autograd.grad(F.instance_norm(x.movedim(-1, 1)).square().sum(), x)
    torch.testing.assert_close(got, wanted, **TOLERANCES[torch.float32])
