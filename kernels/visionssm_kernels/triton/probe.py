"""How many exponentials a GPU computes per second: the limit of scans with many states.

    x = exp2(x)        ROUNDS times in registers

Layout: a program holds BLOCK values, 8 for each thread, which do not depend on each other. Cost per value: ROUNDS exponentials
(one MUFU each), 8 / ROUNDS bytes for each of them.
"""

import torch
import triton
import triton.language as tl

from .memory import on_device

__all__ = ["exponentials_per_second"]

BLOCK, ROUNDS = 1024, 512


@triton.jit
def exp_kernel(x, BLOCK: tl.constexpr, ROUNDS: tl.constexpr):
    at = x + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(at)
    for _ in range(ROUNDS):
        value = tl.exp2(value) - 2.0  # stays between -2 and -1, no denormal number among them
    tl.store(at, value)


def exponentials_per_second(device: torch.device, programs: int = 1 << 14) -> float:
    """Measured on `device`, in a fifth of a second."""
    x = torch.zeros(programs * BLOCK, device=device)
    with on_device(x):
        milliseconds = triton.testing.do_bench(
            lambda: exp_kernel[programs,](x, BLOCK=BLOCK, ROUNDS=ROUNDS, num_warps=4), return_mode="median"
        )
    return programs * BLOCK * ROUNDS / milliseconds * 1e3  # pyright: ignore
