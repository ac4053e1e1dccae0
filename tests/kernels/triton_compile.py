"""Compile what the launchers launch, ahead of time and without a GPU, and read the resources. Run as a script
it prints the table that CI keeps: registers, stack, shared memory, and instructions per step or element.

The launchers run on small CPU tensors with every kernel replaced by a recorder; the recorded arguments are
typed and specialised as Triton's launch would, compiled for a compute capability, and read with the
`cuobjdump` of Triton's wheel.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

_NAMES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int32: "i32",
    torch.int8: "i8",
}
_OPTIONS = ("num_warps", "maxnreg")
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


@dataclass(frozen=True)
class Launch:
    """A kernel and what a launcher gave it."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    options: dict[str, Any]


@dataclass(frozen=True)
class Resources:
    """Per thread: registers, and bytes of stack (which is where spills go). Per program: bytes of shared memory.

    `instructions` are those of the innermost loops, or of a kernel without loops, for each of its `work`: what a thread
    executes per step of a scan, per element of a convolution.
    """

    registers: int
    stack: int
    shared: int
    instructions: dict[str, float]


class _Recorder:
    def __init__(self, kernel: Any, launches: list[Launch]) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def record(*args: Any, **kwargs: Any) -> None:
            options = {key: kwargs.pop(key) for key in _OPTIONS if key in kwargs}
            bound = self.kernel.signature.bind(*args, **kwargs)  # a TypeError if launcher and kernel disagree
            self.launches.append(Launch(self.kernel, grid, dict(bound.arguments), options))

        return record


@contextlib.contextmanager
def recording() -> Iterator[list[Launch]]:
    """Within the block, launches are recorded and not run."""
    from visionssm_kernels.triton import conv, memory, scan, ssd, state_fusion, wavefront

    launches: list[Launch] = []
    replaced = []
    for module in (conv, memory, scan, ssd, state_fusion, wavefront):
        for name, value in list(vars(module).items()):
            if name.endswith("_kernel"):
                replaced.append((module, name, value))
                setattr(module, name, _Recorder(value, launches))
    try:
        yield launches
    finally:
        for module, name, value in replaced:
            setattr(module, name, value)


