"""Times every implementation that can run here: python -m visionssm_kernels.benchmark [--device cpu] [--json PATH] [--quick].

Shapes are those of published backbones at their usual input. Each figure is the median of repeats after a warm-up (the
baseline's of fewer, or its first run alone, where it takes long). The baseline is a loop over steps with the semantics of
mamba_ssm's `selective_scan_ref`, called as the published models call it (`loop.py`), on inputs already permuted. Its time
under autograd grows with L^2, so on long sequences its gradient is skipped and said to be (`--whole-loop` runs it, in minutes).
The machine's limits (copy bandwidth, exponentials per second out of the L1 cache) are measured in the same run. On a GPU the
peers are others: see `benchmark_gpu`.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import backends, benchmark_gpu, keep_memory, linear_routes, routed_scan
from .backends import projects
from .loop import scan_routes

__all__ = ["SHAPES", "Shape", "Timing", "main", "run"]

BASELINE = "step loop"


@dataclass(frozen=True)
class Shape:
    """One selective scan of a published model: B batch, K routes, Ku 1 or K, D channels, N states, L positions."""

    what: str
    batch: int
    routes: int
    input_routes: int
    channels: int
    states: int
    size: tuple[int, ...]

    @property
    def positions(self) -> int:
        total = 1
        for extent in self.size:
            total *= extent
        return total

    @property
    def rank(self) -> int:
        """Of dt's projection in these models: a sixteenth of the block's width, which is half of D."""
        return -(-self.channels // 32)

    @property
    def exponentials(self) -> int:
        return self.batch * self.routes * self.channels * self.states * self.positions

    def bytes(self, element_size: int) -> int:
        """What a forward must move at least: u and y once, delta, B and C of every route."""
        rows = self.channels * (self.input_routes + 1 + self.routes) + 2 * self.routes * self.states
        return self.batch * self.positions * rows * element_size


SHAPES = {
    "vmT1": Shape("VMamba-T, stage 1, one image", 1, 4, 1, 192, 1, (56, 56)),
    "vmT3": Shape("VMamba-T, stage 3, 8 images", 8, 4, 1, 768, 1, (14, 14)),
    "vimT": Shape("Vim-T, 8 images", 8, 2, 2, 384, 16, (197,)),
    "mambair": Shape("MambaIR, one 64 x 64 tile", 1, 4, 1, 360, 16, (64, 64)),
    "seg": Shape("SegMamba, one 32^3 volume", 1, 3, 1, 96, 16, (32, 32, 32)),
}
GPU_SHAPES = {
    **{
        f"vmT{i + 1}": Shape(f"VMamba-T, stage {i + 1}, 128 images", 128, 4, 1, 192 << i, 1, (56 >> i, 56 >> i))
        for i in range(4)
    },
    "vimT": Shape("Vim-T, 128 images", 128, 2, 2, 384, 16, (197,)),
    "vimS": Shape("Vim-S, 128 images", 128, 2, 2, 768, 16, (197,)),
    "vimT1248": Shape("Vim-T at 1248, one image", 1, 2, 2, 384, 16, (6085,)),
    "mambair": Shape("MambaIR, 16 tiles of 64 x 64", 16, 4, 1, 360, 16, (64, 64)),
    "seg64": Shape("SegMamba, one 64^3 volume", 1, 3, 1, 96, 16, (64, 64, 64)),
}
QUICK = {
    "vm-small": Shape("four routes, one state", 1, 4, 1, 64, 1, (12, 12)),
    "vim-small": Shape("two routes, 16 states", 2, 2, 2, 64, 16, (65,)),
}
_LOOP_GRADIENT_ELEMENTS = (
    2_000_000_000  # B K D N L^2 above which the loop's gradient is not run (24 bytes moved for each)
)
_LOOP_REPEATS = 3
_LOOP_ONCE_STEPS, _LOOP_ONCE_ELEMENTS = (
    5000,
    1_000_000_000,
)  # L, B K D N L^2 above which the loop, its gradient, run once


@dataclass
class Timing:
    """One implementation on one shape; seconds are None where it was not run, and `note` says why."""

    shape: str
    backend: str
    dtype: str
    forward_s: float | None
    both_s: float | None
    forward_ratio: float | None = None
    both_ratio: float | None = None
    backward_ratio: float | None = None  # backward to forward of a training step
    of_bandwidth: float | None = None
    of_exponentials: float | None = None
    peak_bytes: int | None = None
    note: str = ""


def make_routes(shape: Shape, device: torch.device) -> Tensor:
    """Row by row, each other axis first, and back: (K, L) int32."""
    index = torch.arange(shape.positions).view(shape.size)
    forward = [index.movedim(axis, 0).flatten() for axis in range(len(shape.size))]
    routes = [*forward, *(route.flip(0) for route in forward)]
    return torch.stack(routes[: shape.routes]).to(device=device, dtype=torch.int32)


def make_inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """u, delta, A, B, C, D, bias in the layouts that a model makes, all with gradients."""
    B, K, D, N, L = shape.batch, shape.routes, shape.channels, shape.states, shape.positions
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator).to(device=device, dtype=dtype)

    delta = (0.5 * normal(K, B * L, D)).view(K, B, L, D).permute(1, 2, 0, 3)
    projection = normal(B, L, K, 8 + 2 * N)
    A = -torch.arange(1.0, N + 1, device=device).expand(K, D, N).contiguous()
    bias = torch.linspace(-6, -2, K * D, device=device).view(K, D)
    inputs = [normal(B, L, shape.input_routes, D), delta, A, projection[..., 8 : 8 + N], projection[..., 8 + N :],
              torch.ones(K, D, device=device), bias]  # fmt: skip
    return [x.detach().requires_grad_() for x in inputs]


def baseline(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor, *, shared: bool
) -> Tensor:
    """The loop with everything around it: u, delta (B, K, D, L), B, C (B, K, N, L), float32."""
    y, _ = scan_routes(u, F.softplus(delta + bias[..., None]), A, B, C, shared=shared)
    return y + u * D[..., None]


def _loop_inputs(inputs: Sequence[Tensor], order: Tensor) -> list[Tensor]:
    """Permuted ahead of time, which the baseline would otherwise pay for."""
    u, delta, A, B, C, D, bias = (x.detach() for x in inputs)
    K = delta.shape[2]

    def steps(x: Tensor) -> Tensor:
        x = x.float().expand(-1, -1, K, -1)
        routes = [x[:, order[k].long(), k] for k in range(K)]
        return torch.stack(routes, 1).transpose(2, 3).contiguous()

    ready = [steps(u), steps(delta), A, steps(B), steps(C), D, bias]
    return [x.requires_grad_() for x in ready]


_WARM_UP_SECONDS = 0.3


def _median_seconds(function: Callable[[], object], device: torch.device, repeats: int) -> float:
    return _median_seconds_of([lambda _: function()], device, repeats)[0]


def _median_seconds_of(parts: Sequence[Callable[[Any], object]], device: torch.device, repeats: int) -> list[float]:
    """Of each part, which is given what the part before returned; all are run in turn."""

    def timed() -> list[float]:
        seconds, result = [], None
        for part in parts:
            _wait(device)
            start = time.perf_counter()
            result = part(result)
            _wait(device)
            seconds.append(time.perf_counter() - start)
        return seconds

    first = timed()  # compiles, allocates
    if repeats == 1:
        return first
    spent = sum(first)
    while spent < _WARM_UP_SECONDS:  # caches, clocks and the allocator settle
        spent += sum(timed())
    rounds = [timed() for _ in range(repeats)]
    return [statistics.median(seconds) for seconds in zip(*rounds, strict=True)]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass
class _Times:
    forward: float  # by itself
    step: tuple[float, float] | None = None  # a training step: its forward and its backward
    peak: int | None = None  # bytes of the step (CUDA only)

    @property
    def both(self) -> float | None:
        return None if self.step is None else sum(self.step)


def _time(
    function: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    device: torch.device,
    repeats: int,
    gradient_repeats: int,
) -> _Times:
    with torch.no_grad():
        forward = _median_seconds(lambda: function(*inputs), device, repeats)
        y = function(*inputs)
    if gradient_repeats == 0:
        return _Times(forward)
    grad = torch.randn_like(y)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    parts = (lambda _: function(*inputs), lambda y: torch.autograd.grad(y, inputs, grad))
    step = _median_seconds_of(parts, device, gradient_repeats)
    peak = torch.cuda.max_memory_allocated(device) - before if device.type == "cuda" else None
    return _Times(forward, (step[0], step[1]), peak)


def copy_bandwidth(device: torch.device, megabytes: int = 64) -> float:
    """Bytes read and written per second by torch's own copy."""
    source = torch.ones(megabytes << 18, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / _median_seconds(lambda: target.copy_(source), device, 7)


def machine(device: torch.device) -> dict[str, object]:
    """Hardware, versions, threads and measured limits."""
    facts: dict[str, object] = {
        "processor": _processor(), "threads": torch.get_num_threads(), "system": platform.platform(),
        "python": platform.python_version(), "torch": torch.__version__, "device": str(device),
        "copy_bytes_per_s": copy_bandwidth(device),
    }  # fmt: skip
    if device.type == "cuda":
        facts |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda, "triton": version("triton")}
    elif backends(device)["numba"] is None:
        import numba

        from .cpu.probe import exp_throughput
        from .cpu.simd import LANES

        facts |= {"numba": numba.__version__, "lanes": LANES, "exp_per_s": exp_throughput()}
    return facts


