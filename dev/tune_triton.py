"""Measures the scan kernels' configurations on the GPU at hand and rewrites its architecture's entry of triton/tuning.json.

python dev/tune_triton.py              # minutes; commit the file

Each state size runs with every block of channels and number of steps loaded together that one warp can hold, forward and
backward, on 32 images of 784 positions, 192 channels and 4 routes in bfloat16; the fastest is kept. A configuration that spills
loses by its time.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, replace

import torch

from visionssm_kernels.triton import CHUNK, STATE_SIZES, tuning

Configuration = tuple[int, int, int | None]


def candidates(d_state: int) -> list[Configuration]:
    """(channels of a block, steps loaded together, limit of registers); all registers, so that few warps do not make it spill."""
    blocks = [block for block in (8, 16, 32) if block * d_state <= 1024]
    return [
        (block, group, 255)
        for block in blocks
        for group in (1, 2, 4, 8)
        if CHUNK % group == 0 and d_state * group <= 128
    ]


def fastest(
    kind: str, capability: int, d_state: int, table: tuning.Table, seconds: Callable[[], float]
) -> tuple[Configuration, float]:
    """The best configuration of `kind` ("scan" or "scan_backward") for a state size: what `seconds` gives with it set."""
    times = {}
    before = tuning.TABLES
    try:
        for found in candidates(d_state):
            tuning.TABLES = before | {capability: replace(table, **{kind: {**getattr(table, kind), d_state: found}})}
            times[found] = seconds()
    finally:
        tuning.TABLES = before
    best = min(times, key=times.__getitem__)
    return best, times[best]


def tuned(capability: int, name: str, timer: Callable[[str, int], float]) -> tuning.Table:
    """The entry of an architecture, from `timer(kind, d_state)`."""
    table = tuning.TABLES[max((known for known in tuning.TABLES if known <= capability), default=min(tuning.TABLES))]
    for kind in ("scan", "scan_backward"):
        for d_state in STATE_SIZES:
            best, time = fastest(kind, capability, d_state, table, lambda k=kind, n=d_state: timer(k, n))
            table = replace(table, **{kind: {**getattr(table, kind), d_state: best}})
            print(f"{kind} N={d_state}: {best}, {1e3 * time:.3f} ms", flush=True)
    return replace(table, measured=name)


def written(tables: dict[int, tuning.Table]) -> str:
    """`tuning.json`."""
    return json.dumps({str(key): asdict(tables[key]) for key in sorted(tables)}, indent=1) + "\n"


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    from triton.testing import do_bench

    from visionssm_kernels.triton import scan

    device = torch.device("cuda")

    def timer(kind: str, d_state: int) -> float:
        u = torch.randn(32, 784, 1, 192, device=device, dtype=torch.bfloat16)
        delta, B, C = (torch.randn(32, 784, 4, x, device=device, dtype=torch.bfloat16) for x in (192, d_state, d_state))
        A, D, bias = -torch.rand(4, 192, d_state, device=device), *torch.randn(2, 4, 192, device=device).unbind()
        order = torch.stack([torch.randperm(784) for _ in range(4)]).int().to(device)
        inputs = (u, delta, A, B, C, D, bias, order, True, "sum")
        y, checkpoints, _ = scan.routed_scan_forward(*inputs, True, False)
        if kind == "scan":
            return float(do_bench(lambda: scan.routed_scan_forward(*inputs, False, False))) / 1e3  # pyright: ignore
        return float(do_bench(lambda: scan.routed_scan_backward(y, None, *inputs, checkpoints))) / 1e3  # pyright: ignore

    capability = tuning.device_of(device).capability
    name = f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    tables = tuning.TABLES | {capability: tuned(capability, name, timer)}
    tuning.PATH.write_text(written(tables))


if __name__ == "__main__":
    main()
