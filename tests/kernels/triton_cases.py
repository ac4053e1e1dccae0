"""Cases for the Triton kernels: inputs, a float64 oracle, and the comparison. Run as a script it prints a line
of JSON per case.

The interpreter must be chosen before Triton decorates the kernels, so `test_triton_interpreter.py` runs this
file in a process of its own with TRITON_INTERPRET=1; `test_triton_gpu.py` imports it and runs the same cases,
and larger ones, on a GPU.

Legend: B batch, L positions, Ku 1 or K, K routes, D channels, N state, R rank of dt's projection, T steps, W taps.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.tolerances import TOLERANCES

INPUTS = ("u", "delta", "A", "B", "C", "D", "bias")


@dataclass(frozen=True)
class Scan:
    """One routed scan. `table`: None, "permutation", "subset" (T < L), "padded" (-1 among the steps, T > L),
    "empty" (T = 0)."""

    name: str
    B: int = 1
    L: int = 9
    K: int = 2
    D: int = 5
    N: int = 4
    Ku: int = 1
    table: str | None = "permutation"
    per_image: bool = False
    merge: str = "sum"
    softplus: bool = True
    skip: bool = True
    bias: bool = True
    states: bool = False
    strided: bool = False
    dtype: str = "float32"
    split: bool | None = None  # force chunks to run in parallel, or one after the other
    delta_mean: float = -2.0
    mark: bool = False  # zero by marks, as large outputs do, and not beforehand
    segment: int = 0
    phase: int = 0
    R: int = 0  # project delta from so many numbers; 0 for none


@dataclass(frozen=True)
class Conv:
    """One convolution along routes."""

    name: str
    B: int = 2
    L: int = 13
    Kx: int = 1
    K: int = 2
    D: int = 5
    W: int = 4
    table: str | None = "permutation"
    per_image: bool = False
    bias: bool = True
    silu: bool = True
    strided: bool = False
    dtype: str = "float32"
    mark: bool = False


@dataclass(frozen=True)
class Fusion:
    """One state fusion: kernels of side S, one for each dilation."""

    name: str
    B: int = 2
    H: int = 7
    W: int = 6
    D: int = 5
    S: int = 3
    dilations: tuple[int, ...] = (1, 3, 5)
    strided: bool = False
    dtype: str = "float32"


@dataclass(frozen=True)
class Wave:
    """One two-dimensional scan."""

    name: str
    B: int = 1
    H: int = 3
    W: int = 4
    D: int = 5
    N: int = 2
    reverse: bool = False
    skip: bool = True
    bias: bool = True
    strided: bool = False
    dtype: str = "float32"


@dataclass(frozen=True)
class Duality:
    """One scan of Mamba-2: P channels of a head, G groups of heads."""

    name: str
    B: int = 2
    L: int = 41
    H: int = 2
    P: int = 5
    G: int = 1
    N: int = 3
    skip: bool = True
    strided: bool = False
    dtype: str = "float32"


SCANS = [
    *(Scan(f"state {n}", N=n, L=9, D=35 if n == 1 else 9) for n in (1, 2, 4, 8, 16, 32, 64)),
    Scan("no table", table=None, N=1, L=11),
    Scan("one position", L=1, table=None),
    Scan("one step of a table", L=1),
    Scan("one position, one channel", L=1, D=1, N=1, K=1, B=1),
    Scan("subset", table="subset", N=2, states=True),
    Scan("padded", table="padded", N=2, states=True),
    Scan("padded per image", B=2, table="padded", per_image=True, N=1),
    Scan("subset per image, apart", B=2, table="subset", per_image=True, merge="none", Ku=2),
    Scan("own u", Ku=2, merge="none", N=1),
    Scan("own u, summed", Ku=3, K=3, N=2),
    Scan("one route", K=1, merge="none", N=2),
    Scan("no softplus", softplus=False, N=2),
    Scan("no skip", skip=False, N=2),
    Scan("no bias", bias=False, table="padded", N=2),
    Scan("plain", skip=False, bias=False, softplus=False, N=1),
    Scan("states", states=True, merge="none", N=4),
    Scan("strided", strided=True, Ku=2, B=2, N=4, states=True),
    Scan("chunks", L=41, B=2, K=1, D=3, N=2, split=False),
    Scan("chunks, subset", L=60, B=1, D=3, N=1, K=1, table="subset", split=False, states=True),
    Scan("exactly two chunks", L=64, B=1, D=3, N=1, table=None, split=False, K=1),
    Scan("parallel chunks", L=70, K=1, D=3, N=2, split=True),
    Scan(
        "parallel chunks, padded",
        L=30,
        B=2,
        D=3,
        N=1,
        K=1,
        table="padded",
        per_image=True,
        split=True,
        states=True,
    ),
    Scan("parallel chunks, one", L=7, split=True, B=1, N=1),
    Scan("segments", L=41, B=1, K=1, D=3, N=2, segment=8, phase=3, split=False),
    Scan("segments, parallel chunks", L=70, K=1, B=1, D=3, N=2, segment=5, split=True, states=True),
    Scan("long segments, padded", L=50, K=1, B=1, D=3, N=1, segment=40, table="padded", split=True),
    Scan("no image", B=0),
    Scan("no position", L=0, table=None),
    Scan("no step", table="empty", N=1, states=True),
    Scan("marks, no step", mark=True, table="empty", N=1),
    Scan("marks", mark=True, N=2, L=7, merge="none", Ku=2, states=True, D=65),
    Scan("marks, subset", mark=True, N=1, table="subset", states=True),
    Scan("marks, padded per image", mark=True, N=1, table="padded", per_image=True, L=65, B=2, K=1, D=2),
    Scan("small dt", delta_mean=-9.0, N=2),
    Scan("large dt", delta_mean=12.0, N=2),
    Scan("bfloat16", dtype="bfloat16", N=1, L=11, K=4),
    Scan("bfloat16, state 16", dtype="bfloat16", N=16, L=17, K=2, Ku=2),
    Scan("bfloat16, apart", dtype="bfloat16", N=4, merge="none", table="padded"),
    Scan("float16", dtype="float16", N=2, K=4),
    Scan("mixed", dtype="mixed", N=4, K=2),
    *(
        Scan(f"rank {r}, state {n}", R=r, N=n, L=9, D=35 if r == 6 else 9)
        for r, n in ((1, 1), (6, 1), (12, 16), (16, 2), (3, 4), (24, 8), (17, 32), (5, 64), (48, 1), (64, 1))
    ),
    Scan("rank 3, no table", R=3, table=None, N=1, L=11, K=1),
    Scan("rank 3, one position", R=3, L=1, D=1, N=1, K=1),
    Scan("rank 7, padded per image", R=7, B=2, table="padded", per_image=True, N=1, states=True),
    Scan("rank 3, subset, own u, apart", R=3, table="subset", Ku=2, merge="none", N=2, states=True),
    Scan("rank 3, strided", R=3, strided=True, Ku=2, B=2, N=4),
    Scan("rank 3, plain", R=3, skip=False, bias=False, softplus=False, N=1),
    Scan("rank 3, chunks", R=3, L=41, B=2, K=1, D=3, N=2, split=False),
    Scan("rank 20, parallel chunks", R=20, L=70, K=1, D=3, N=2, split=True, table="padded"),
    Scan("rank 3, segments, parallel chunks", R=3, L=70, K=1, D=3, N=2, segment=5, phase=2, split=True),
    Scan("rank 3, no image", R=3, B=0),
    Scan("rank 3, no step", R=3, table="empty", N=1),
    Scan("rank 3, marks", R=3, mark=True, N=2, L=7, table="subset", D=65),
    Scan("rank 6, bfloat16", R=6, dtype="bfloat16", N=1, L=11, K=4),
    Scan("rank 12, bfloat16, state 16", R=12, dtype="bfloat16", N=16, L=17, K=2, Ku=2),
    Scan("rank 5, float16", R=5, dtype="float16", N=2, K=4),
    Scan("rank 5, mixed", R=5, dtype="mixed", N=4, K=2),
]

CONVS = [
    *(Conv(f"taps {w}", W=w, L=9 + w) for w in range(1, 9)),
    Conv("no table", table=None),
    Conv("one position", L=1),
    Conv("subset", table="subset"),
    Conv("padded per image", table="padded", per_image=True),
    Conv("own x", Kx=2),
    Conv("linear", silu=False, bias=False, table="padded"),
    Conv("many", L=75, D=67, B=1, K=1, W=3),
    Conv("strided", strided=True, Kx=2),
    Conv("marks", mark=True, table="padded", per_image=True),
    Conv("bfloat16", dtype="bfloat16"),
]


FUSIONS = [
    Fusion("Spatial-Mamba"),
    Fusion("wide", H=9, W=8, D=35, B=1, dilations=(4,)),
    Fusion("one row", H=1, W=9, dilations=(2, 1)),
    Fusion("one column", H=8, W=1, dilations=(2, 1)),
    Fusion("one position", H=1, W=1, dilations=(1,)),
    Fusion("five by five", S=5, H=4, W=5, D=2, B=1, dilations=(2, 1)),
    Fusion("strided", strided=True, dilations=(1, 2)),
    Fusion("no image", B=0),
    Fusion("bfloat16", dtype="bfloat16", dilations=(1, 3)),
]


WAVES = [
    Wave("one state", N=1, D=35, H=3, W=2),
    Wave("backwards", reverse=True, B=2, W=2),
    Wave("16 states", N=16, H=3, W=3, D=17),
    Wave("one row", H=1, W=6),
    Wave("one column", H=6, W=1, reverse=True),
    Wave("one cell", H=1, W=1, D=1, N=1),
    Wave("more strips", H=10, W=2, D=2, N=1),
    Wave("plain", skip=False, bias=False),
    Wave("strided", strided=True),
    Wave("no image", B=0),
    Wave("bfloat16", dtype="bfloat16", N=4),
]


DUALITIES = [
    Duality("two chunks"),
    Duality("groups", H=4, G=2, L=33, B=1),
    Duality("wide", P=64, N=32, L=40, H=1, B=1),
    Duality("one step", L=1),
    Duality("exactly a chunk", L=32, skip=False),
    Duality("strided", strided=True, L=5),
    Duality("no image", B=0),
    Duality("no step", L=0),
    Duality("bfloat16", dtype="bfloat16", P=16, N=16),
]


def make_table(kind: str | None, batch: int, length: int, routes: int, per_image: bool) -> Tensor | None:
    """int32 (K, T) or (B, K, T): random permutations, cut to a subset or with -1 put in at random places."""
    if kind is None:
        return None
    count = batch * routes if per_image else routes
    steps = {
        "permutation": length,
        "subset": max(1, 2 * length // 3),
        "padded": length + max(1, length // 3),
        "empty": 0,
    }[kind]
    rows = []
    for _ in range(count):
        row = torch.randperm(length)
        if kind in ("subset", "empty"):
            row = row[:steps]
        if kind == "padded":
            kept = torch.cat((row[: length - 1], torch.full((steps - length + 1,), -1)))  # misses a position, too
            row = kept[torch.randperm(steps)]
        rows.append(row)
    table = torch.stack(rows).int()
    return table.view(batch, routes, -1) if per_image else table


def _dtypes(name: str, count: int) -> list[torch.dtype]:
    if name == "mixed":
        return [torch.float32, torch.bfloat16, torch.float16, torch.float32][:count]
    return [getattr(torch, name)] * count


def _spread(x: Tensor) -> Tensor:
    """The same values with gaps between rows, between routes and between positions."""
    wide = torch.full(
        (x.shape[0], x.shape[2] + 1, x.shape[1] + 2, x.shape[3] + 3),
        torch.nan,
        dtype=x.dtype,
        device=x.device,
    )
    view = wide[:, : x.shape[2], : x.shape[1], : x.shape[3]].transpose(1, 2)
    return view.copy_(x)


def gather(x: Tensor, order: Tensor | None, routes: int) -> Tensor:
    """(B, L, 1 or K, D) -> (B, K, T, D) by plain indexing; zeros at -1."""
    x = x.expand(-1, -1, routes, -1).transpose(1, 2)
    if order is None:
        return x
    order = order.long().expand(x.shape[0], routes, -1)[..., None]
    return torch.where(order >= 0, x.gather(2, order.clamp(min=0).expand(-1, -1, -1, x.shape[-1])), 0.0)


def scatter(y: Tensor, order: Tensor | None, length: int) -> Tensor:
    """(B, K, T, ...) -> (B, L, K, ...); zeros where a route never was."""
    if order is None:
        return y.transpose(1, 2)
    out = y.new_zeros(y.shape[0], length, *y.shape[1:2], *y.shape[3:])
    order = order.long().expand(y.shape[0], y.shape[1], -1)
    b, k, t = (order >= 0).nonzero(as_tuple=True)
    return out.index_put((b, order[b, k, t], k), y[b, k, t])


def oracle_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, bias: Tensor | None,
                order: Tensor | None, softplus: bool, merge: str, segment: int = 0,
                phase: int = 0) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The recurrence as a loop over steps: y, the states at every position, the states after every step."""
    routes, length = delta.shape[2], delta.shape[1]
    u, delta, B, C = (gather(x, order, routes) for x in (u, delta, B, C))
    dt = delta if bias is None else delta + bias[:, None]
    dt = F.softplus(dt) if softplus else dt
    h, ys, hs = torch.zeros_like(A[None]), [], []
    if u.shape[2] == 0:
        y, states = (
            u.new_zeros(u.shape[0], length, routes, A.shape[1]),
            u.new_zeros(u.shape[0], length, *A.shape),
        )
        return (y.sum(2) if merge == "sum" else y) + 0.0 * A.sum(), states, states.transpose(1, 2)[:, :, :0]
    for t in range(u.shape[2]):
        step = dt[:, :, t, :, None]
        if segment and (t + phase) % segment == 0:
            h = torch.zeros_like(h)
        h = torch.exp(step * A) * h + step * B[:, :, t, None] * u[:, :, t, :, None]
        y = (h * C[:, :, t, None]).sum(-1)
        ys.append(y if D is None else y + D * u[:, :, t])
        hs.append(h.expand(u.shape[0], -1, -1, -1))
    y, h_BKTDN = scatter(torch.stack(ys, 2), order, length), torch.stack(hs, 2)
    return y.sum(2) if merge == "sum" else y, scatter(h_BKTDN, order, length), h_BKTDN


