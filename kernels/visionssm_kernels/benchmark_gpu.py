"""The GPU's half of `benchmark`: the Triton kernels and their peers, forward and backward, in one run.

    triton            ours, as `routed_scan` calls it
    published steps   SS2D as published: every route a copy of the input, one scan over the copies, outputs copied back and added
                      up; the scan is mamba_ssm's CUDA kernel where that can be imported, else ours behind its signature
    mamba_ssm         that CUDA kernel alone, on copies made ahead of time; nothing is merged
    compiled          torch.compile of the plain-torch scan in chunks
    product, triton   dt's projection as a matrix product, then ours: from rows of R numbers, as mixers have them
    dt inside         ours given these rows and the weight (`dt_weight`): delta is never made in the forward

delta, B and C are given to the peers in the order of their routes: their models compute them there. The floor of a shape is the
larger of two times: its bytes at the speed of torch's copy, its exponentials at the measured rate. The error is the largest of
the first image, against plain torch in float64, over the largest value.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import routed_scan, selective_scan

__all__ = ["PEERS", "Case", "Figure", "contenders", "fill", "projecting", "published_steps", "route_order", "run"]

Scan = Callable[..., Any]
PEERS = ("published steps", "mamba_ssm", "compiled")


@dataclass(frozen=True)
class Case:
    """A shape's inputs and table, its R, and the bytes and exponentials that a forward takes at least."""

    inputs: list[Tensor]
    order: Tensor
    rank: int
    size: int
    exponentials: int


@dataclass
class Figure:
    """One implementation on one shape; what is None was not measured, and `note` says why."""

    shape: str
    backend: str
    dtype: str
    forward_s: float | None = None
    both_s: float | None = None
    of_floor: float | None = None
    of_floor_backward: float | None = None
    peak_bytes: int | None = None
    repeatable: bool | None = None
    error: float | None = None
    note: str = ""
    failed: bool = False


def route_order(inputs: Sequence[Tensor], order: Tensor) -> list[Tensor]:
    """delta, B and C as (B, K, channels, T), A, D and bias of all routes in a row: what the published scan takes."""
    _, delta, A, B, C, D, bias = (x.detach() for x in inputs)
    index = order.long()
    delta, B, C = (
        torch.stack([x[:, index[k], k] for k in range(len(index))], 1).transpose(2, 3).contiguous()
        for x in (delta, B, C)
    )
    ready = [delta.flatten(1, 2), A.flatten(0, 1), B, C, D.flatten(), bias.flatten()]
    return [x.requires_grad_() for x in ready]


def published_steps(u: Tensor, ready: Sequence[Tensor], order: Tensor, scan: Scan) -> Tensor:
    """(B, L, D) from u (B, L, Ku, D) and `route_order`'s tensors: copies, scan, copies, sum."""
    delta, A, B, C, D, bias = ready
    index, routes = order.long(), order.shape[0]
    maps = u.permute(0, 2, 3, 1)
    copies = torch.stack([maps[:, k if maps.shape[1] > 1 else 0].index_select(2, index[k]) for k in range(routes)], 1)
    y = scan(copies.flatten(1, 2), delta, A, B, C, D, delta_bias=bias, delta_softplus=True).unflatten(1, (routes, -1))
    back = index.argsort(1)
    return sum(y[:, k].index_select(2, back[k]) for k in range(routes)).transpose(1, 2)  # pyright: ignore


def _mamba() -> Scan | str:
    """mamba_ssm's CUDA scan, or why not."""
    if importlib.util.find_spec("mamba_ssm") is None:
        return "mamba_ssm is not installed"
    try:
        return importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn
    except (ImportError, AttributeError) as error:
        return f"mamba_ssm cannot be imported: {error}"


