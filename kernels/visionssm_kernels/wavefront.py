"""The native two-dimensional scan: the state of a cell comes from the cell above and the cell to the left.

    dt = softplus(delta + bias), once for "top" and once for "left";  g = exp(dt A);  v = dt B u
    first row:        h = gL h[i, j-1] + vL
    first column:     h = gT h[i-1, j] + vT
    inside:           h = (gL h[i, j-1] + vL + gT h[i-1, j] + vT) / 2
    y = C . h + D u

The first cell, (0, 0), belongs to the first row. Cells of one anti-diagonal do not depend on each other.

Source: Mamba2D, arXiv 2412.16146, section 3.2; cocoalex00/Mamba2D@9acb361.

Legend: B batch, H rows, W columns, D channels, N state, G = 2 (top, left), S = H + W - 1 anti-diagonals.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .backends import choose, resolve
from .derivatives import first_only

__all__ = ["wavefront_scan"]

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_MODULES = {"numba": ".cpu.wavefront", "triton": ".triton.wavefront"}


def wavefront_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    reverse: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Selective scan of an image from its top left corner, over rows and columns at once.

    Args:
        u: (B, H, W, D), the input.
        delta: (B, H, W, 2, D), step sizes before bias and softplus: those from above, then those from the left.
        A: (2, D, N), negative; float32 (half precision is raised to it).
        B: (B, H, W, 2, N).
        C: (B, H, W, N).
        D: (D), the skip, or None.
        bias: (2, D), added to delta, or None.
        reverse: from the bottom right corner instead, where "above" is below and "left" is right.
        backend: "auto" or a name of `backends()`; "chunked" goes by anti-diagonals, "reference" and "loop" by cells.

    Returns:
        (B, H, W, D) in the dtype of u. The state is float32 in every implementation (float64 for float64 inputs).

    Raises:
        TypeError, ValueError: naming the argument that does not fit.
        RuntimeError: the backend that was asked for cannot run, with the reason.
    """
    A, D, bias = _single(A), _single(D), _single(bias)
    if torch.jit.is_tracing():  # sizes are not numbers there; the operator chooses when it runs
        return torch.ops.visionssm.wavefront_scan(u, delta, A, B, C, D, bias, reverse, backend)
    _check(u, delta, A, B, C, D, bias)
    widest = torch.float64 if any(t.dtype == torch.float64 for t in (u, delta, A, B, C)) else u.dtype
    name = choose(backend, str(u.device), widest, A.shape[-1])
    if name in _MODULES or torch.compiler.is_compiling():
        return torch.ops.visionssm.wavefront_scan(u, delta, A, B, C, D, bias, reverse, name)
    return _plain(name)(u, delta, A, B, C, D, bias, reverse)


def _single(x: Any) -> Any:
    """A parameter in at least float32."""
    return x.float() if x is not None and x.dtype in (torch.float16, torch.bfloat16) else x


def _check(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, bias: Tensor | None) -> None:
    named = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "bias": bias}
    for name, tensor in named.items():
        if tensor is None:
            continue
        if not isinstance(tensor, Tensor) or tensor.dtype not in _FLOATS:
            kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(f"{name} must be a floating-point tensor, got {kind}")
        if tensor.device != u.device:
            raise ValueError(f"{name} is on {tensor.device} but u is on {u.device}")
    if u.dim() != 4 or u.shape[1] < 1 or u.shape[2] < 1:
        raise ValueError(f"u must be (B, H, W, D) with H and W at least 1, got {tuple(u.shape)}")
    channels = u.shape[3]
    if A.dim() != 3 or A.shape[:2] != (2, channels) or A.shape[2] < 1:
        raise ValueError(f"A must be (2, {channels}, N), N at least 1, for u {tuple(u.shape)}, got {tuple(A.shape)}")
    wanted = {
        "delta": (*u.shape[:3], 2, channels),
        "B": (*u.shape[:3], 2, A.shape[2]),
        "C": (*u.shape[:3], A.shape[2]),
        "D": (channels,),
        "bias": (2, channels),
    }
    for name, shape in wanted.items():
        tensor = named[name]
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name} must be ({', '.join(map(str, shape))}), got {tuple(tensor.shape)}")