def oracle_conv(x: Tensor, weight: Tensor, bias: Tensor | None, order: Tensor | None, silu: bool) -> Tensor:
    """Left-padded conv1d over the gathered steps."""
    routes, dim, taps = weight.shape
    steps = gather(x, order, routes).transpose(2, 3).flatten(1, 2)
    out = F.conv1d(F.pad(steps, (taps - 1, 0)), weight.reshape(-1, 1, taps), groups=routes * dim)
    out = out.unflatten(1, (routes, dim)).transpose(2, 3)
    out = out if bias is None else out + bias[:, None]
    return scatter(F.silu(out) if silu else out, order, x.shape[1])


def scan_inputs(case: Scan, device: str) -> tuple[dict[str, Tensor | None], Tensor | None]:
    """Random inputs in the dtypes and strides of the case, and its table."""
    K, D, N = case.K, case.D, case.N
    kinds = _dtypes(case.dtype, 4)
    values = {
        "u": torch.randn(case.B, case.L, case.Ku, D).to(kinds[0]),
        "delta": (torch.randn(case.B, case.L, K, D) + case.delta_mean).to(kinds[1]),
        "A": -torch.rand(K, D, N) * N - 0.1,
        "B": torch.randn(case.B, case.L, K, N).to(kinds[2]),
        "C": torch.randn(case.B, case.L, K, N).to(kinds[3]),
        "D": torch.randn(K, D) if case.skip else None,
        "bias": torch.randn(K, D) * 0.3 if case.bias else None,
    }
    if case.R:  # the weight rounded as the kernels round it, in float32
        weight = torch.randn(K, D, case.R) * case.R**-0.5
        values["delta"] = torch.randn(case.B, case.L, K, case.R).to(kinds[1])
        values["dt_weight"] = weight.to(kinds[1]).float()
    if not case.softplus:
        values["delta"] = values["delta"].abs() * 0.3
        if case.R:
            values["dt_weight"] = values["dt_weight"].abs()
    values = {k: v if v is None else v.to(device) for k, v in values.items()}
    if case.strided:
        values = {k: _spread(v) if k in ("u", "delta", "B", "C") else v for k, v in values.items()}
    order = make_table(case.table, case.B, case.L, K, case.per_image)
    return values, None if order is None else order.to(device)