def contenders(inputs: Sequence[Tensor], order: Tensor) -> dict[str, tuple[Scan, list[Tensor], str] | str]:
    """By name: a function, the leaves it takes, a note; or why it cannot run."""
    ours, plain = (partial(routed_scan, order=order, backend=name) for name in ("triton", "chunked"))
    ready, mamba = route_order(inputs, order), _mamba()
    scan = selective_scan if isinstance(mamba, str) else mamba
    u = inputs[0]

    def steps(u: Tensor, *ready: Tensor) -> Tensor:
        return published_steps(u, ready, order, scan)

    found: dict[str, tuple[Scan, list[Tensor], str] | str] = {
        "triton": (ours, list(inputs), ""),
        "published steps": (
            steps,
            [u, *ready],
            f"with our scan: {mamba}" if isinstance(mamba, str) else "mamba_ssm's scan",
        ),
        "mamba_ssm": mamba if isinstance(mamba, str) else "",
        "compiled": (torch.compile(plain, dynamic=False), list(inputs), ""),
    }
    if not isinstance(mamba, str):
        index = order.long()
        copies = torch.stack([u.detach()[:, index[k], k % u.shape[2]] for k in range(len(index))], 1)
        copies = copies.transpose(2, 3).flatten(1, 2).contiguous().requires_grad_()

        def alone(copies: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor) -> Tensor:
            return mamba(copies, delta, A, B, C, D, delta_bias=bias, delta_softplus=True)

        found["mamba_ssm"] = (alone, [copies, *ready], "one scan, nothing merged")
    return found


def projecting(
    inputs: Sequence[Tensor], order: Tensor, rank: int, backend: str = "triton"
) -> tuple[dict[str, tuple[Scan, list[Tensor], str]], list[Tensor]]:
    """`contenders` that are given what dt is projected from in place of delta; and `exact`'s inputs for them."""
    u, delta, A, B, C, D, bias = inputs
    low = torch.randn(*delta.shape[:3], rank, device=u.device, dtype=u.dtype).requires_grad_()
    weight = (torch.randn(*A.shape[:2], rank, device=u.device, dtype=u.dtype) * (0.5 * rank**-0.5)).detach()
    leaves = [u, low, A, B, C, D, bias, weight.requires_grad_()]

    def ahead(u: Tensor, low: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor, weight: Tensor) -> Any:
        delta = torch.bmm(low.flatten(0, 1).transpose(0, 1), weight.transpose(1, 2)).transpose(0, 1)
        return routed_scan(u, delta.unflatten(0, u.shape[:2]), A, B, C, D, bias, order=order, backend=backend)

    def inside(u: Tensor, low: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor, weight: Tensor) -> Any:
        return routed_scan(u, low, A, B, C, D, bias, order=order, dt_weight=weight, backend=backend)

    product = torch.einsum("blkr,kdr->blkd", low.detach()[:1].double(), weight.detach().double())
    found = {name: (scan, leaves, f"R = {rank}") for name, scan in (("product, triton", ahead), ("dt inside", inside))}
    return found, [u, product, A, B, C, D, bias]


def exact(inputs: Sequence[Tensor], order: Tensor) -> Tensor:
    """The first image in float64."""
    first = [x.detach().double()[:1] if i in (0, 1, 3, 4) else x.detach().double() for i, x in enumerate(inputs)]
    return routed_scan(*first, order=order, backend="chunked")  # pyright: ignore


def measure(
    row: Figure, function: Scan, leaves: list[Tensor], wanted: Tensor, floors: tuple[float, float],
    seconds: Callable[[Callable[[], object]], float], memory: Callable[[Callable[[], object]], int | None],
) -> None:  # fmt: skip
    """Fills a row; floors in seconds, forward and backward."""
    with torch.no_grad():
        y = function(*leaves)
        row.forward_s = seconds(lambda: function(*leaves))
    if y.shape[1:] == wanted.shape[1:]:
        row.error = float((y[:1].double() - wanted).abs().max() / wanted.abs().max())
    grad = torch.randn_like(y)

    def both() -> tuple[Tensor, ...]:
        return torch.autograd.grad(function(*leaves), leaves, grad)

    row.repeatable = all(torch.equal(a, b) for a, b in zip(both(), both(), strict=True))
    row.both_s = seconds(both)
    row.peak_bytes = memory(both)
    row.of_floor = floors[0] / row.forward_s
    row.of_floor_backward = floors[1] / max(row.both_s - row.forward_s, 1e-9)


