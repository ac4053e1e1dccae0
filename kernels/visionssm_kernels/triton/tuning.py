"""What the launchers decide by: a table per architecture, and the facts of a device.

`tuning.json` is committed, so a user's first call measures nothing: it compiles one kernel. `python dev/tune_triton.py` measures
the candidates on the GPU at hand and rewrites its architecture's entry. An architecture without one takes the nearest older.

    scan, scan_backward   state size: [channels of a block, steps loaded together, limit of registers or null]
    programs_per_sm       below so many one-warp programs per multiprocessor, chunks of a route run in parallel
    chunks                and only from so many chunks on: every step is then computed about twice
    measured              on what the entry was measured; null for what the compiler's report alone decided: the largest blocks
                          that do not spill
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

__all__ = ["TABLES", "Device", "Table", "device_of", "fold_stages", "table_for"]

PATH = Path(__file__).with_name("tuning.json")
Configuration = tuple[int, int, int | None]


@dataclass(frozen=True)
class Table:
    """One architecture's entry."""

    scan: dict[int, Configuration]
    scan_backward: dict[int, Configuration]
    programs_per_sm: int
    chunks: int
    measured: str | None = None


@dataclass(frozen=True)
class Device:
    """What launches depend on: compute capability, multiprocessors, bytes of the L2 cache."""

    capability: int
    multiprocessors: int
    l2_bytes: int


def read(path: Path = PATH) -> dict[int, Table]:
    """Entries by compute capability, 80 for 8.0."""
    entries = json.loads(path.read_text())
    for entry in entries.values():
        for kind in ("scan", "scan_backward"):
            entry[kind] = {int(states): tuple(found) for states, found in entry[kind].items()}
    return {int(capability): Table(**entry) for capability, entry in entries.items()}


TABLES = read()
# Where there is no GPU (the interpreter, compiling ahead of time): an A100.
NO_GPU = Device(80, 108, 40 << 20)


@cache
def _device(index: int) -> Device:
    facts = torch.cuda.get_device_properties(index)
    return Device(10 * facts.major + facts.minor, facts.multi_processor_count, facts.L2_cache_size)


def device_of(device: torch.device) -> Device:
    """Facts of a device, asked once: no synchronisation."""
    if device.type != "cuda":
        return NO_GPU
    return _device(torch.cuda.current_device() if device.index is None else device.index)


def table_for(device: torch.device) -> Table:
    """The entry of a device's architecture, else of the nearest older one."""
    capability = device_of(device).capability
    return TABLES[max((known for known in TABLES if known <= capability), default=min(TABLES))]


def fold_stages(d_state: int, block: int) -> int:
    """Halving stages of `scan_backward.fold_channels`: until one value is left, or one channel."""
    return min(2 * d_state, block).bit_length() - 1