def chunks_in_parallel(always: bool) -> dict[tuple[ModuleType, str], Any]:
    """Settings for `changed`: chunks in parallel however few there are, or never."""
    from visionssm_kernels.triton import tuning

    per_sm = 1 << 20 if always else 0
    tables = {key: replace(table, programs_per_sm=per_sm, chunks=1) for key, table in tuning.TABLES.items()}
    return {(tuning, "TABLES"): tables}


@contextlib.contextmanager
def changed(settings: dict[tuple[ModuleType, str], Any]) -> Iterator[None]:
    """Thresholds of the launchers, set so that a tiny case takes the way of a large one."""
    before = {key: getattr(*key) for key in settings}
    for (module, name), value in settings.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for (module, name), value in before.items():
            setattr(module, name, value)


def errors(got: dict[str, Tensor | None], want: dict[str, Tensor | None], rounded: dict[str, str]) -> dict[str, float]:
    """Largest error of each tensor over its largest value; infinity for a NaN, a wrong shape, dtype or None."""
    out = {}
    for key, expected in want.items():
        actual = got[key]
        if expected is None or actual is None:
            out[key] = 0.0 if expected is actual else float("inf")
        elif actual.shape != expected.shape or str(actual.dtype) != rounded[key] or not actual.isfinite().all():
            out[key] = float("inf")
        else:
            scale = expected.abs().amax().clamp(min=1e-30) if expected.numel() else torch.ones(())
            out[key] = float((actual.double() - expected).abs().max() / scale) if expected.numel() else 0.0
    return out


