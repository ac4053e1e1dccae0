"""One table of implementations: what each needs, why it cannot run here, and how one is chosen."""

from __future__ import annotations

import contextlib
import importlib
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from operator import index
from types import ModuleType

import torch
from torch._C._functorch import TransformType, get_interpreter_stack, peek_interpreter_stack
from torch.autograd import forward_ad

__all__ = [
    "Backend",
    "BackendReport",
    "backends",
    "choose",
    "chosen",
    "is_plain_inference",
    "module_of",
    "projects",
    "resolve",
    "use_backend",
    "warmup",
]

ENVIRONMENT_VARIABLE = "VISIONSSM_BACKEND"


@dataclass(frozen=True)
class Backend:
    """One implementation of the operators.

    Args:
        name: what a user asks for.
        module: relative module that implements it, imported when first used.
        composite: True if it is plain torch under autograd, False if it goes through the custom operators.
        summary: one line for people.
        max_rank: largest rank R of a `dt_weight` that its scan multiplies by; beyond it the product comes first.
    """

    name: str
    module: str
    composite: bool
    summary: str
    max_rank: int = 0

    def why_not(self, device: torch.device, dtype: torch.dtype, d_state: int) -> str | None:
        """None if it can run such inputs on this machine, else the reason in one line."""
        if self.composite:
            return None if dtype.is_floating_point else f"{dtype} is not a floating-point dtype"
        try:
            module = module_of(self.name)
        except ImportError as error:
            return f"cannot be imported: {error}"
        return module.why_not(device, dtype, d_state)


_TABLE = {
    backend.name: backend
    for backend in (
        Backend("numba", ".cpu", False, "CPU, explicit SIMD, multi-threaded", 64),
        Backend("triton", ".triton", False, "GPU, one launch for all routes", 64),
        Backend("chunked", ".chunked", True, "any device, plain torch in two passes over chunks"),
        Backend("reference", ".reference", True, "any device, the loop over steps; ground truth, slow"),
        Backend("loop", ".loop", True, "any device, mamba_ssm's loop without CUDA; the benchmarks' baseline"),
    )
}
_AUTO = ("triton", "numba", "chunked")  # never the loop
_SLOW_ELEMENTS = 1 << 22  # B*K*T*D*N above which "auto" says once that it is not running a fast kernel

_chosen: str = os.environ.get(ENVIRONMENT_VARIABLE, "auto")
_told: set[str] = set()


@cache
def module_of(name: str) -> ModuleType:
    """The module of a backend; imports it at first use.

    Raises:
        ImportError: what it needs is not installed.
    """
    return importlib.import_module(_TABLE[name].module, __package__)


def projects(name: str, rank: int) -> bool:
    """Whether the scan of a backend multiplies by a `dt_weight` of this rank itself."""
    return rank <= _TABLE[name].max_rank


@dataclass(frozen=True)
class BackendReport:
    """Which implementations run on this machine; prints as a table."""

    device: str
    dtype: torch.dtype
    chosen: str
    reasons: dict[str, str | None]

    def __getitem__(self, name: str) -> str | None:
        """None if `name` can run, else why not."""
        return self.reasons[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.reasons)

    @property
    def available(self) -> list[str]:
        """Names of the implementations that can run, the automatic choice's preference first."""
        return [name for name, reason in self.reasons.items() if reason is None]

    def __str__(self) -> str:
        fate = "would run" if self.reasons[self.chosen] is None else "is asked for and cannot run"
        lines = [f"scan kernels for {self.dtype} on {self.device} ({self.chosen} {fate})"]
        for name, reason in self.reasons.items():
            lines.append(f"  {name:<10} {'yes' if reason is None else 'no: ' + reason:<44} {_TABLE[name].summary}")
        return "\n".join(lines)

    __repr__ = __str__


def backends(
    device: str | torch.device | None = None, dtype: torch.dtype = torch.float32, *, d_state: int = 16
) -> BackendReport:
    """Lists the implementations and, for each, why it can or cannot run.

    Args:
        device: where the tensors would be; the default is CUDA if there is a GPU, else the CPU.
        dtype: their dtype.
        d_state: their state size N.

    Returns:
        A report that prints as a table; `report.available` are the names that can run.

    Raises:
        ValueError: the environment variable VISIONSSM_BACKEND is an unknown name.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    reasons = {b.name: b.why_not(device, dtype, d_state) for b in _TABLE.values()}
    chosen = _check_name(_chosen) if _chosen != "auto" else next(name for name in _AUTO if reasons[name] is None)
    return BackendReport(str(device), dtype, chosen, reasons)


def _check_name(name: str) -> str:
    if name != "auto" and name not in _TABLE:
        raise ValueError(f"unknown backend {name!r}: choose 'auto' or one of {', '.join(map(repr, _TABLE))}")
    return name


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Within the block, every operator runs this implementation, or raises with the reason why it cannot.

    Args:
        name: "auto", "numba", "triton", "chunked", "reference" or "loop". The environment variable VISIONSSM_BACKEND, read
            at import, sets the same for a whole process.

    Raises:
        ValueError: unknown name.
    """
    global _chosen
    previous, _chosen = _chosen, _check_name(name)
    try:
        yield
    finally:
        _chosen = previous