def _processor() -> str:
    names = Path("/proc/cpuinfo")
    lines = names.read_text().splitlines() if names.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def _timing(shape: str, backend: str, dtype: str, times: _Times, base: _Times) -> Timing:
    row = Timing(shape, backend, dtype, times.forward, times.both, base.forward / times.forward, peak_bytes=times.peak)
    row.both_ratio = base.both / times.both if base.both and times.both else None
    row.backward_ratio = times.step[1] / times.step[0] if times.step else None
    return row


def _time_shape(
    name: str, shape: Shape, dtype: torch.dtype, device: torch.device, facts: dict[str, object], repeats: int,
    whole_loop: bool,
) -> list[Timing]:  # fmt: skip
    inputs, order = make_inputs(shape, dtype, device), make_routes(shape, device)
    label = str(dtype).removeprefix("torch.")
    squared, ready = shape.exponentials * shape.positions, _loop_inputs(inputs, order)
    gradient = whole_loop or squared <= _LOOP_GRADIENT_ELEMENTS
    loop = partial(baseline, shared=shape.input_routes == 1)
    few = 1 if shape.positions > _LOOP_ONCE_STEPS else min(repeats, _LOOP_REPEATS)
    few_gradients = 1 if squared > _LOOP_ONCE_ELEMENTS else few
    base = _time(loop, ready, device, few, few_gradients if gradient else 0)
    note = "" if gradient else "gradient not run: quadratic in L under autograd"
    rows = [_timing(name, BASELINE, "float32", base, base)]
    rows[0].note = note
    report = backends(device, dtype, d_state=shape.states)
    for backend in report:
        if report[backend] is not None or backend in ("reference", "loop"):
            reason = report[backend] or "a loop over steps like the baseline"
            rows.append(Timing(name, backend, label, None, None, note=f"not run: {reason}"))
            continue

        def scan(*tensors: Tensor, chosen: str = backend) -> Tensor:
            return routed_scan(*tensors, order=order, backend=chosen)

        times = _time(scan, inputs, device, repeats, repeats)
        row = _timing(name, backend, label, times, base)
        bandwidth = shape.bytes(inputs[0].element_size()) / times.forward
        row.of_bandwidth = bandwidth / float(str(facts["copy_bytes_per_s"]))
        if "exp_per_s" in facts:
            row.of_exponentials = shape.exponentials / times.forward / float(str(facts["exp_per_s"]))
        rows.append(row)
        if projects(backend, shape.rank):
            rows += _time_projection(name, shape, backend, inputs, order, repeats, base)
    return rows


