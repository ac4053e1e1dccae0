"""Linear layers against torch's, and that all but plain inference goes through torch."""

import sys

import pytest
import torch
import torch.nn.functional as F
from torch.fx import symbolic_trace
from torch.utils._python_dispatch import TorchDispatchMode

import visionssm_kernels as vk
from tests.tolerances import TOLERANCES
from visionssm.layers import Linear, Mlp

module = sys.modules[vk.linear.__module__]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 8), (3, 24), (2, 196, 96), (2, 7, 9, 40), (1, 50, 1), (0, 20, 12)])
def test_linear(shape, bias):
    x, weight = torch.randn(*shape, 2).select(-1, 0), torch.randn(33, shape[-1])
    shift = torch.randn(33) if bias else None
    with torch.no_grad():
        got = vk.linear(x, weight, shift)
    wanted = F.linear(x.double(), weight.double(), None if shift is None else shift.double())
    torch.testing.assert_close(got.double(), wanted, **TOLERANCES[torch.float32])
    assert got.is_contiguous()


@pytest.mark.parametrize("length", [0, 7, 200])
@pytest.mark.parametrize("shared", [False, True])
def test_a_layer_per_route(length, shared):
    weight = torch.randn(3, 33, 24)
    x = torch.randn(2, length, 1, 24).expand(-1, -1, 3, -1) if shared else torch.randn(2, length, 3, 24)
    wanted = torch.einsum("blkc,kdc->blkd", x.double(), weight.double())
    torch.testing.assert_close(vk.linear_routes(x, weight).double(), wanted, **TOLERANCES[torch.float32])
    trained = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(vk.linear_routes(trained, weight).sum(), trained)
    torch.testing.assert_close(grad, weight.sum(1).expand_as(x), **TOLERANCES[torch.float32])


@pytest.mark.parametrize("rows", [3, 200])
def test_gelu(rows):
    x, weight, bias = torch.randn(rows, 24), torch.randn(33, 24), torch.randn(33)
    wanted = F.gelu(F.linear(x.double(), weight.double(), bias.double()))
    torch.testing.assert_close(vk.linear(x, weight, bias, gelu=True).double(), wanted, **TOLERANCES[torch.float32])


def test_only_plain_inference_of_many_rows_goes_to_onednn(monkeypatch):
    """Whatever this machine has: the product in oneDNN is replaced by one that can be told."""
    monkeypatch.setattr(module, "_onednn", lambda: lambda x, *rest: (x, *rest))
    x, layer = torch.randn(4, 49, 32), Linear(32, 64)
    with torch.no_grad():
        assert layer(x)[3:] == ("none", [], "")
        assert vk.linear(x, layer.weight, gelu=True)[2:] == (None, "gelu", [], "none")
        assert isinstance(layer(x[0, :47]), torch.Tensor)
        with torch.autocast("cpu", torch.bfloat16):
            assert isinstance(layer(x), torch.Tensor)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))  # with gradients it is torch's


@pytest.mark.parametrize("shape", [(2, 8, 32), (3, 8, 31), (8, 32)])
def test_a_layer_per_route_says_what_does_not_fit(shape):
    with pytest.raises(ValueError, match=r"weight \(K, C', C\), got \(1, 49, 3, 32\)"):
        vk.linear_routes(torch.randn(1, 49, 3, 32), torch.randn(shape))


def test_a_layer_per_route_goes_to_onednn_as_one_does(monkeypatch):
    found = []
    monkeypatch.setattr(
        module, "_onednn", lambda: lambda x, weight, *rest: (found.append(x.shape), F.linear(x, weight))[1]
    )
    x, weight = torch.randn(1, 49, 3, 32), torch.randn(3, 8, 32)
    vk.linear_routes(x, weight)
    assert found == [(1, 49, 32)] * 3
    vk.linear_routes(x[:, :47], weight)  # too few rows of each, though not of all together
    vk.linear_routes(x, weight.requires_grad_())
    assert len(found) == 3


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_are_torchs(dtype):
    x, weight = torch.randn(60, 24, dtype=dtype), torch.randn(8, 24, dtype=dtype)
    assert torch.equal(vk.linear(x, weight), F.linear(x, weight))


@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # torch's own, on leaving the block
def test_autocast_and_onednn_turned_off():
    x, weight = torch.randn(60, 24), torch.randn(8, 24)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert vk.linear(x, weight).dtype == torch.bfloat16
    with torch.no_grad(), torch.backends.mkldnn.flags(enabled=False):
        assert torch.equal(vk.linear(x, weight), F.linear(x, weight))


def test_gradients():
    x, layer = torch.randn(60, 24, requires_grad=True), Linear(24, 8)
    layer(x).square().sum().backward()
    copy = torch.nn.Linear(24, 8)
    copy.load_state_dict(layer.state_dict())
    y = x.detach().requires_grad_()
    copy(y).square().sum().backward()
    assert torch.equal(x.grad, y.grad)
    assert torch.equal(layer.weight.grad, copy.weight.grad)


def test_modes_that_watch_torch_see_its_product():
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Watch():
        Linear(24, 8)(torch.randn(60, 24))
    assert "addmm" in seen


def test_graphs():
    mlp, x = Mlp(24, 48).eval(), torch.randn(2, 30, 24)
    wanted = mlp(x)
    torch.testing.assert_close(torch.jit.script(mlp)(x), wanted, **TOLERANCES[torch.float32])
    torch.testing.assert_close(torch.jit.trace(mlp, x)(x), wanted, **TOLERANCES[torch.float32])
    torch.testing.assert_close(
        torch.compile(mlp, fullgraph=True, backend="eager")(x), wanted, **TOLERANCES[torch.float32]
    )
    with torch.no_grad():
        torch.testing.assert_close(torch.export.export(mlp, (x,)).module()(x), wanted, **TOLERANCES[torch.float32])
    linear = Linear(24, 8)
    torch.testing.assert_close(symbolic_trace(linear)(x), linear(x), **TOLERANCES[torch.float32])
    assert set(mlp.state_dict()) == {"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"}