def limit(case: Any) -> float:
    """Largest accepted error relative to the largest value: the absolute tolerance of the coarsest dtype."""
    dtype = "bfloat16" if case.dtype == "mixed" else case.dtype
    return TOLERANCES[getattr(torch, dtype)]["atol"]


def run_scan(case: Scan, device: str) -> dict[str, object]:
    """Outputs and all gradients of the kernels against the float64 loop."""
    from visionssm_kernels.triton import memory, scan

    torch.manual_seed(0)
    values, order = scan_inputs(case, device)
    doubles = {k: v if v is None else v.double().requires_grad_() for k, v in values.items()}
    segments = (case.segment, case.phase)
    whole = dict(doubles)
    if case.R:
        whole["delta"] = torch.einsum("blkr,kdr->blkd", doubles["delta"], whole.pop("dt_weight"))
    y, states, steps = oracle_scan(*whole.values(), order, case.softplus, case.merge, *segments)
    grad_y = torch.randn(y.shape, device=device).to(values["u"].dtype)
    grad_states = torch.randn(states.shape, device=device) if case.states else None
    if case.strided and case.merge == "sum":
        grad_y = grad_y[..., :1].expand_as(grad_y)  # no contiguous dimension, as in y.sum().backward()
    loss = (y * grad_y).sum() + (0.0 if grad_states is None else (states * grad_states).sum())
    leaves = {k: v for k, v in doubles.items() if v is not None}
    grads = torch.autograd.grad(loss, leaves.values(), allow_unused=True, materialize_grads=True)
    grads = dict(zip(leaves, grads, strict=True))
    want = {"y": y.detach(), "states": states.detach() if case.states else torch.empty(0)}
    want |= {f"d{k}": grads.get(k) for k in values}
    last = [min(end, steps.shape[2]) - 1 for end in range(scan.CHUNK, steps.shape[2] + scan.CHUNK, scan.CHUNK)]
    want["checkpoints"] = steps[:, :, last].detach()

    settings = {}
    if case.split is not None:
        settings |= chunks_in_parallel(case.split)
    if case.mark:
        settings |= {(memory, "LARGE"): 0}
    inputs = (*(values[k] for k in INPUTS), order, case.softplus, case.merge)
    weight = (values["dt_weight"],) if case.R else ()
    with changed(settings):
        got_y, checkpoints, got_states = scan.routed_scan_forward(*inputs, True, case.states, *segments, *weight)
        only_y, none, none_too = torch.ops.visionssm.routed_scan(*inputs, False, False, "triton", *segments, *weight)
        if case.R:
            got_grads = operator_gradients(grad_y, grad_states, values, inputs[7:], segments)
        else:
            got_grads = scan.routed_scan_backward(grad_y, grad_states, *inputs, checkpoints, *segments)
    got = {"y": got_y, "states": got_states, "checkpoints": checkpoints} | {
        f"d{k}": g for k, g in zip(values, got_grads, strict=True)
    }
    rounded = {"y": str(values["u"].dtype), "states": "torch.float32", "checkpoints": "torch.float32"}
    rounded |= {f"d{k}": str(v.dtype) for k, v in values.items() if v is not None}
    result = errors(got, want, rounded)
    if case.merge == "sum" and values["u"].dtype != torch.float32:  # routes are summed before they are rounded
        half_ulp = torch.finfo(got_y.dtype).eps / 2 * y.abs() + 1e-6 * y.abs().max()
        result["rounded once"] = 0.0 if bool(((got_y - y).abs() <= half_ulp).all()) else torch.inf
    result["without checkpoints"] = (
        0.0 if torch.equal(only_y, got_y) and not none.numel() + none_too.numel() else torch.inf
    )
    return result