def _time_projection(
    name: str, shape: Shape, backend: str, inputs: Sequence[Tensor], order: Tensor, repeats: int, base: _Times
) -> list[Timing]:
    """Forwards of a model's inference, whose delta is a product: made ahead of the scan, and by the scan."""
    u, _, A, B, C, D, bias = (x.detach() for x in inputs)
    low = torch.randn(shape.batch, shape.positions, shape.routes, shape.rank).to(u)
    weight = torch.randn(shape.routes, shape.channels, shape.rank).to(u) * 0.1

    def ahead() -> Tensor:
        return routed_scan(u, linear_routes(low, weight), A, B, C, D, bias, order=order, backend=backend)

    def inside() -> Tensor:
        return routed_scan(u, low, A, B, C, D, bias, order=order, dt_weight=weight, backend=backend)

    rows = []
    for function in (ahead, inside):
        with torch.no_grad():
            times = _Times(_median_seconds(function, u.device, repeats))
        label = str(u.dtype).removeprefix("torch.")
        rows.append(_timing(name, f"{backend}, dt {function.__name__}", label, times, base))
    return rows


def run_gpu(shapes: dict[str, Shape], device: torch.device, dtype: torch.dtype, report: Callable[[str], object],
            without: Sequence[str] = (), keep: Callable[[dict[str, object]], object] = lambda result: None,
            ) -> dict[str, object]:  # fmt: skip
    """`run` for a GPU, with its peers; see `benchmark_gpu`, also for `without`. `keep` is given the result so far."""
    facts, described = machine(device), {name: asdict(shape) for name, shape in shapes.items()}
    report(_describe(facts, 0))
    size = torch.empty(0, dtype=dtype).element_size()

    def cases() -> Iterator[tuple[str, benchmark_gpu.Case]]:
        for name, shape in shapes.items():
            inputs, order = make_inputs(shape, dtype, device), make_routes(shape, device)
            yield name, benchmark_gpu.Case(inputs, order, shape.rank, shape.bytes(size), shape.exponentials)

    def result(rates: dict[str, float], rows: list[dict[str, Any]]) -> dict[str, object]:
        return {"machine": facts | rates, "shapes": described, "timings": rows}

    copy_rate = float(str(facts["copy_bytes_per_s"]))
    with torch.cuda.device(device):
        found = benchmark_gpu.run(
            cases(), device, dtype, copy_rate, report, without, lambda rates, rows: keep(result(rates, rows))
        )
    return result(*found)