def resolve(requested: str, device: str, dtype: torch.dtype, d_state: int) -> str:
    """The implementation that will run.

    Args:
        requested: a name, or "auto" to follow `use_backend` and then the fastest that can run.
        device: where the tensors are, as text.
        dtype: of u.
        d_state: N.

    Raises:
        ValueError: unknown name.
        RuntimeError: the requested implementation cannot run such inputs; the message says why.
    """
    name = _check_name(requested)
    name = _check_name(_chosen) if name == "auto" else name
    where = torch.device(device)
    if name != "auto":
        reason = _TABLE[name].why_not(where, dtype, d_state)
        if reason is not None:
            usable = [n for n, b in _TABLE.items() if b.why_not(where, dtype, d_state) is None]
            raise RuntimeError(f"backend {name!r} cannot run here: {reason}. Usable: {', '.join(usable)}")
        return name
    return next(n for n in _AUTO if _TABLE[n].why_not(where, dtype, d_state) is None)


# what torch.compiler.assume_constant_result does, after it has imported all of torch's compiler, which takes seconds
resolve._dynamo_marked_constant = True  # type: ignore[attr-defined]


def chosen(requested: str) -> str:
    """What `use_backend` or the environment says where "auto" is requested, else the request."""
    return _chosen if requested == "auto" else requested


def choose(requested: str, device: str, dtype: torch.dtype, d_state: int) -> str:
    """The implementation that will run, as operators ask for it; arguments and errors are those of `resolve`.

    torch.compile sees the value that `use_backend` set, and compiles anew where it changes. Within torch.func's derivatives and
    forward-mode ones, which custom operators do not have, "auto" is plain torch and any other kernel an error.
    """
    requested = chosen(requested)
    name = resolve(requested, device, dtype, index(d_state))  # a number, also where torch.compile has a symbol
    if torch.compiler.is_compiling() or _TABLE[name].composite or not _transformed():
        return name
    if requested == "auto":
        return "chunked"
    raise RuntimeError(f"backend {name!r} has no derivatives in torch.func and forward mode: 'chunked' has them")


def _transformed() -> bool:
    if forward_ad._current_level >= 0:
        return True
    if peek_interpreter_stack() is None:
        return False
    return any(level.key() in (TransformType.Grad, TransformType.Jvp) for level in get_interpreter_stack() or ())


def warmup() -> None:
    """Compiles the CPU's kernels ahead of their first use and keeps them on disk for later processes.

    A first call takes half a minute or so, one that finds them in numba's cache a second. A job that must not wait, or that
    starts many processes, calls it once before.

    Raises:
        RuntimeError: the kernels cannot run on this machine, with the reason.
    """
    resolve("numba", "cpu", torch.float32, 1)
    module_of("numba").warmup()


_PLAIN_TENSORS = (torch.Tensor, torch.nn.Parameter)


def is_plain_inference(*tensors: torch.Tensor | None) -> bool:
    """Whether nothing but the result matters: no gradient, graph, trace or mode that watches torch, tensors on the CPU.

    A kernel can then be called as it is: torch's dispatcher has nothing to do, and takes longer than a small kernel.
    """
    if torch.jit.is_tracing() or torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return False
    if peek_interpreter_stack() is not None or forward_ad._current_level >= 0:
        return False
    grads = torch.is_grad_enabled()
    return all(
        x is None or (type(x) in _PLAIN_TENSORS and x.is_cpu and not (grads and x.requires_grad)) for x in tensors
    )


def warn_if_slow(name: str, requested: str, elements: int, device: str, dtype: torch.dtype, d_state: int) -> None:
    """Says once per process that "auto" runs plain torch on a size where a kernel would be many times faster."""
    if name != "chunked" or requested != "auto" or _chosen != "auto" or elements < _SLOW_ELEMENTS or name in _told:
        return
    if device == "meta":  # nothing runs
        return
    _told.add(name)
    fast = "triton" if torch.device(device).type == "cuda" else "numba"
    reason = _TABLE[fast].why_not(torch.device(device), dtype, d_state)
    warnings.warn(
        f"the selective scan runs in plain torch ('chunked') on a large input because {fast!r} cannot run: {reason}",
        stacklevel=4,
    )