def operator_gradients(
    grad_y: Tensor, grad_states: Tensor | None, values: dict[str, Tensor | None], options: tuple[Any, ...],
    segments: tuple[int, int],
) -> list[Tensor | None]:  # fmt: skip
    """The gradients through the custom operator, which multiplies those of the projection's factors by itself."""
    leaves = {k: v if v is None else v.detach().requires_grad_() for k, v in values.items()}
    kept = (True, grad_states is not None, "triton")
    inputs = (*(leaves[k] for k in INPUTS), *options, *kept, *segments, leaves["dt_weight"])
    y, _, states = torch.ops.visionssm.routed_scan(*inputs)
    outputs, grads = ([y], [grad_y]) if grad_states is None else ([y, states], [grad_y, grad_states])
    present = [v for v in leaves.values() if v is not None]
    found = iter(torch.autograd.grad(outputs, present, grads))
    return [None if v is None else next(found) for v in leaves.values()]


def run_conv(case: Conv, device: str) -> dict[str, object]:
    """Output and all gradients of the convolution against conv1d in float64."""
    from visionssm_kernels.triton import conv, memory

    torch.manual_seed(0)
    dtype = getattr(torch, case.dtype)
    x = torch.randn(case.B, case.L, case.Kx, case.D).to(dtype).to(device)
    x = _spread(x) if case.strided else x
    weight = torch.randn(case.K, case.D, case.W, device=device)
    bias = torch.randn(case.K, case.D, device=device) if case.bias else None
    bias = bias.t().contiguous().t() if case.strided and bias is not None else bias
    order = make_table(case.table, case.B, case.L, case.K, case.per_image)
    order = None if order is None else order.to(device)
    doubles = [v if v is None else v.double().requires_grad_() for v in (x, weight, bias)]
    u = oracle_conv(*doubles, order, case.silu)
    grad_u = torch.randn(u.shape, device=device).to(dtype)
    leaves = [v for v in doubles if v is not None]
    grads = [*torch.autograd.grad((u * grad_u).sum(), leaves), None]
    names = ("u", "dx", "dweight", "dbias")
    with changed({(memory, "LARGE"): 0} if case.mark else {}):
        got_u = conv.route_conv_forward(x, weight, bias, order, case.silu)
        got_grads = conv.route_conv_backward(grad_u, x, weight, bias, order, case.silu)
    got = dict(zip(names, (got_u, *got_grads), strict=True))
    want = dict(zip(names, (u.detach(), *grads[:3]), strict=True))
    return errors(got, want, dict.fromkeys(names[:2], str(dtype)) | dict.fromkeys(names[2:], "torch.float32"))


