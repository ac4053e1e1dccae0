"""The grid's cells: each is one measurement, computed once, kept in a file of its own, and skipped when a run is resumed."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import visionssm
from visionssm.engine.checkpoint import write_atomic
from visionssm.scans import ScanOrder, scan_from_key

__all__ = ["Cell", "Outcome", "cores", "fingerprint", "run_cells"]

MEASURES = {
    "geometry": "visionssm.analysis.scan_benchmark.geometry",
    "cost": "visionssm.analysis.scan_benchmark.cost",
    "learning": "visionssm.analysis.scan_benchmark.learning",
    "seeing": "visionssm.analysis.scan_benchmark.seeing",
}
_SAMPLES = ((5, 7), (8, 8), (16, 16))


def fingerprint(scan: ScanOrder) -> str:
    """What an order does, so that results of a rewritten one are not taken for its own."""
    digest = hashlib.sha256()
    for index in range(2):
        for size in _SAMPLES:
            digest.update(scan.for_layer(index, 2).routes(size).numpy().tobytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Cell:
    """One measurement.

    Args:
        kind: Of `MEASURES`; that module's `measure(scan, params, folder)` returns the figures, ready for JSON.
        scan: Key of the order.
        params: Everything else that decides the result, ready for JSON.
    """

    kind: str
    scan: str
    params: dict[str, Any]

    @property
    def digest(self) -> str:
        """Names the result: it changes with the parameters, the routes and the versions."""
        facts = [self.kind, self.scan, self.params, fingerprint(scan_from_key(self.scan))]
        text = json.dumps([*facts, visionssm.__version__, torch.__version__], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:20]

    def folder(self, root: Path) -> Path:
        """Where the cell keeps its files."""
        return root / "cells" / self.kind / self.digest


@dataclass(frozen=True)
class Outcome:
    """A cell with its result, or with the reason why it has none."""

    cell: Cell
    result: dict[str, Any] | None
    error: str | None = None


def run_cells(
    cells: Sequence[Cell],
    root: Path,
    *,
    workers: int,
    imports: Sequence[str] = (),
    report: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Computes the cells that are not there yet.

    Args:
        cells: What to compute.
        root: Folder of the run.
        workers: Processes, each with one thread; 0 computes here, with all threads, one after the other.
        imports: Modules that register a user's orders, imported by each process.
        report: Called as each cell is ready.

    Returns:
        In the order of `cells`. A cell that raised is returned with its error; nothing of it is kept.
    """
    outcomes: dict[int, Outcome] = {}
    missing = []
    for index, cell in enumerate(cells):
        file = cell.folder(root) / "result.json"
        if file.is_file():
            outcomes[index] = Outcome(cell, json.loads(file.read_text(encoding="utf-8")))
            report(outcomes[index])
        else:
            missing.append(index)
    for index, outcome in _compute([(index, cells[index]) for index in missing], root, workers, imports):
        outcomes[index] = outcome
        report(outcome)
    return [outcomes[index] for index in range(len(cells))]


def _compute(
    cells: list[tuple[int, Cell]], root: Path, workers: int, imports: Sequence[str]
) -> Iterator[tuple[int, Outcome]]:
    if not cells:
        return
    if workers == 0:
        for index, cell in cells:
            yield index, _run(cell, root)
        return
    # Not forked: torch's and numba's threads do not survive that.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(
        min(workers, len(cells)), mp_context=context, initializer=_start, initargs=(tuple(imports),)
    )
    try:
        futures: dict[Future[Outcome], int] = {pool.submit(_run, cell, root): index for index, cell in cells}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _start(imports: Sequence[str]) -> None:
    torch.set_num_threads(1)
    for module in imports:
        importlib.import_module(module)


def _run(cell: Cell, root: Path) -> Outcome:
    folder = cell.folder(root)
    folder.mkdir(parents=True, exist_ok=True)
    measure = importlib.import_module(MEASURES[cell.kind]).measure
    try:
        with contextlib.ExitStack() as stack:
            log = stack.enter_context(open(folder / "log.txt", "a", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(log))
            stack.enter_context(contextlib.redirect_stderr(log))
            result = measure(scan_from_key(cell.scan), cell.params, folder)
    except Exception as error:  # one cell must not take the others with it; it is reported, and the exit status tells
        (folder / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
        return Outcome(cell, None, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    described = {"kind": cell.kind, "scan": cell.scan, "params": cell.params}
    write_atomic(folder / "cell.json", json.dumps(described, indent=1).encode())
    write_atomic(folder / "result.json", json.dumps(result).encode())
    return Outcome(cell, result)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