def run(shapes: dict[str, Shape], *, device: str = "cpu", dtype: torch.dtype = torch.float32, repeats: int = 7,
        whole_loop: bool = False, keeping_memory: bool = False, report: Callable[[str], object] = lambda line: None,
        ) -> dict[str, object]:  # fmt: skip
    """Times all implementations.

    Args:
        shapes: what to time, by name; see `SHAPES`.
        device: where.
        dtype: of u, delta, B and C; the baseline always runs in float32.
        repeats: how many runs, after one that is not counted, a figure is the median of.
        whole_loop: also run the baseline's gradient where it is quadratic in L and takes minutes.
        keeping_memory: keep freed memory in the process, so that no implementation waits for the system's: see `keep_memory`.
        report: called with every line of the table as it is ready.

    Returns:
        {"machine": ..., "repeats": ..., "timings": [...]}, ready for JSON.

    Raises:
        RuntimeError: memory cannot be kept here.
    """
    where = torch.device(device)
    if keeping_memory and not keep_memory():
        raise RuntimeError("freed memory can be kept with glibc only")
    facts = machine(where) | {"keeping_memory": keeping_memory}
    timings: list[Timing] = []
    report(_describe(facts, repeats))
    report(_HEADER)
    for name, shape in shapes.items():
        for row in _time_shape(name, shape, dtype, where, facts, repeats, whole_loop):
            timings.append(row)
            report(_line(row))
    described = {name: asdict(shape) for name, shape in shapes.items()}
    return {
        "machine": facts,
        "repeats": repeats,
        "shapes": described,
        "timings": [asdict(row) for row in timings],
    }


