"""State space duality, causal: the scan of Mamba-2, whose heads have one decay each, as products of matrices.

    h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t^T        y_t = C_t h_t + D x_t        dt = softplus(delta + bias)

With one decay for a whole head the recurrence over a chunk of steps is a product with a masked (Q, Q) matrix, and only the
states at the ends of chunks are left to scan. GPUs have kernels of it; elsewhere plain torch does the same, where BLAS has
nearly all of the work.

Source: Mamba-2, arXiv 2405.21060, section 6; its non-causal form is `noncausal_ssd`.

Legend: B batch, L positions, H heads, P channels of a head, G groups of heads that share B and C, N state, c chunks, Q steps.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .backends import choose, chosen
from .derivatives import first_only

__all__ = ["ssd_scan"]

_CHUNK = 64
_LARGEST = 64  # N and P that fit in registers


def ssd_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    softplus: bool = True,
    backend: str = "auto",
) -> Tensor:
    """Selective scan of sequences with a scalar decay per head.

    Args:
        x: (B, L, H, P), floating.
        delta: (B, L, H), the step sizes before bias and softplus.
        A: (H), negative.
        B: (B, L, G, N), with G dividing H: head h reads group h // (H / G).
        C: as B.
        D: (H), the skip, or None.
        bias: (H), added to delta, or None.
        softplus: whether dt = softplus(delta + bias), else dt = delta + bias.
        backend: "auto" or a name of `backends()`. "numba" and "chunked" are plain torch in chunks, "reference" and "loop" the
            recurrence; "triton" takes half precision and N and P up to 64, else "auto" is plain torch on GPUs, too.

    Returns:
        (B, L, H, P) in the dtype of x. States, decays and sums are float32 (float64 for float64 inputs).

    Raises:
        ValueError: shapes that do not belong together.
        RuntimeError: the backend that was asked for cannot run, with the reason.
    """
    _check(x, delta, A, B, C, D, bias)
    kind = torch.float64 if any(t.dtype == torch.float64 for t in (x, delta, A, B, C)) else torch.float32
    backend = chosen(backend)
    name = choose(backend, str(x.device), kind if kind == torch.float64 else x.dtype, 1)
    fits = x.dtype in (torch.bfloat16, torch.float16) and max(B.shape[3], x.shape[3]) <= _LARGEST
    if backend == "triton" and not fits:
        found = f"{x.dtype}, N {B.shape[3]} and P {x.shape[3]}"
        raise RuntimeError(f"backend 'triton' takes half precision and N and P up to {_LARGEST} here, got {found}")
    raw = delta.to(kind) if bias is None else delta.to(kind) + bias.to(kind)
    dt = F.softplus(raw, threshold=50.0) if softplus else raw
    A, D = A.to(kind), None if D is None else D.to(kind)
    if name == "triton" and fits:
        return torch.ops.visionssm.ssd_scan(x, dt, A, B, C, D)[0]
    run = _by_steps if name in ("reference", "loop") else _by_chunks
    y = run(x.to(kind), dt, A, B.to(kind), C.to(kind))
    return (y if D is None else y + D[:, None] * x.to(kind)).to(x.dtype)


def _check(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, bias: Tensor | None) -> None:
    if x.dim() != 4 or not x.is_floating_point():
        raise ValueError(f"x must be floating (B, L, H, P), got {x.dtype} {tuple(x.shape)}")
    heads = x.shape[2]
    if delta.shape != x.shape[:3]:
        raise ValueError(f"delta must be (B, L, H) = {tuple(x.shape[:3])}, got {tuple(delta.shape)}")
    for name, parameter in (("A", A), ("D", D), ("bias", bias)):
        if parameter is not None and parameter.shape != (heads,):
            raise ValueError(f"{name} must be ({heads},), got {tuple(parameter.shape)}")
    if B.dim() != 4 or B.shape[:2] != x.shape[:2] or B.shape[2] < 1 or heads % B.shape[2]:
        raise ValueError(f"B must be (B, L, G, N) with G dividing {heads} for x {tuple(x.shape)}, got {tuple(B.shape)}")
    if C.shape != B.shape:
        raise ValueError(f"C must be shaped like B, {tuple(B.shape)}, got {tuple(C.shape)}")


def _by_steps(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """The recurrence as it is written: the ground truth."""
    B, C = (t.repeat_interleave(x.shape[2] // t.shape[2], 2) for t in (B, C))
    h = x.new_zeros(x.shape[0], x.shape[2], B.shape[3], x.shape[3])
    outputs = []
    for t in range(x.shape[1]):
        new = (dt[:, t, :, None] * B[:, t]).unsqueeze(-1) * x[:, t, :, None]
        h = torch.exp(dt[:, t] * A)[..., None, None] * h + new
        outputs.append(torch.einsum("bhn,bhnp->bhp", C[:, t], h))
    return torch.stack(outputs, 1) if outputs else torch.zeros_like(x)


def _by_chunks(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Products within chunks, a loop over their end states; decays are differences of sums, never quotients."""
    length, share = x.shape[1], x.shape[2] // B.shape[2]
    chunks = max(1, -(-length // _CHUNK))

    def cut(t: Tensor) -> Tensor:  # (B, c, Q, ...); a step with dt = 0 leaves the state as it is
        return F.pad(t, (0, 0) * (t.dim() - 2) + (0, chunks * _CHUNK - length)).unflatten(1, (chunks, _CHUNK))

    x_, dt_, B_, C_ = cut(x), cut(dt), cut(B), cut(C)
    a = (dt_ * A).cumsum(2)
    gap = (a[:, :, :, None] - a[:, :, None]).movedim(-1, 2)  # (B, c, H, Q, Q)
    past = torch.ones(_CHUNK, _CHUNK, dtype=torch.bool, device=x.device).tril()
    decay = gap.masked_fill(~past, -torch.inf).exp()
    products = torch.einsum("bcqgn,bcsgn->bcgqs", C_, B_).repeat_interleave(share, 2)
    inputs = x_ * dt_[..., None]
    y = torch.einsum("bchqs,bcshp->bcqhp", products * decay, inputs)
    B_, C_ = (t.repeat_interleave(share, 3) for t in (B_, C_))
    added = torch.einsum("bcshn,bcsh,bcshp->bchnp", B_, (a[:, :, -1:] - a).exp(), inputs)
    state, entering = torch.zeros_like(added[:, 0]), []
    for c in range(chunks):
        entering.append(state)
        state = a[:, c, -1].exp()[..., None, None] * state + added[:, c]
    y = y + torch.einsum("bcqhn,bcqh,bchnp->bcqhp", C_, a.exp(), torch.stack(entering, 1))
    return y.flatten(1, 2)[:, :length]


# --- the operator: GPUs only ------------------------------------------------------------------------------------


def _triton() -> Any:
    return importlib.import_module(".triton.ssd", __package__)


@torch.library.custom_op("visionssm::ssd_scan", mutates_args=())
def _ssd_scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None) -> tuple[Tensor, Tensor]:
    return _triton().forward(x, dt, A, B, C, D)


@_ssd_scan.register_fake
def _(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None) -> tuple[Tensor, Tensor]:
    chunk = _triton().CHUNK
    states = (x.shape[0], (x.shape[1] + chunk - 1) // chunk, x.shape[2], B.shape[3], x.shape[3])
    return x.new_empty(x.shape), x.new_empty(states, dtype=torch.float32)


@torch.library.custom_op("visionssm::ssd_scan_backward", mutates_args=())
def _ssd_scan_backward(
    grad: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, states: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    *grads, dD = _triton().backward(grad, x, dt, A, B, C, D, states)
    return *grads, A.new_empty(0) if dD is None else dD


@_ssd_scan_backward.register_fake
def _(grad: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    return tuple(grad.new_empty(0) if x is None else x.new_empty(x.shape) for x in inputs[:6])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 6
    *grads, dD = torch.ops.visionssm.ssd_scan_backward(grad, *ctx.saved_tensors)
    return *grads, None if ctx.saved_tensors[5] is None else dD


_ssd_scan.register_autograd(_backward, setup_context=_setup_context)
first_only(_ssd_scan_backward)


@register_flop_formula(torch.ops.visionssm.ssd_scan)
def ssd_flops(x_shape: Any, dt_shape: Any, A_shape: Any, B_shape: Any, *args: Any, out_shape: Any = None,
              **kwargs: Any) -> int:  # fmt: skip
    """The products of a chunk: 2 L H (Q (N + P) + 2 N P)."""
    batch, length, heads, P = x_shape
    N, Q = B_shape[3], _CHUNK
    return 2 * batch * length * heads * (Q * (N + P) + 2 * N * P)


@register_flop_formula(torch.ops.visionssm.ssd_scan_backward)
def ssd_backward_flops(grad_shape: Any, *shapes: Any, out_shape: Any = None, **kwargs: Any) -> int:
    """Twice the forward."""
    return 2 * ssd_flops(*shapes[:4])
