"""A plain-torch implementation behind the kernels' contract, so that the custom operators can run it too.

Eager and compiled code calls plain torch directly, under autograd. Traced and scripted code has only the operators;
there the gradients come from running autograd in the operator's backward formula.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

__all__ = ["Composite"]


class Composite:
    """The kernels' contract (see `ops`) over a module with `routed_scan` and `route_conv`.

    Args:
        module: `chunked` or `reference`.
    """

    CHUNK = None  # keeps no checkpoints: the backward starts from the inputs

    def __init__(self, module: ModuleType) -> None:
        self.module = module

    def routed_scan_forward(
        self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, bias: Tensor | None,
        order: Tensor | None, softplus: bool, merge: str, save_checkpoints: bool, save_states: bool,
        segment: int = 0, phase: int = 0,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """y, no checkpoints, and the states if asked for."""
        y, states = self.module.routed_scan(
            u, delta, A, B, C, D, bias, order, softplus, merge, save_states, segment, phase
        )
        nothing = A.new_empty(0, dtype=torch.float32)
        return y.contiguous(), nothing, nothing.clone() if states is None else states.float().contiguous()

    def routed_scan_backward(
        self, grad_y: Tensor, grad_states: Tensor | None, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor,
        D: Tensor | None, bias: Tensor | None, order: Tensor | None, softplus: bool, merge: str, checkpoints: Tensor,
        segment: int = 0, phase: int = 0,
    ) -> tuple[Tensor | None, ...]:  # fmt: skip
        """The gradients of u, delta, A, B, C, D and bias."""
        inputs = [None if x is None else x.detach().requires_grad_() for x in (u, delta, A, B, C, D, bias)]
        with torch.enable_grad():
            y, states = self.module.routed_scan(
                *inputs, order, softplus, merge, grad_states is not None, segment, phase
            )
        outputs, grads = [y], [grad_y]
        if grad_states is not None:
            outputs, grads = [y, states], [grad_y, grad_states.to(states.dtype)]
        return _gradients(outputs, inputs, grads)

    def route_conv_forward(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, order: Tensor | None, silu: bool
    ) -> Tensor:
        """u."""
        return self.module.route_conv(x, weight, bias, order, silu).contiguous()

    def route_conv_backward(
        self, grad_u: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, order: Tensor | None, silu: bool
    ) -> tuple[Tensor | None, ...]:
        """The gradients of x, weight and bias."""
        inputs = [None if x is None else x.detach().requires_grad_() for x in (x, weight, bias)]
        with torch.enable_grad():
            u = self.module.route_conv(*inputs, order, silu)
        return _gradients([u], inputs, [grad_u])


def _gradients(outputs: list[Tensor], inputs: list[Tensor | None], grads: list[Tensor]) -> tuple[Tensor | None, ...]:
    present = [x for x in inputs if x is not None]
    found = iter(torch.autograd.grad(outputs, present, grads, allow_unused=True, materialize_grads=True))
    return tuple(None if x is None else next(found).clone(memory_format=torch.contiguous_format) for x in inputs)