def oracle_fusion(h: Tensor, weight: Tensor, dilations: tuple[int, ...]) -> Tensor:
    """Every tap of every kernel, on rows and columns clamped to the map."""
    height, width, half = *h.shape[1:3], weight.shape[-1] // 2
    total = torch.zeros_like(h)
    for kernel, dilation in zip(weight, dilations, strict=True):
        for tap in range(weight.shape[-1] ** 2):
            row, column = (dilation * (x - half) for x in divmod(tap, weight.shape[-1]))
            y = (torch.arange(height, device=h.device) + row).clamp(0, height - 1)
            x = (torch.arange(width, device=h.device) + column).clamp(0, width - 1)
            total = total + kernel.flatten(1)[:, tap] * h[:, y][:, :, x]
    return total


def run_fusion(case: Fusion, device: str) -> dict[str, object]:
    """Output and both gradients of the state fusion against loops over taps in float64."""
    from visionssm_kernels.triton import state_fusion

    torch.manual_seed(0)
    dtype = getattr(torch, case.dtype)
    h, grad = (torch.randn(case.B, case.H, case.W, case.D).to(dtype).to(device) for _ in range(2))
    h, grad = (_spread(h), _spread(grad)) if case.strided else (h, grad)
    weight = torch.randn(len(case.dilations), case.D, case.S, case.S, device=device)
    doubles = [x.double().requires_grad_() for x in (h, weight)]
    y = oracle_fusion(*doubles, case.dilations)
    grads = torch.autograd.grad((y * grad).sum(), doubles)
    got_y = state_fusion.forward(h, weight, list(case.dilations))
    got = (got_y, *state_fusion.backward(grad, h, weight, list(case.dilations)))
    names = ("y", "dh", "dweight")
    rounded = dict.fromkeys(names[:2], str(dtype)) | {"dweight": "torch.float32"}
    return errors(dict(zip(names, got, strict=True)), dict(zip(names, (y.detach(), *grads), strict=True)), rounded)