_HEADER = (
    f"{'shape':<10}{'implementation':<18}{'fwd ms':>10}{'fwd+bwd ms':>12}{'fwd x loop':>12}{'both x loop':>12}"
    f"{'bwd / fwd':>10}{'of copy':>9}{'of exp':>8}{'peak MB':>9}"
)


def _describe(facts: dict[str, object], repeats: int) -> str:
    lines = [f"{key}: {value:.3g}" if isinstance(value, float) else f"{key}: {value}" for key, value in facts.items()]
    lines.append(
        f"figures: median of {repeats} runs after a warm-up; 'bwd / fwd': of a training step; 'of copy', 'of exp': forward "
        "against the measured limits"
    )
    return "\n".join(lines)


def _line(row: Timing) -> str:
    def cell(value: float | None, width: int, form: str, scale: float = 1.0) -> str:
        return f"{'-' if value is None else format(value * scale, form):>{width}}"

    return (
        f"{row.shape:<10}{row.backend:<18}{cell(row.forward_s, 10, '.2f', 1e3)}{cell(row.both_s, 12, '.2f', 1e3)}"
        f"{cell(row.forward_ratio, 12, '.1f')}{cell(row.both_ratio, 12, '.1f')}{cell(row.backward_ratio, 10, '.2f')}"
        f"{cell(row.of_bandwidth, 9, '.0%')}"
        f"{cell(row.of_exponentials, 8, '.0%')}{cell(row.peak_bytes, 9, '.0f', 1e-6)}  {row.note}"
    ).rstrip()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m visionssm_kernels.benchmark", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="default: float32, on GPUs bfloat16"
    )
    parser.add_argument("--shapes", nargs="+", choices=tuple(SHAPES | GPU_SHAPES), help="default: all of the device")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="small shapes, three repeats: does it run at all?")
    parser.add_argument("--whole-loop", action="store_true", help="run the baseline's gradient however long it takes")
    parser.add_argument(
        "--keep-memory", action="store_true", help="keep freed memory, so that no implementation waits for the system's"
    )
    parser.add_argument(
        "--without", nargs="+", default=[], choices=benchmark_gpu.PEERS, help="peers on GPUs to leave out"
    )
    parser.add_argument("--json", type=Path, help="where to write the figures; on GPUs after every shape")
    options = parser.parse_args(arguments)
    if options.quick and options.shapes:
        parser.error("--quick has its own shapes: leave --shapes out")
    if options.repeats < 1:
        parser.error(f"--repeats must be at least 1, got {options.repeats}")
    device = torch.device(options.device)
    known = GPU_SHAPES if device.type == "cuda" else SHAPES
    if unknown := set(options.shapes or ()) - set(known):
        parser.error(f"--shapes {' '.join(sorted(unknown))}: on {device.type} choose from {', '.join(known)}")
    shapes = QUICK if options.quick else {name: known[name] for name in options.shapes or known}
    repeats = 3 if options.quick else options.repeats
    dtype = getattr(torch, options.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this machine has no CUDA device")
    if options.keep_memory and (device.type == "cuda" or not keep_memory()):
        parser.error("--keep-memory: for CPUs, with glibc")
    if options.without and device.type != "cuda":
        parser.error("--without: of the peers on GPUs, which --device cuda times")
    if options.json and not options.json.parent.is_dir():
        parser.error(f"--json: there is no folder {options.json.parent}")

    def keep(result: dict[str, object]) -> None:
        if options.json:
            options.json.write_text(json.dumps(result, indent=1) + "\n")

    if device.type == "cuda":
        result = run_gpu(shapes, device, dtype, _print, options.without, keep)
    else:
        result = run(
            shapes,
            device=options.device,
            dtype=dtype,
            repeats=repeats,
            whole_loop=options.whole_loop,
            keeping_memory=options.keep_memory,
            report=_print,
        )
    keep(result)
    timings: Any = result["timings"]
    return int(any(row.get("failed") and row["backend"] not in benchmark_gpu.PEERS for row in timings))


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