def compile_launch(launch: Launch, capability: int) -> Resources:
    """Compiles to machine code for sm_`capability`."""
    signature: dict[str, str] = {}
    constants: dict[tuple[int], Any] = {}
    attributes: dict[tuple[int], list] = {}
    for index, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        specialised = not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (specialised and isinstance(value, int) and value == 1):
            signature[parameter.name] = "constexpr"
            constants[(index,)] = value
            continue
        if isinstance(value, Tensor):
            signature[parameter.name] = "*" + _NAMES[value.dtype]
            aligned = value.data_ptr() % 16 == 0
        else:
            signature[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            aligned = value % 16 == 0
        if specialised and aligned:
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(launch.kernel, signature, constants, attributes)
    options = {key: value for key, value in launch.options.items() if value is not None}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [str(CUOBJDUMP), "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        command[1] = "-sass"
        code = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack, shared = (int(re.search(rf"{key}:(\d+)", usage).group(1)) for key in ("REG", "STACK", "SHARED"))
    counts = count_instructions(code)
    return Resources(registers, stack, shared, {key: counts[key] / work(launch) for key in COUNTED})


COUNTED = ("MUFU", "SHFL", "LDG", "STG", "HMMA", "ALL")
_INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)([^;]*);", re.MULTILINE)


def count_instructions(code: str) -> Counter[str]:
    """Instructions by name and "ALL", of the loops that hold no other loop; of everything where there is no loop."""
    found = [(int(address, 16), name, rest) for address, name, rest in _INSTRUCTION.findall(code)]
    loops = []
    for address, name, rest in found:
        target = re.search(r"0x([0-9a-f]+)", rest) if name == "BRA" else None
        if target and int(target.group(1), 16) < address:  # the last instruction jumps to itself
            loops.append((int(target.group(1), 16), address))
    inner = [a for a in loops if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    everywhere = [(0, max(address for address, _, _ in found))]
    names = [name for address, name, _ in found if any(low <= address <= high for low, high in inner or everywhere)]
    return Counter(names) + Counter(ALL=len(names))


def work(launch: Launch) -> float:
    """Steps that one pass of a kernel's innermost loop makes; elements of a thread, where a tile is all there is."""
    given = launch.arguments
    if "U" in given:
        return given["U"]
    tile = given.get("BT", given.get("BP", 0)) * given.get("BD", 0)
    return tile / (32 * launch.options["num_warps"]) or 1


def scan_launches(
    dtype: torch.dtype,
    d_state: int,
    *,
    backward: bool,
    parallel: bool = False,
    states: bool = False,
    table: bool = True,
    aligned: bool = True,
    large: bool = False,
    segment: int = 0,
    rank: int = 0,
) -> list[Launch]:
    """What a routed scan of two routes launches. Not `aligned`: B and C lie side by side behind an odd column;
    `large`: with marks; `rank`: dt is projected from so many columns, which lie before B and C, with a float32 weight."""
    from tests.kernels.triton_cases import changed, chunks_in_parallel
    from visionssm_kernels.triton import memory, scan

    batch, length, routes, dim = 2, 40, 2, 32
    u = torch.zeros(batch, length, 1, dim, dtype=dtype)
    delta = torch.zeros(batch, length, routes, dim, dtype=dtype)
    packed = torch.zeros(batch, length, routes, 2 * d_state + 1, dtype=dtype)
    weight = None
    if rank:
        delta = torch.zeros(batch, length, routes, rank + 2 * d_state, dtype=dtype)[..., :rank]
        weight = torch.zeros(routes, dim, rank)
    B, C = packed[..., 1 : d_state + 1], packed[..., d_state + 1 :]
    if aligned:
        B, C = B.contiguous(), C.contiguous()
    A, D = torch.zeros(routes, dim, d_state), torch.zeros(routes, dim)
    order = torch.zeros(routes, length, dtype=torch.int32) if table else None
    inputs = (u, delta, A, B, C, D, D, order, True, "sum")
    settings = chunks_in_parallel(parallel)
    with changed(settings | ({(memory, "LARGE"): 0} if large else {})), recording() as launches:
        if backward:
            checkpoints = torch.zeros(batch, routes, 2, dim, d_state)
            grad_states = torch.zeros(batch, length, routes, dim, d_state) if states else None
            scan.routed_scan_backward(u[:, :, 0], grad_states, *inputs, checkpoints, segment)
        else:
            scan.routed_scan_forward(*inputs, True, states, segment, 0, weight)
    return launches


def conv_launches(dtype: torch.dtype, taps: int, *, backward: bool) -> list[Launch]:
    """What a convolution of two routes launches."""
    from visionssm_kernels.triton import conv

    x = torch.zeros(2, 40, 2, 64, dtype=dtype)
    weight, bias = torch.zeros(2, 64, taps), torch.zeros(2, 64)
    order = torch.zeros(2, 40, dtype=torch.int32)
    with recording() as launches:
        if backward:
            conv.route_conv_backward(x, x, weight, bias, order, True)
        else:
            conv.route_conv_forward(x, weight, bias, order, True)
    return launches


def fusion_launches(dtype: torch.dtype, *, backward: bool) -> list[Launch]:
    """What Spatial-Mamba's state fusion launches."""
    from visionssm_kernels.triton import state_fusion

    h, weight = torch.zeros(2, 7, 7, 64, dtype=dtype), torch.zeros(3, 64, 3, 3)
    with recording() as launches:
        if backward:
            state_fusion.backward(h, h, weight, [1, 3, 5])
        else:
            state_fusion.forward(h, weight, [1, 3, 5])
    return launches


def wave_launches(dtype: torch.dtype, d_state: int, *, backward: bool) -> list[Launch]:
    """What a two-dimensional scan launches."""
    from visionssm_kernels.triton import wavefront

    cells = (2, 7, 7)
    u, delta, B, C = (torch.zeros(*cells, *x, dtype=dtype) for x in ((32,), (2, 32), (2, d_state), (d_state,)))
    A, D, bias = torch.zeros(2, 32, d_state), torch.zeros(32), torch.zeros(2, 32)
    with recording() as launches:
        if backward:
            wavefront.backward(u, u, delta, A, B, C, D, bias, False)
        else:
            wavefront.forward(u, delta, A, B, C, D, bias, False)
    return launches


def duality_launches(dtype: torch.dtype, size: int, *, backward: bool) -> list[Launch]:
    """What a scan of Mamba-2 launches, N and P of one size."""
    from visionssm_kernels.triton import ssd

    x, dt = torch.zeros(2, 70, 2, size, dtype=dtype), torch.zeros(2, 70, 2)
    A, B = torch.zeros(2), torch.zeros(2, 70, 1, size, dtype=dtype)
    with recording() as launches:
        if backward:
            ssd.backward(x, x, dt, A, B, B, A, torch.zeros(2, 3, 2, size, size))
        else:
            ssd.forward(x, dt, A, B, B, A)
    return launches


def every_launch() -> Iterator[tuple[str, Launch]]:
    """What the table shows: bfloat16 as models run it, and a word for the case."""
    half = torch.bfloat16
    for backward in (False, True):
        for d_state in (1, 2, 4, 8, 16, 32, 64):
            for launch in scan_launches(half, d_state, backward=backward, parallel=d_state in (1, 16)):
                yield f"N={d_state}", launch
        for d_state, rank in ((1, 6), (1, 48), (16, 12), (16, 24)) if not backward else ():
            for launch in scan_launches(half, d_state, backward=False, rank=rank):
                yield f"N={d_state} R={rank}", launch
        for d_state in (1, 16):
            for launch in wave_launches(half, d_state, backward=backward):
                yield f"N={d_state}", launch
        for launch in conv_launches(half, 4, backward=backward):
            yield "4 taps", launch
        for launch in fusion_launches(torch.float32, backward=backward):
            yield "27 taps", launch
        for launch in duality_launches(half, 64, backward=backward):
            yield "N=P=64", launch


def main() -> None:
    """A line for every kernel and compute capability, each once."""
    print(
        "kernel".ljust(24),
        "case".ljust(10),
        "  sm",
        "registers",
        "stack",
        "shared",
        *COUNTED,
        "instructions per",
        sep="  ",
    )
    for case, launch in every_launch():
        for capability in (80, 90):
            found = compile_launch(launch, capability)
            name, unit = launch.kernel.__name__, "step" if "U" in launch.arguments else "element"
            unit = unit if work(launch) != 1 or "U" in launch.arguments else "pass"
            counts = (f"{found.instructions[key]:.4g}".rjust(4) for key in COUNTED)
            numbers = (str(x).rjust(6) for x in (found.registers, found.stack, found.shared))
            print(name.ljust(24), case.ljust(10), f"  {capability}", *numbers, *counts, unit, sep="  ", flush=True)


if __name__ == "__main__":
    root = Path(__file__).parents[2]
    sys.path[:0] = [str(root), str(root / "kernels")]
    main()