def run_wave(case: Wave, device: str) -> dict[str, object]:
    """Output and all gradients of the two-dimensional scan against the loop over cells in float64."""
    from visionssm_kernels import wavefront_scan
    from visionssm_kernels.triton import wavefront

    torch.manual_seed(0)
    dtype, cells = getattr(torch, case.dtype), (case.B, case.H, case.W)
    values = {
        "u": torch.randn(*cells, case.D).to(dtype),
        "delta": torch.randn(*cells, 2, case.D).to(dtype),
        "A": -torch.rand(2, case.D, case.N) * case.N - 0.1,
        "B": torch.randn(*cells, 2, case.N).to(dtype),
        "C": torch.randn(*cells, case.N).to(dtype),
        "D": torch.randn(case.D) if case.skip else None,
        "bias": torch.randn(2, case.D) if case.bias else None,
    }
    grad = torch.randn(*cells, case.D).to(dtype)
    if case.strided:
        values["u"], grad, values["C"] = (
            _spread(x.flatten(1, 2).unsqueeze(2)).squeeze(2).unflatten(1, cells[1:])
            for x in (values["u"], grad, values["C"])
        )
        values["B"] = torch.stack((values["B"],) * 3, 3)[..., 1, :, :]
    values = {k: v if v is None else v.to(device) for k, v in values.items()}
    grad = grad.to(device)
    doubles = {k: v if v is None else v.double().requires_grad_() for k, v in values.items()}
    y = wavefront_scan(*doubles.values(), reverse=case.reverse, backend="reference")
    leaves = {k: v for k, v in doubles.items() if v is not None}
    found = torch.autograd.grad((y * grad).sum(), leaves.values(), allow_unused=True, materialize_grads=True)
    want = {"y": y.detach()} | {f"d{k}": g for k, g in zip(leaves, found, strict=True)}
    got_grads = wavefront.backward(grad, *values.values(), case.reverse)
    got = {"y": wavefront.forward(*values.values(), case.reverse)}
    got |= {f"d{k}": g for k, g in zip(INPUTS, got_grads, strict=True)}
    rounded = {"y": str(dtype)} | {f"d{k}": str(v.dtype) for k, v in values.items() if v is not None}
    return errors(got, want, rounded)


