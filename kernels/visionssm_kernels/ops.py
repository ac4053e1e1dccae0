"""The only door to the kernels: validation, custom operators, fakes, gradients, FLOP formulas.

Legend: B batch, L image positions, D channels, N state, K routes, Ku 1 or K, R rank of dt's projection, T steps of a route,
W taps of a convolution.
"""

from __future__ import annotations

import weakref
from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from . import chunked, loop, reference
from .backends import choose, is_plain_inference, module_of, projects, resolve, warn_if_slow
from .composite import Composite
from .derivatives import first_only
from .projection import project, project_backward

__all__ = ["route_conv", "routed_scan", "selective_scan"]

_PLAIN_TORCH = {"chunked": chunked, "reference": reference, "loop": loop}
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@overload
def routed_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = ..., bias: Tensor | None = ..., *,
    order: Tensor | None = ..., merge: Literal["sum", "none"] = ..., softplus: bool = ...,
    return_states: Literal[False] = ..., segment: int = ..., phase: int = ..., dt_weight: Tensor | None = ...,
    backend: str = ...,
) -> Tensor: ...  # fmt: skip


@overload
def routed_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = ..., bias: Tensor | None = ..., *,
    order: Tensor | None = ..., merge: Literal["sum", "none"] = ..., softplus: bool = ...,
    return_states: Literal[True], segment: int = ..., phase: int = ..., dt_weight: Tensor | None = ...,
    backend: str = ...,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip


def routed_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    order: Tensor | None = None,
    merge: Literal["sum", "none"] = "sum",
    softplus: bool = True,
    return_states: bool = False,
    segment: int = 0,
    phase: int = 0,
    dt_weight: Tensor | None = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Selective scan of an image or volume along K routes at once.

    Route k reads u, delta, B and C at position `order[k, t]` in step t, runs the recurrence (Mamba, arXiv 2312.00752)

        dt_t = softplus(delta_t + bias);  h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t;  y_t = C_t . h_t + D u_t

    and writes y back to the same position. Nothing is permuted or copied: all inputs and outputs are in image order.

    Args:
        u: (B, L, Ku, D), the input; Ku is 1 if all routes read the same, else K.
        delta: (B, L, K, D), the step sizes before bias and softplus; with `dt_weight` (B, L, K, R), what they are projected from.
        A: (K, D, N), negative; float32 (half precision is raised to it).
        B: (B, L, K, N), the input matrix of every position.
        C: (B, L, K, N), the output matrix of every position.
        D: (K, D), the skip connection, or None.
        bias: (K, D), added to delta, or None.
        order: integer (K, T), or (B, K, T) for a table per image: the position visited at each step. -1 is a padding
            step: a zero token (u, delta, B and C are 0), over which the state decays by softplus(bias). A route visits
            a position at most once and may leave some out. None: every route is 0, 1, ..., L-1.
        merge: "sum" adds the routes up, "none" keeps them apart.
        softplus: whether dt = softplus(delta + bias), else dt = delta + bias.
        return_states: also return the state after the step that visited each position.
        segment: the state restarts from zero every so many steps of a route: before step t where (t + phase) is a multiple of
            it. 0 for never.
        phase: see `segment`; not negative.
        dt_weight: (K, D, R), or None. With it the step sizes are delta_t W^T, one product per route, added up in float32; the
            weight is rounded to delta's dtype where that is half precision, as autocast does. On GPUs, and on CPUs in float32 (R
            up to 64), the scan multiplies as it goes and no (B, L, K, D) is made in the forward; elsewhere the product comes
            first. The backward makes it again: the gradients of both factors are products with delta's own gradient, as large as
            it, and are BLAS's, the same bits every time, where blocks of channels would have to add theirs up by atomics.
        backend: "auto" or a name of `backends()`.

    Returns:
        y of u's dtype, (B, L, D) for merge="sum", (B, L, K, D) for merge="none"; 0 where no route came by. With
        return_states also the states, float32 (B, L, K, D, N), 0 where the route never was. The state, dt, A and D are
        float32 in every implementation (float64 for float64 inputs).

    Raises:
        TypeError, ValueError: naming the argument that does not fit.
        RuntimeError: the backend that was asked for cannot run, with the reason.
    """
    if torch.jit.is_tracing():  # sizes are not numbers there; the operator chooses when it runs
        y, _, states = torch.ops.visionssm.routed_scan(
            u,
            delta,
            _single(A),
            B,
            C,
            _single(D),
            _single(bias),
            _int32(order),
            softplus,
            merge,
            False,
            return_states,
            backend,
            segment,
            phase,
            _single(dt_weight),
        )
        return (y, states) if return_states else y
    K, order = _check_scan(u, delta, A, B, C, D, bias, order, merge, dt_weight)
    if segment < 0 or phase < 0:
        raise ValueError(f"segment and phase must not be negative, got {segment} and {phase}")
    A, D, bias, dt_weight = _single(A), _single(D), _single(bias), _single(dt_weight)
    device, d_state = str(u.device), A.shape[-1]
    name = choose(backend, device, _widest(u, delta, B, C, A, dt_weight), d_state)
    delta, weights = _projected(name, delta, dt_weight)
    if name in _PLAIN_TORCH:
        steps = u.shape[1] if order is None else order.shape[-1]
        if not torch.compiler.is_compiling():
            warn_if_slow(name, backend, u.shape[0] * K * steps * A[0].numel(), device, u.dtype, d_state)
        y, states = _PLAIN_TORCH[name].routed_scan(
            u, delta, A, B, C, D, bias, order, softplus, merge, return_states, segment, phase
        )
    elif is_plain_inference(u, delta, A, B, C, D, bias, order, *weights):
        inputs = (u, delta, A, B, C, D, bias, order)
        y, _, states = module_of(name).routed_scan_forward(
            *inputs, softplus, merge, False, return_states, segment, phase, *weights
        )
    else:
        # an exported program must not hold a size that chunks decide; its backward would run the forward again
        needs_grad = torch.is_grad_enabled() and not torch.compiler.is_exporting()
        tensors = (u, delta, A, B, C, D, bias)
        needs_grad = needs_grad and any(t is not None and t.requires_grad for t in (*tensors, *weights))
        y, _, states = torch.ops.visionssm.routed_scan(
            *tensors, order, softplus, merge, needs_grad, return_states, name, segment, phase, *weights
        )
    if return_states:
        assert states is not None
        return y, states
    return y


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    *,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Selective scan of sequences: a drop-in for mamba_ssm's `selective_scan_fn`, on every machine.

    Args:
        u: (B, D, L).
        delta: (B, D, L).
        A: (D, N), real.
        B: (D, N), (B, N, L) or (B, G, N, L) with G groups of D / G channels.
        C: as B.
        D: (D,) or None.
        z: (B, D, L) or None: the output is multiplied by SiLU(z).
        delta_bias: (D,) or None.
        delta_softplus: whether dt = softplus(delta + delta_bias).
        return_last_state: also return the last state (no gradient flows through it, as in mamba_ssm).
        backend: "auto" or a name of `backends()`.

    Returns:
        y (B, D, L) in u's dtype; with return_last_state also (B, D, N) float32.

    Raises:
        TypeError, ValueError: naming the argument that does not fit.
    """
    _require(u.dim() == 3, f"u must be (B, D, L), got {tuple(u.shape)}")
    _require(delta.shape == u.shape, f"delta must have u's shape {tuple(u.shape)}, got {tuple(delta.shape)}")
    _require(not A.is_complex(), "A is complex; only the real recurrence is supported", TypeError)
    channels, N = u.shape[1], A.shape[-1]
    _require(A.shape == (channels, N), f"A must be (D, N) with D = {channels}, got {tuple(A.shape)}")
    fixed = B.dim() == 2 or C.dim() == 2  # a matrix per channel: every channel is a group of its own
    groups = channels if fixed else max(m.shape[1] if m.dim() == 4 else 1 for m in (B, C))
    _require(
        channels % max(groups, 1) == 0,
        f"u has {channels} channels, not divisible into {groups} groups of B and C",
    )

    def by_position(m: Tensor, what: str) -> Tensor:  # -> (B, L, G, N)
        if m.dim() == 2:
            _require(m.shape == (channels, N), f"{what} must be (D, N) = {(channels, N)}, got {tuple(m.shape)}")
            return m.expand(u.shape[0], u.shape[2], channels, N)
        m = m.unsqueeze(1) if m.dim() == 3 else m
        fits = m.dim() == 4 and m.shape[0] == u.shape[0] and m.shape[2:] == (N, u.shape[2])
        fits = fits and m.shape[1] > 0 and groups % m.shape[1] == 0
        _require(
            fits,
            f"{what} must be (D, N), (B, N, L) or (B, G, N, L), got {tuple(m.shape)} for u {tuple(u.shape)}",
        )
        return m.repeat_interleave(groups // m.shape[1], dim=1).permute(0, 3, 1, 2)

    def grouped(x: Tensor) -> Tensor:  # (B, D, L) -> (B, L, G, D / G)
        return x.transpose(1, 2).unflatten(2, (groups, channels // groups))

    def per_channel(p: Tensor | None, what: str) -> Tensor | None:
        _require(p is None or p.shape == (channels,), f"{what} must be ({channels},)")
        return None if p is None else p.reshape(groups, -1)

    args = (grouped(u), grouped(delta), A.reshape(groups, -1, N), by_position(B, "B"), by_position(C, "C"))
    params = (per_channel(D, "D"), per_channel(delta_bias, "delta_bias"))
    y = routed_scan(*args, *params, merge="none", softplus=delta_softplus, backend=backend)
    y = y.flatten(2).transpose(1, 2)
    if z is not None:
        _require(z.shape == u.shape, f"z must have u's shape {tuple(u.shape)}, got {tuple(z.shape)}")
        y = (y.float() * F.silu(z.float())).to(u.dtype) if u.dtype != torch.float64 else y * F.silu(z)
    return (y, _last_state(args, params, delta_softplus)) if return_last_state else y


@torch.no_grad()
def _last_state(args: tuple[Tensor, ...], params: tuple[Tensor | None, ...], softplus: bool) -> Tensor:
    """The state after the last step, (B, D, N): each step weighs in with the decay of all dt after it."""
    u, delta, A, B, _ = (x.double() if x.dtype == torch.float64 else x.float() for x in args)
    dt = delta if params[1] is None else delta + params[1].to(delta.dtype)
    dt_BLGD = F.softplus(dt, threshold=50.0) if softplus else dt
    later = dt_BLGD.flip(1).cumsum(1).flip(1) - dt_BLGD
    decay = [torch.exp(later * A[..., n]) for n in range(A.shape[-1])]
    state = [(decay[n] * dt_BLGD * u * B[..., n, None]).sum(1) for n in range(A.shape[-1])]
    return torch.stack(state, -1).flatten(1, 2)


def route_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    order: Tensor | None = None,
    silu: bool = True,
    backend: str = "auto",
) -> Tensor:
    """Causal depthwise convolution along each of K routes, in and out in image order.

    Args:
        x: (B, L, Kx, D), Kx 1 or K.
        weight: (K, D, W); tap W-1 is the present step, tap 0 the oldest.
        bias: (K, D) or None.
        order: as in `routed_scan`; padding steps read as zero.
        silu: whether SiLU follows.
        backend: "auto" or a name of `backends()`.

    Returns:
        (B, L, K, D) in x's dtype, 0 where the route never was.

    Raises:
        TypeError, ValueError: naming the argument that does not fit.
    """
    if torch.jit.is_tracing():
        return torch.ops.visionssm.route_conv(x, _single(weight), _single(bias), _int32(order), silu, backend)
    order = _check_conv(x, weight, bias, order)
    weight, bias = _single(weight), _single(bias)
    name = choose(backend, str(x.device), _widest(x, weight), 1)
    if name in _PLAIN_TORCH:
        return _PLAIN_TORCH[name].route_conv(x, weight, bias, order, silu)
    if is_plain_inference(x, weight, bias, order):
        return module_of(name).route_conv_forward(x, weight, bias, order, silu)
    return torch.ops.visionssm.route_conv(x, weight, bias, order, silu, name)


# --- validation -------------------------------------------------------------------------------------------------


def _require(condition: bool, message: str, error: type[Exception] = ValueError) -> None:
    if not condition:
        raise error(message)


def _single(x: Any) -> Any:
    """A parameter in at least float32."""
    return x.float() if x is not None and x.dtype in (torch.float16, torch.bfloat16) else x


def _int32(order: Tensor | None) -> Tensor | None:
    return order if order is None or order.dtype == torch.int32 else order.to(torch.int32)


def _widest(first: Tensor, *others: Tensor | None) -> torch.dtype:
    """What decides the implementation: float64 if anything is, else the first tensor's dtype."""
    return torch.float64 if any(t is not None and t.dtype == torch.float64 for t in (first, *others)) else first.dtype


def _check_floats(**tensors: Tensor | None) -> None:
    first = None
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
        if tensor.dtype not in _FLOATS:
            raise TypeError(f"{name} must be floating point, got {tensor.dtype}")
        first = first or (name, tensor.device)
        if tensor.device != first[1]:
            raise ValueError(f"{name} is on {tensor.device} but {first[0]} is on {first[1]}")


def _check_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    bias: Tensor | None,
    order: Tensor | None,
    merge: str,
    dt_weight: Tensor | None,
) -> tuple[int, Tensor | None]:
    """K and the order as int32."""
    _check_floats(u=u, delta=delta, A=A, B=B, C=C, D=D, bias=bias, dt_weight=dt_weight)
    if A.dim() != 3 or A.shape[0] < 1 or A.shape[2] < 1:
        raise ValueError(f"A must be (K, D, N) with K and N at least 1, got {tuple(A.shape)}")
    K, channels, N = A.shape
    if not (u.dim() == 4 and u.shape[2] in (1, K) and u.shape[3] == channels):
        raise ValueError(f"u must be (B, L, 1 or {K}, {channels}) for A {tuple(A.shape)}, got {tuple(u.shape)}")
    batch, positions = u.shape[:2]
    width = channels
    if dt_weight is not None:
        if dt_weight.dim() != 3 or dt_weight.shape[:2] != (K, channels) or dt_weight.shape[2] == 0:
            raise ValueError(f"dt_weight must be ({K}, {channels}, R), R at least 1, got {tuple(dt_weight.shape)}")
        width = dt_weight.shape[2]
    for name, tensor, last in (("delta", delta, width), ("B", B, N), ("C", C, N)):
        expected = (batch, positions, K, last)
        if tensor.shape != expected:
            raise ValueError(f"{name} must be {_shown(expected)}, got {tuple(tensor.shape)}")
    for name, param in (("D", D), ("bias", bias)):
        if param is not None and param.shape != (K, channels):
            raise ValueError(f"{name} must be ({K}, {channels}), got {tuple(param.shape)}")
    if merge not in ("sum", "none"):
        raise ValueError(f"merge must be 'sum' or 'none', got {merge!r}")
    return K, _check_order(order, batch, positions, K, u.device)


def _check_conv(x: Tensor, weight: Tensor, bias: Tensor | None, order: Tensor | None) -> Tensor | None:
    """The order as int32."""
    _check_floats(x=x, weight=weight, bias=bias)
    if weight.dim() != 3 or weight.shape[0] < 1 or weight.shape[2] < 1:
        raise ValueError(f"weight must be (K, D, W) with K and W at least 1, got {tuple(weight.shape)}")
    K, channels, _ = weight.shape
    if not (x.dim() == 4 and x.shape[2] in (1, K) and x.shape[3] == channels):
        shape = tuple(weight.shape)
        raise ValueError(f"x must be (B, L, 1 or {K}, {channels}) for weight {shape}, got {tuple(x.shape)}")
    if bias is not None and bias.shape != (K, channels):
        raise ValueError(f"bias must be ({K}, {channels}), got {tuple(bias.shape)}")
    return _check_order(order, x.shape[0], x.shape[1], K, x.device)


def _shown(shape: tuple[Any, ...]) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"


_valid_orders: weakref.WeakValueDictionary[tuple[int, int, int], Tensor] = weakref.WeakValueDictionary()


def _check_order(order: Tensor | None, batch: int, positions: int, K: int, device: torch.device) -> Tensor | None:
    if order is None:
        return None
    if not isinstance(order, Tensor):
        raise TypeError(f"order must be a tensor, got {type(order).__name__}")
    if order.dtype not in (torch.int32, torch.int64, torch.int16):
        raise TypeError(f"order must be an integer tensor, got {order.dtype}")
    shared = order.dim() == 2 and order.shape[0] == K
    if not (shared or (order.dim() == 3 and order.shape[0] == batch and order.shape[1] == K)):
        raise ValueError(f"order must be ({K}, T) or ({batch}, {K}, T), got {tuple(order.shape)}")
    if order.device != device:
        raise ValueError(f"order is on {order.device} but u is on {device}")
    if not torch.compiler.is_compiling():  # the operator checks it when the graph runs
        _check_positions(order, positions)
    return _int32(order)


def _check_positions(order: Tensor, positions: int) -> None:
    """They must lie in [-1, L), and in a route once. A table that was checked is not checked again until it changes."""
    if isinstance(order, torch._subclasses.FakeTensor) or order.is_meta or order.numel() == 0:
        return  # nothing to look at
    key = None if order.is_inference() else (id(order), positions, order._version)  # those have no version
    if key is not None and _valid_orders.get(key) is order:
        return
    low, high = order.aminmax()
    routes = order.flatten(0, -2).long().clamp(-1, positions - 1) + 1
    seen = torch.zeros(routes.shape[0], positions + 1, dtype=torch.bool, device=order.device).scatter_(1, routes, True)
    once = seen[:, 1:].sum() == (routes > 0).sum()
    if order.device.type == "cuda":  # no synchronisation: the error surfaces with the next one
        torch._assert_async((low >= -1) & (high < positions) & once)
    elif low < -1 or high >= positions:
        raise ValueError(f"order holds {int(low)}..{int(high)}, but u has positions 0..{positions - 1}")
    elif not once:
        raise ValueError("order has a route that visits a position more than once")
    if key is not None:
        _valid_orders[key] = order


def _projected(name: str, delta: Tensor, dt_weight: Tensor | None) -> tuple[Tensor, tuple[Tensor, ...]]:
    """delta, and dt_weight as one argument more for a backend whose scan multiplies by it; for the others it is done here."""
    if dt_weight is None:
        return delta, ()
    return (delta, (dt_weight,)) if projects(name, dt_weight.shape[-1]) else (project(delta, dt_weight), ())


# --- custom operators -------------------------------------------------------------------------------------------


def _empty(like: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    return like.new_empty(0, dtype=dtype)


def _kernels(name: str, x: Tensor, d_state: int) -> Any:
    name = resolve(name, str(x.device), x.dtype, d_state)
    return Composite(_PLAIN_TORCH[name]) if name in _PLAIN_TORCH else module_of(name)


@torch.library.custom_op("visionssm::routed_scan", mutates_args=())
def _routed_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    bias: Tensor | None,
    order: Tensor | None,
    softplus: bool,
    merge: str,
    save_checkpoints: bool,
    save_states: bool,
    backend: str,
    segment: int = 0,
    phase: int = 0,
    dt_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    # a graph may be given what it was not made for
    _, order = _check_scan(u, delta, A, B, C, D, bias, order, merge, dt_weight)
    name = resolve(backend, str(u.device), u.dtype, A.shape[-1])
    delta, weights = _projected(name, delta, dt_weight)
    return _kernels(name, u, A.shape[-1]).routed_scan_forward(
        u, delta, A, B, C, D, bias, order, softplus, merge, save_checkpoints, save_states, segment, phase, *weights
    )


@_routed_scan.register_fake
def _(
    u, delta, A, B, C, D, bias, order, softplus, merge, save_checkpoints, save_states, backend, segment=0, phase=0,
    dt_weight=None,
):  # fmt: skip
    batch, positions = u.shape[:2]
    K, channels, N = A.shape
    steps = positions if order is None else order.shape[-1]
    y = u.new_empty((batch, positions, channels) if merge == "sum" else (batch, positions, K, channels))
    checkpoints, states = _empty(A), _empty(A)
    chunk = _kernels(backend, u, N).CHUNK
    if save_checkpoints and chunk is not None:
        checkpoints = A.new_empty(batch, K, (steps + chunk - 1) // chunk, channels, N, dtype=torch.float32)
    if save_states:
        states = A.new_empty(batch, positions, K, channels, N, dtype=torch.float32)
    return y, checkpoints, states


@torch.library.custom_op("visionssm::routed_scan_backward", mutates_args=())
def _routed_scan_backward(
    grad_y: Tensor,
    grad_states: Tensor | None,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    bias: Tensor | None,
    order: Tensor | None,
    softplus: bool,
    merge: str,
    checkpoints: Tensor,
    backend: str,
    segment: int = 0,
    phase: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    kernels = _kernels(backend, u, A.shape[-1])
    *grads, dD, dbias = kernels.routed_scan_backward(
        grad_y, grad_states, u, delta, A, B, C, D, bias, order, softplus, merge, checkpoints, segment, phase
    )
    return *grads, _empty(A) if dD is None else dD, _empty(A) if dbias is None else dbias


@_routed_scan_backward.register_fake
def _(
    grad_y, grad_states, u, delta, A, B, C, D, bias, order, softplus, merge, checkpoints, backend, segment=0, phase=0
):
    grads = [x.new_empty(x.shape) for x in (u, delta, A, B, C)]
    return *grads, *(_empty(A) if x is None else x.new_empty(x.shape) for x in (D, bias))


def _scan_setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, softplus, merge, _, save_states, backend, segment, phase, dt_weight = inputs
    ctx.save_for_backward(*tensors, dt_weight, output[1])
    ctx.options = (softplus, merge, save_states, backend, segment, phase)
    ctx.set_materialize_grads(False)


def _scan_backward(ctx: Any, grad_y: Tensor | None, _: Tensor | None, grad_states: Tensor | None) -> tuple[Any, ...]:
    u, delta, A, B, C, D, bias, order, dt_weight, checkpoints = ctx.saved_tensors
    softplus, merge, save_states, backend, *segments = ctx.options
    nothing = (None,) * 16
    if not save_states:
        grad_states = None
    if grad_y is None and grad_states is None:
        return nothing
    if grad_y is None:
        shape = (*u.shape[:2], u.shape[3]) if merge == "sum" else (*u.shape[:2], *A.shape[:2])
        grad_y = u.new_zeros(shape)
    assert grad_y is not None
    whole = delta if dt_weight is None else project(delta, dt_weight)
    inputs = (u, whole, A, B, C, D, bias, _int32(order), softplus, merge)
    kernels = _kernels(backend, u, A.shape[-1])
    if isinstance(kernels, Composite):  # inside an operator there is no autograd to run
        du, dwhole, *grads = kernels.routed_scan_backward(grad_y, grad_states, *inputs, checkpoints, *segments)
    else:
        if checkpoints.dim() == 1:  # the forward ran without keeping them: run it again
            _, checkpoints, _ = torch.ops.visionssm.routed_scan(*inputs, True, False, backend, *segments)
        du, dwhole, *grads, dD, dbias = torch.ops.visionssm.routed_scan_backward(
            grad_y, grad_states, *inputs, checkpoints, backend, *segments
        )
        grads += [None if D is None else dD, None if bias is None else dbias]
    if dt_weight is None:
        return du, dwhole, *grads, *nothing[7:]
    ddelta, dweight = project_backward(dwhole, delta, dt_weight)  # pyright: ignore
    return du, ddelta, *grads, *nothing[8:], dweight


_routed_scan.register_autograd(_scan_backward, setup_context=_scan_setup_context)
first_only(_routed_scan_backward)


@torch.library.custom_op("visionssm::route_conv", mutates_args=())
def _route_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, order: Tensor | None, silu: bool, backend: str
) -> Tensor:
    order = _check_conv(x, weight, bias, order)
    return _kernels(backend, x, 1).route_conv_forward(x, weight, bias, order, silu)


@_route_conv.register_fake
def _(x, weight, bias, order, silu, backend):
    return x.new_empty(x.shape[0], x.shape[1], weight.shape[0], x.shape[3])


@torch.library.custom_op("visionssm::route_conv_backward", mutates_args=())
def _route_conv_backward(
    grad_u: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    order: Tensor | None,
    silu: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    dx, dweight, dbias = _kernels(backend, x, 1).route_conv_backward(grad_u, x, weight, bias, order, silu)
    return dx, dweight, _empty(weight) if dbias is None else dbias


@_route_conv_backward.register_fake
def _(grad_u, x, weight, bias, order, silu, backend):
    dbias = _empty(weight) if bias is None else bias.new_empty(bias.shape)
    return x.new_empty(x.shape), weight.new_empty(weight.shape), dbias


def _conv_setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, silu, backend = inputs
    ctx.save_for_backward(*tensors)
    ctx.options = (silu, backend)


def _conv_backward(ctx: Any, grad_u: Tensor) -> tuple[Any, ...]:
    x, weight, bias, order = ctx.saved_tensors
    order = _int32(order)
    silu, backend = ctx.options
    kernels = _kernels(backend, x, 1)
    if isinstance(kernels, Composite):
        return *kernels.route_conv_backward(grad_u, x, weight, bias, order, silu), None, None, None
    dx, dweight, dbias = torch.ops.visionssm.route_conv_backward(grad_u, x, weight, bias, order, *ctx.options)
    return dx, dweight, None if bias is None else dbias, None, None, None


_route_conv.register_autograd(_conv_backward, setup_context=_conv_setup_context)
first_only(_route_conv_backward)


# --- FLOPs ------------------------------------------------------------------------------------------------------


@register_flop_formula(torch.ops.visionssm.routed_scan)
def scan_flops(u_shape, delta_shape, A_shape, B_shape, C_shape, D_shape=None, bias_shape=None, order_shape=None,
               softplus=True, merge="sum", save_checkpoints=False, save_states=False, backend="auto", segment=0, phase=0,
               dt_weight=None, *, out_shape: Any = None, **kwargs: Any) -> int:  # fmt: skip
    """9 B L D N per route, plus B L D for the skip: the convention of the papers (state-spaces/mamba issue 110). With `dt_weight`
    also its product, 2 B L D R per route as of any two matrices."""
    batch, positions = u_shape[:2]
    K, channels, N = A_shape
    steps = positions if order_shape is None else order_shape[-1]
    projection = 0 if dt_weight is None else 2 * batch * K * positions * channels * dt_weight[-1]
    return batch * K * steps * channels * (9 * N + (D_shape is not None)) + projection


@register_flop_formula(torch.ops.visionssm.routed_scan_backward)
def scan_backward_flops(grad_shape, grad_states_shape, *shapes: Any, out_shape: Any = None, **kwargs: Any) -> int:
    """Twice the forward, as for a matrix product."""
    return 2 * scan_flops(*shapes[:8])


@register_flop_formula(torch.ops.visionssm.route_conv)
def conv_flops(x_shape, weight_shape, bias_shape=None, order_shape=None, *args: Any, out_shape: Any = None,
               **kwargs: Any) -> int:  # fmt: skip
    """2 B T K D W."""
    K, channels, width = weight_shape
    steps = x_shape[1] if order_shape is None else order_shape[-1]
    return 2 * x_shape[0] * steps * K * channels * width


@register_flop_formula(torch.ops.visionssm.route_conv_backward)
def conv_backward_flops(grad_shape, *shapes: Any, out_shape: Any = None, **kwargs: Any) -> int:
    """Twice the forward."""
    return 2 * conv_flops(*shapes[:4])
