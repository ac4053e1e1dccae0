"""Every implementation of the scan gives what the obvious loop gives, along every order."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.tolerances import TOLERANCES
from visionssm.scans import create_scan, list_scans
from visionssm_kernels import backends, routed_scan

ORDERS = [(name, ndim) for ndim in (2, 3) for name in list_scans(ndim)]
HERE = [name for name in backends("cpu", d_state=2).available if name not in ("reference", "loop")]  # both are the loop
SIDES = {2: st.integers(1, 9), 3: st.integers(1, 4)}


def scanned(order: Tensor, tensors: list[Tensor], probe: Tensor, backend: str, merge: str) -> list[Tensor]:
    """The output and the gradients of everything."""
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    y = routed_scan(*leaves, order=order, merge=merge, backend=backend)
    return [y.detach(), *torch.autograd.grad((y * probe).sum(), leaves)]


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize(("name", "ndim"), ORDERS)
@settings(max_examples=2)
@given(data=st.data())
def test_kernel_is_reference(name: str, ndim: int, backend: str, data: st.DataObject) -> None:
    size = data.draw(st.tuples(*[SIDES[ndim]] * ndim))
    order = create_scan(name, ndim=ndim).routes(size).int()
    length, routes = int(torch.tensor(size).prod()), len(order)
    torch.manual_seed(length)
    shapes = [(2, length, 1, 3), (2, length, routes, 3), (routes, 3, 2), (2, length, routes, 2), (2, length, routes, 2)]
    tensors = [torch.randn(shape) for shape in (*shapes, (routes, 3), (routes, 3))]
    tensors[2] = -tensors[2].abs()
    for merge in ("sum", "none"):
        probe = torch.randn(2, length, 3) if merge == "sum" else torch.randn(2, length, routes, 3)
        got, wanted = (scanned(order, tensors, probe, which, merge) for which in (backend, "reference"))
        for one, other in zip(got, wanted, strict=True):
            torch.testing.assert_close(one, other, **TOLERANCES[torch.float32])