def run_duality(case: Duality, device: str) -> dict[str, object]:
    """The operator and all its gradients against the loop over steps in float64."""
    from visionssm_kernels import ssd_scan

    torch.manual_seed(0)
    dtype = getattr(torch, case.dtype)
    values = {
        "x": torch.randn(case.B, case.L, case.H, case.P).to(dtype),
        "delta": torch.randn(case.B, case.L, case.H).to(dtype) - 1,
        "A": -torch.rand(case.H) - 0.1,
        "B": torch.randn(case.B, case.L, case.G, case.N).to(dtype),
        "C": torch.randn(case.B, case.L, case.G, case.N).to(dtype),
        "D": torch.randn(case.H) if case.skip else None,
        "bias": torch.randn(case.H),
    }
    grad = torch.randn(case.B, case.L, case.H, case.P).to(dtype).to(device)
    values = {k: v if v is None else v.to(device) for k, v in values.items()}
    if case.strided:
        values = {k: _spread(v) if k in ("x", "B", "C") else v for k, v in values.items()}
    results = []
    for kind in (torch.float64, None):
        inputs = {k: v if v is None else v.to(kind or v.dtype).detach().requires_grad_() for k, v in values.items()}
        if kind:
            y = ssd_scan(*inputs.values(), backend="reference")
        else:  # the operator itself: `ssd_scan` takes it for half precision alone
            dt = F.softplus(inputs["delta"].float() + inputs["bias"])
            y = torch.ops.visionssm.ssd_scan(inputs["x"], dt, *(inputs[k] for k in "ABCD"))[0]
        leaves = {k: v for k, v in inputs.items() if v is not None}
        found = torch.autograd.grad(y, leaves.values(), grad.to(y.dtype), allow_unused=True, materialize_grads=True)
        results.append({"y": y.detach()} | {f"d{k}": g for k, g in zip(leaves, found, strict=True)})
    rounded = {"y": str(dtype)} | {f"d{k}": str(v.dtype) for k, v in values.items() if v is not None}
    return errors(results[1], results[0], rounded)


def run_operators(device: str) -> dict[str, float]:
    """The public operators, which allow no result to share memory with another, against the reference implementation."""
    from visionssm_kernels import fuse_states, route_conv, routed_scan, wavefront_scan

    torch.manual_seed(0)
    values, order = scan_inputs(Scan("", K=2, Ku=2), device)
    weight, bias = torch.randn(2, 5, 3, device=device), torch.randn(2, 5, device=device)
    kernels = torch.randn(3, 5, 3, 3, device=device)
    found = []
    for backend in ("reference", "triton"):
        leaves = [v.clone().requires_grad_() for v in (*values.values(), weight, bias, kernels)]
        *inputs, w, b, taps = leaves
        u = route_conv(inputs[0], w, b, order=order, silu=True, backend=backend)
        y, states = routed_scan(u, *inputs[1:], order=order, return_states=True, backend=backend)
        fused = fuse_states(y.unflatten(1, (3, 3)), taps, backend=backend)
        wave = [x.unflatten(1, (3, 3)) for x in (inputs[0][:, :, 0], inputs[1], inputs[3], inputs[4][:, :, 0])]
        waves = wavefront_scan(*wave[:2], inputs[2], *wave[2:], inputs[5][0], inputs[6], backend=backend)
        loss = fused.square().sum() + states.square().sum() + waves.square().sum()
        grads = torch.autograd.grad(loss, leaves)
        found.append(
            {"y": y, "states": states, "fused": fused, "waves": waves} | {f"d{i}": g for i, g in enumerate(grads)}
        )
    want, got = ({k: v.detach() for k, v in results.items()} for results in found)
    return errors(got, want, dict.fromkeys(want, "torch.float32"))


RUNS: dict[type, Callable[..., dict[str, Any]]] = {
    Scan: run_scan,
    Conv: run_conv,
    Fusion: run_fusion,
    Wave: run_wave,
    Duality: run_duality,
}
CASES = [*SCANS, *CONVS, *FUSIONS, *WAVES, *DUALITIES]


def label(case: Any) -> str:
    return f"{type(case).__name__} {case.name}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # fills torch.empty with NaN
    runs = [(label(case), partial(RUNS[type(case)], case, "cpu")) for case in CASES]
    for name, run in [*runs, ("operators", partial(run_operators, "cpu"))]:
        if arguments.only in name:
            start = time.perf_counter()
            found = run()
            seconds = time.perf_counter() - start
            print(json.dumps({"name": name, "seconds": seconds, "errors": found}), flush=True)


if __name__ == "__main__":
    main()