# --- plain torch ------------------------------------------------------------------------------------------------


def _plain(name: str) -> Any:
    return _by_diagonals if name == "chunked" else _by_cells


def _inputs(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, bias: Tensor | None, reverse: bool) -> Any:
    """u, dt, A, B, C in the dtype of the state, seen from the corner where the scan begins."""
    kind = torch.float64 if torch.float64 in (u.dtype, delta.dtype, A.dtype) else torch.float32
    u, delta, A, B, C = (x.to(kind) for x in (u, delta, A, B, C))
    dt = F.softplus(delta if bias is None else delta + bias.to(kind), threshold=50.0)
    if reverse:
        u, dt, B, C = (x.flip(1, 2) for x in (u, dt, B, C))
    return u, dt, A, B, C


def _output(y: Tensor, u: Tensor, D: Tensor | None, reverse: bool) -> Tensor:
    y = y.flip(1, 2) if reverse else y
    return (y if D is None else y + u.to(y.dtype) * D.to(y.dtype)).to(u.dtype)


def _by_cells(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, bias: Tensor | None, reverse: bool
) -> Tensor:
    """The recurrence as it is written: the ground truth."""
    x, dt, A_, B_, C_ = _inputs(u, delta, A, B, C, bias, reverse)
    above: list[Tensor] = []
    rows = []
    for i in range(x.shape[1]):
        here: list[Tensor] = []
        for j in range(x.shape[2]):
            g = torch.exp(dt[:, i, j, :, :, None] * A_)  # (B, 2, D, N)
            v = dt[:, i, j, :, :, None] * B_[:, i, j, :, None] * x[:, i, j, None, :, None]
            top = g[:, 0] * above[j] + v[:, 0] if i else None
            left = (g[:, 1] * here[j - 1] if j else 0) + v[:, 1]
            here.append(left if top is None else (top + left) / 2 if j else top)
        rows.append(torch.stack([(h * C_[:, i, j, None]).sum(-1) for j, h in enumerate(here)], 1))
        above = here
    return _output(torch.stack(rows, 1), u, D, reverse)


def _skew(x: Tensor) -> Tensor:
    """(B, H, W, ...) -> (B, H, S, ...): cell (i, j) at (i, i + j), zeros where there is none; a copy with longer rows."""
    rows, columns = x.shape[1], x.shape[2]
    padded = F.pad(x, (0, 0) * (x.dim() - 3) + (0, rows)).flatten(1, 2)
    return padded[:, : rows * (rows + columns - 1)].unflatten(1, (rows, rows + columns - 1))


def _by_diagonals(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, bias: Tensor | None, reverse: bool
) -> Tensor:
    """All cells of an anti-diagonal at once; the state has a place for every row."""
    x, dt, A_, B_, C_ = _inputs(u, delta, A, B, C, bias, reverse)
    rows, columns = x.shape[1], x.shape[2]
    weights = x.new_full((1, rows, columns, 2), 0.5)
    weights[:, 0, :, 0], weights[:, 0, :, 1] = 0.0, 1.0
    weights[:, 1:, 0, 0], weights[:, 1:, 0, 1] = 1.0, 0.0
    x_, dt_, B_, C_, w = _skew(x), _skew(dt), _skew(B_), _skew(C_), _skew(weights)  # no cell: weight 0, state 0
    h = x.new_zeros(x.shape[0], rows, x.shape[3], A.shape[2])
    outputs = []
    for s in range(rows + columns - 1):
        step = dt_[:, :, s, :, :, None]  # (B, H, 2, D, 1)
        v = step * B_[:, :, s, :, None] * x_[:, :, s, None, :, None]
        before = torch.stack([F.pad(h, (0, 0, 0, 0, 1, 0))[:, :-1], h], 2)  # from above: one row further up
        h = (w[:, :, s, :, None, None] * (torch.exp(step * A_) * before + v)).sum(2)
        outputs.append((h * C_[:, :, s, None]).sum(-1))
    y = F.pad(torch.stack(outputs, 2), (0, 0, 0, 1)).flatten(1, 2)  # undo the skew: rows of W + H with a shift each
    index = torch.arange(rows, device=y.device)[:, None] * (rows + columns + 1) + torch.arange(columns, device=y.device)
    return _output(y[:, index], u, D, reverse)


