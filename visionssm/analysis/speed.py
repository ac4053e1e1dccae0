"""Speed and memory of models of this package, of timm and of MONAI, in one run and in turn: a busy machine hits all alike."""

from __future__ import annotations

import contextlib
import ctypes
import difflib
import fnmatch
import gc
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from timm.models import get_pretrained_cfg
from torch import nn

import visionssm
from visionssm.models import pretrained_cfg
from visionssm.models.reported import REPORTED
from visionssm_kernels import backends, use_backend

from .baselines import BASELINES, REPORTED_BY_TIMM, VOLUME_BASELINES, VOLUME_CHANNELS, build_volume_baseline
from .flops import count_operations, count_parameters

__all__ = ["MODES", "Mode", "Result", "Setting", "limit_memory", "measure", "resolve_models"]

Mode = Literal["latency", "inference", "training", "checkpointed", "loop"]
MODES: dict[str, str] = {
    "latency": "one forward pass of one image, no gradients",
    "inference": "one forward pass of a batch, no gradients",
    "training": "forward and backward pass of a batch, gradients of all parameters, no optimiser",
    "checkpointed": "as training, with gradient checkpointing",
    "loop": "as latency, with the scan as mamba_ssm's loop over steps (backend 'loop')",
}
_MEMORY_WORDS = (
    "not enough memory",
    "can't allocate memory",
    "Cannot allocate memory",
)  # torch's CPU allocator
_HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How everything in a run is measured.

    Args:
        device: "cpu" or "cuda".
        precision: "float32", or "bfloat16" or "float16" under autocast.
        tf32: whether float32 products on a GPU may be rounded to TF32.
        channels_last: memory format of images and convolution weights.
        compile: whether models go through torch.compile.
        batch: images per pass, but for latency and loop, which take one.
        repetitions: timed passes per model, taken in turn.
        warmup: passes before, not timed.
        loop_once: time a single pass of the loop, which takes seconds, and do not warm it up.
    """

    device: str = "cpu"
    precision: str = "float32"
    tf32: bool = False
    channels_last: bool = False
    compile: bool = False
    batch: int = 8
    repetitions: int = 5
    warmup: int = 2
    loop_once: bool = False

    @property
    def hardware(self) -> str:
        """The device by name; for CPUs also the threads in use."""
        if self.device.startswith("cuda"):
            return torch.cuda.get_device_name(self.device)
        return f"{_cpu_name()}, {torch.get_num_threads()} threads"

    @property
    def versions(self) -> str:
        """Of what decides about speed."""
        names = f"Python {platform.python_version()}, torch {torch.__version__}, timm {timm.__version__}"
        return f"{names}, visionssm {visionssm.__version__}, scan kernels: {backends(self.device).chosen}"

    @property
    def arithmetic(self) -> str:
        """Precision, compilation and memory format in words."""
        precision = self.precision if self.precision == "float32" else f"autocast to {self.precision}"
        tf32 = f", TF32 {'on' if self.tf32 else 'off'}" if self.device.startswith("cuda") else ""
        compiled = "torch.compile" if self.compile else "eager"
        return f"{precision}{tf32}, {compiled}, {'channels_last' if self.channels_last else 'contiguous'}"


@dataclass(frozen=True, kw_only=True)
class Result:
    """One model at one size in one mode; numbers are None where it could not be measured, and `problem` says why.

    Args:
        seconds: median of the repetitions, for the whole batch.
        fastest, slowest: the extremes.
        peak_bytes: most memory held during a pass, the weights included; None where the system cannot tell.
        macs, flops: of one image, see `Operations`; flops in the convention of the papers.
        top1: accuracy as its authors report it.
        part: of a run in parts, see `measure_zoo`; ratios are within one.
    """

    model: str
    mode: Mode
    resolution: int
    batch: int
    seconds: float | None = None
    fastest: float | None = None
    slowest: float | None = None
    peak_bytes: int | None = None
    parameters: int | None = None
    macs: int | None = None
    flops: int | None = None
    top1: float | None = None
    problem: str = ""
    part: str = ""

    @property
    def throughput(self) -> float | None:
        """Images per second."""
        return None if self.seconds is None else self.batch / self.seconds


def resolve_models(names: Sequence[str]) -> list[str]:
    """Full names for names, short names of baselines and shell patterns over this package's models.

    Raises:
        ValueError: neither this package nor timm knows a name, or a pattern fits nothing.
    """
    ours, found = visionssm.list_models(), []
    for name in names:
        name = BASELINES.get(name, name)
        if any(c in name for c in "*?["):
            matches = fnmatch.filter(ours, name)
            if not matches:
                raise ValueError(f"no model of visionssm fits {name!r}")
            found += matches
        elif (
            name in ours
            or name in VOLUME_BASELINES
            or timm.is_model(name)
            or (name.endswith(".py") and Path(name).is_file())
        ):
            found.append(name)
        else:
            known = {*ours, *BASELINES, *VOLUME_BASELINES, *timm.list_models()}  # timm has ours too, once registered
            close = difflib.get_close_matches(name, sorted(known), n=3)
            raise ValueError(f"unknown model {name!r}" + (f": did you mean {' or '.join(close)}?" if close else ""))
    return list(dict.fromkeys(found))


def measure(
    models: Sequence[str],
    resolutions: Sequence[int],
    modes: Sequence[Mode],
    setting: Setting,
    *,
    report: Callable[[str], None] = lambda line: None,
) -> list[Result]:
    """Measures every model at every resolution in every mode.

    At each resolution and mode the models take turns, one pass each, `repetitions` times. What a model cannot do (memory ran
    out, a size it does not take) is written into its result; a model whose memory ran out is not tried at larger sizes.

    Args:
        models: full names, see `resolve_models`.
        resolutions: sides of square images or cubes.
        modes: of `MODES`; "loop" is for this package's models, "checkpointed" for those that can; others are left out of it.
        setting: how.
        report: told what is being done.

    Raises:
        ValueError: what no model could be measured with.
    """
    device = torch.device(setting.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("there is no CUDA device on this machine: choose --device cpu")
    ours = set(visionssm.list_models())
    exhausted: dict[tuple[str, Mode], int] = {}
    results = []
    with _tf32(setting.tf32):
        for resolution in sorted(resolutions):
            subjects = {}
            for name in models:
                report(f"{name} at {resolution}")
                subjects[name] = _build(name, resolution, setting)
            for mode in modes:
                report(f"{mode} at {resolution}")
                contestants = {}
                for name, subject in subjects.items():
                    able = subject.model is None or hasattr(subject.model, "set_grad_checkpointing")
                    if (mode == "loop" and name not in ours) or (mode == "checkpointed" and not able):
                        continue
                    result = replace(
                        subject.result, mode=mode, batch=1 if mode in ("latency", "loop") else setting.batch
                    )
                    if (name, mode) in exhausted:
                        problem = f"not tried: out of memory at {exhausted[name, mode]}"
                        result = replace(result, problem=result.problem or problem)
                    contestants[name] = result
                done = _take_turns(contestants, subjects, mode, setting)
                for result in done:
                    if result.problem.startswith("out of memory"):
                        exhausted.setdefault((result.model, mode), resolution)
                results += done
            del subjects
            _empty(device)
    return results


# --- one model --------------------------------------------------------------------------------------------------


@dataclass
class _Subject:
    """A model that is ready to run, or the reason why there is none."""

    result: Result
    model: nn.Module | None = None
    run: Callable[..., Any] | None = None
    size: tuple[int, ...] = ()


def _build(name: str, resolution: int, setting: Setting) -> _Subject:
    if name.endswith(".py"):
        return _build_dense(name, resolution, setting)
    ours, monais = name in visionssm.list_models(), name in VOLUME_BASELINES
    cfg = pretrained_cfg(name) if ours else None if monais else get_pretrained_cfg(name)
    shape = (VOLUME_CHANNELS, 0, 0, 0) if cfg is None else cfg.input_size
    size = (shape[0], *[resolution] * (len(shape) - 1))
    top1 = REPORTED[name].top1 if name in REPORTED else REPORTED_BY_TIMM.get(name)
    result = Result(model=name, mode="latency", resolution=resolution, batch=1, top1=top1)
    options: dict[str, Any] = {"img_size": resolution} if cfg is not None and cfg.fixed_input_size else {}
    try:
        if monais:
            model = build_volume_baseline(name)
        else:
            model = visionssm.create_model(name, **options) if ours else timm.create_model(name, **options)
        operations = count_operations(model, size)
        result = replace(result, parameters=count_parameters(model), macs=operations.macs, flops=operations.papers)
        model = model.to(setting.device)
        if setting.channels_last and len(size) == 3:
            model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        run = torch.compile(model) if setting.compile else model
    except (ValueError, RuntimeError, AssertionError, MemoryError, ModuleNotFoundError) as error:
        return _Subject(replace(result, problem=_reason(error)))
    return _Subject(result, model, run, size)


def _build_dense(path: str, resolution: int, setting: Setting) -> _Subject:
    """A detector or segmentor, of a config; it takes images of any shape, here square ones."""
    from visionssm.engine.openmmlab import WholeModel  # needs visionssm[openmmlab]

    result = Result(model=Path(path).stem, mode="latency", resolution=resolution, batch=1)
    size = (3, resolution, resolution)
    try:
        model = WholeModel(path)
        operations = count_operations(model, size, compute=True)
        result = replace(result, parameters=count_parameters(model), macs=operations.macs, flops=operations.papers)
    except (ValueError, RuntimeError, AssertionError, MemoryError, ModuleNotFoundError) as error:
        return _Subject(replace(result, problem=_reason(error)))
    model = model.to(setting.device)
    return _Subject(result, model, torch.compile(model) if setting.compile else model, size)


def _one_pass(subject: _Subject, image: torch.Tensor, mode: Mode, setting: Setting) -> None:
    assert subject.model is not None
    assert subject.run is not None
    training = mode in ("training", "checkpointed")
    subject.model.train(training)
    if hasattr(subject.model, "set_grad_checkpointing"):
        subject.model.set_grad_checkpointing(mode == "checkpointed")  # pyright: ignore[reportCallIssue]
    half = _HALF.get(setting.precision)
    autocast = torch.autocast(image.device.type, dtype=half) if half else contextlib.nullcontext()
    with autocast, torch.set_grad_enabled(training), use_backend("loop" if mode == "loop" else "auto"):
        output = subject.run(image)
        if training:
            output = output[0] if isinstance(output, tuple | list) else output
            output.float().mean().backward()
            subject.model.zero_grad(set_to_none=True)
    _wait(image.device)


def _take_turns(
    contestants: dict[str, Result], subjects: dict[str, _Subject], mode: Mode, setting: Setting
) -> list[Result]:
    times: dict[str, list[float]] = {name: [] for name in contestants}
    if mode == "loop" and setting.loop_once:
        setting = replace(setting, repetitions=1, warmup=0)
    for repetition in range(setting.repetitions):
        for name, result in contestants.items():
            subject = subjects[name]
            if result.problem or subject.model is None:
                continue
            device = torch.device(setting.device)
            try:
                image = torch.randn(result.batch, *subject.size, device=device)
                if setting.channels_last and image.dim() == 4:
                    image = image.contiguous(memory_format=torch.channels_last)
                if repetition == 0:
                    for _ in range(setting.warmup):
                        _one_pass(subject, image, mode, setting)
                    with _Peak(device) as peak:
                        _one_pass(subject, image, mode, setting)
                    contestants[name] = replace(result, peak_bytes=peak.above(subject.model))
                _wait(device)
                start = time.perf_counter()
                _one_pass(subject, image, mode, setting)
                times[name].append(time.perf_counter() - start)
            except (RuntimeError, ValueError, AssertionError, MemoryError) as error:
                problem = _reason(error)  # text only: the error holds on to the frames, and they to the memory
                contestants[name] = replace(contestants[name], problem=problem)
                times[name].clear()
            if contestants[name].problem:
                subject.model.zero_grad(set_to_none=True)
                _empty(device)
    return [_with_times(result, times[name]) for name, result in contestants.items()]


def _with_times(result: Result, taken: list[float]) -> Result:
    if not taken:
        return result
    return replace(result, seconds=statistics.median(taken), fastest=min(taken), slowest=max(taken))


# --- machine ----------------------------------------------------------------------------------------------------


class _Peak:
    """Most memory held within the block: CUDA's own count, or Linux's of the process; elsewhere unknown."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.before = self.most = None

    def __enter__(self) -> _Peak:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
        else:
            self.before = _reset_high_water()
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            self.most = torch.cuda.max_memory_allocated(self.device)
        elif self.before is not None:
            self.most = _status_bytes("VmHWM")

    def above(self, model: nn.Module) -> int | None:
        """What the pass took, and the model's weights; other models' weights are not counted."""
        if self.before is None or self.most is None:
            return None
        weights = sum(t.nbytes for t in [*model.parameters(), *model.buffers()])
        return self.most - self.before + weights


def _reset_high_water() -> int | None:
    """Memory of the process now, from which Linux counts its maximum anew; None elsewhere."""
    try:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # memory that is freed but kept would hide what a pass takes
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError, TypeError):
        return None
    return _status_bytes("VmRSS")


def _status_bytes(field: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)


def limit_memory(share: float = 0.9) -> None:
    """On Linux: lets the process take at most this share of the memory that is free now; beyond it, allocations fail.

    Otherwise the system would end the process without a word.
    """
    try:
        import resource

        lines = Path("/proc/meminfo").read_text().splitlines()
    except (ImportError, OSError):
        return
    used = _status_bytes("VmSize")
    free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
    if used is not None and free is not None:
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (used + int(share * free), hard))


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _empty(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@contextlib.contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    memory = isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words in text for words in _MEMORY_WORDS)
    return f"out of memory: {text[:120]}" if memory else text[:200]