def fill(row: Figure, found: tuple[Scan, list[Tensor], str] | str, *how: Any) -> None:
    """`measure` of a contender; a fault of one, which its note then tells, must not cost the figures of the others."""
    if isinstance(found, str):
        row.note = f"not run: {found}"
        return
    function, leaves, row.note = found
    try:
        measure(row, function, leaves, *how)
    except torch.OutOfMemoryError:
        row.note = "not run: out of memory"
    except Exception as error:
        row.failed, row.note = True, f"failed: {type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"


def _peak(device: torch.device, function: Callable[[], object]) -> int | None:
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    function()
    return torch.cuda.max_memory_allocated(device) - before


def run(
    cases: Iterable[tuple[str, Case]], device: torch.device, dtype: torch.dtype, copy_rate: float,
    report: Callable[[str], object], without: Collection[str] = (),
    keep: Callable[[dict[str, float], list[dict[str, Any]]], object] = lambda rates, rows: None,
) -> tuple[dict[str, float], list[dict[str, Any]]]:  # fmt: skip
    """Times every contender on every case.

    Args:
        cases: with their names; each is asked for when the one before is done.
        device: a CUDA device, the current one.
        dtype: of the inputs.
        copy_rate: bytes read and written per second.
        report: called with every line of the table.
        without: which `PEERS` to leave out.
        keep: called with what there is to return after every case, as the next one may end it all.

    Returns:
        The exponentials per second, and the figures, ready for JSON.
    """
    from triton.testing import do_bench

    from .triton.probe import exponentials_per_second

    def seconds(function: Callable[[], object]) -> float:
        return float(do_bench(function, return_mode="median")) / 1e3  # pyright: ignore

    exp_rate, rows = exponentials_per_second(device), []
    rates = {"exp_per_s": exp_rate}
    report(f"exp_per_s: {exp_rate:.3g}\n{HEADER}")
    for name, case in cases:
        torch.compiler.reset()  # else graphs of earlier shapes count towards the number after which nothing is compiled
        inputs, order = case.inputs, case.order
        others, truth = projecting(inputs, order, case.rank)
        smaller = case.size - inputs[1].element_size() * inputs[1].numel() * (1 - case.rank / inputs[1].shape[-1])
        groups = (
            (contenders(inputs, order), exact(inputs, order), case.size),
            (others, exact(truth, order), smaller),
        )
        for group, wanted, size in groups:
            floor = max(size / copy_rate, case.exponentials / exp_rate)
            # backward: u, delta, B, C again with y's gradient for y, and a gradient written for each; exponentials twice
            floors = (floor, max(2 * size / copy_rate, 2 * case.exponentials / exp_rate))
            for backend, found in group.items():
                row = Figure(name, backend, str(dtype).removeprefix("torch."))
                found = "left out" if backend in without else found
                fill(row, found, wanted, floors, seconds, partial(_peak, device))
                rows.append(asdict(row))
                report(line(row))
        keep(rates, rows)
    return rates, rows


HEADER = (
    f"{'shape':<12}{'implementation':<18}{'fwd ms':>9}{'fwd+bwd ms':>12}{'of floor':>10}{'bwd':>7}{'peak MB':>9}"
    f"{'same bits':>11}{'error':>10}"
)


def line(row: Figure) -> str:
    """A line of the table that the command prints."""

    def cell(value: float | None, width: int, form: str, scale: float = 1.0) -> str:
        return f"{'-' if value is None else format(value * scale, form):>{width}}"

    same = "-" if row.repeatable is None else "yes" if row.repeatable else "no"
    return (
        f"{row.shape:<12}{row.backend:<18}{cell(row.forward_s, 9, '.3f', 1e3)}{cell(row.both_s, 12, '.3f', 1e3)}"
        f"{cell(row.of_floor, 10, '.0%')}{cell(row.of_floor_backward, 7, '.0%')}{cell(row.peak_bytes, 9, '.0f', 1e-6)}"
        f"{same:>11}{cell(row.error, 10, '.1e')}  {row.note}"
    ).rstrip()