# --- the operator -----------------------------------------------------------------------------------------------


def _module(name: str, u: Tensor, d_state: int) -> Any:
    name = resolve(name, str(u.device), u.dtype, d_state)
    return importlib.import_module(_MODULES[name], __package__) if name in _MODULES else name


@torch.library.custom_op("visionssm::wavefront_scan", mutates_args=())
def _wavefront_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    bias: Tensor | None,
    reverse: bool,
    backend: str,
) -> Tensor:
    _check(u, delta, A, B, C, D, bias)  # a graph may be given what it was not made for
    module = _module(backend, u, A.shape[-1])
    if isinstance(module, str):
        return _plain(module)(u, delta, A, B, C, D, bias, reverse).contiguous()
    return module.forward(u, delta, A, B, C, D, bias, reverse)


@_wavefront_scan.register_fake
def _(u: Tensor, *others: Any) -> Tensor:
    return u.new_empty(u.shape)


@torch.library.custom_op("visionssm::wavefront_scan_backward", mutates_args=())
def _wavefront_scan_backward(
    grad: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    bias: Tensor | None,
    reverse: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    module = _module(backend, u, A.shape[-1])
    *grads, dD, dbias = module.backward(grad, u, delta, A, B, C, D, bias, reverse)
    return *grads, u.new_empty(0) if dD is None else dD, u.new_empty(0) if dbias is None else dbias


@_wavefront_scan_backward.register_fake
def _(grad: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    return tuple(grad.new_empty(0) if x is None else x.new_empty(x.shape) for x in inputs[:7])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.reverse, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    tensors = ctx.saved_tensors
    u, A = tensors[0], tensors[2]
    module = _module(ctx.backend, u, A.shape[-1])
    if isinstance(module, str):  # inside an operator there is no autograd to run
        present = [x.detach().requires_grad_() for x in tensors if x is not None]
        given = iter(present)
        with torch.enable_grad():
            y = _plain(module)(*(None if x is None else next(given) for x in tensors), ctx.reverse)
        found = iter(torch.autograd.grad(y, present, grad, allow_unused=True, materialize_grads=True))
        return *(None if x is None else next(found).contiguous() for x in tensors), None, None
    *grads, dD, dbias = torch.ops.visionssm.wavefront_scan_backward(grad, *tensors, ctx.reverse, ctx.backend)
    return *grads, None if tensors[5] is None else dD, None if tensors[6] is None else dbias, None, None


_wavefront_scan.register_autograd(_backward, setup_context=_setup_context)
first_only(_wavefront_scan_backward)


@register_flop_formula(torch.ops.visionssm.wavefront_scan)
def wavefront_flops(u_shape: Any, delta_shape: Any, A_shape: Any, B_shape: Any, C_shape: Any, D_shape: Any = None,
                    *args: Any, out_shape: Any = None, **kwargs: Any) -> int:  # fmt: skip
    """9 B H W D N for each of the two directions, as a scan along two routes, plus B H W D for the skip."""
    batch, rows, columns, channels = u_shape
    return batch * rows * columns * channels * (18 * A_shape[2] + (D_shape is not None))


@register_flop_formula(torch.ops.visionssm.wavefront_scan_backward)
def wavefront_backward_flops(grad_shape: Any, *shapes: Any, out_shape: Any = None, **kwargs: Any) -> int:
    """Twice the forward."""
    return 2 * wavefront_flops(*shapes[:6])
