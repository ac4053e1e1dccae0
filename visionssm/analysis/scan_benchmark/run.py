"""One run of the benchmark: lays out the grid, fills it, and gathers the figures."""

from __future__ import annotations

import csv
import dataclasses
import importlib
import io
import json
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy
import scipy
import timm
import torch

import visionssm
from visionssm.data.errors import UserError
from visionssm.engine.checkpoint import write_atomic
from visionssm.engine.config import dump_config
from visionssm.mixers.schedule import layer_scans
from visionssm.scans import ScanOrder, list_scans

from .cells import Cell, Outcome, cores, run_cells
from .config import BenchmarkConfig
from .cost import cost_cells, cost_row, growth
from .figures import path_entry
from .geometry import geometry_cells
from .learning import compare, learning_cells
from .seeing import SEEN_PHOTOS, seeing_cells

__all__ = ["STAGES", "chosen_scans", "import_orders", "label", "run_benchmark", "write_tables"]

STAGES = ("cost", "geometry", "learning", "seeing")  # times first, while the machine is quiet
RESULTS = "results.json"


def import_orders(modules: Sequence[str]) -> None:
    """Imports a user's modules, which register orders.

    Raises:
        UserError: a module is not found or fails.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever a user's module raises while it is imported
            raise UserError(f"--import {module}: {type(error).__name__}: {error}") from error


def chosen_scans(config: BenchmarkConfig) -> list[ScanOrder]:
    """The orders of a run, the baseline first.

    Raises:
        UserError: unknown orders or options, or one that is named twice.
    """
    wanted = list(config.scans) or list_scans(2)
    if config.baseline not in wanted:
        wanted.insert(0, config.baseline)
    scans = []
    for choice in wanted:
        try:
            # the order itself, not what its schedule makes of it for one layer
            scans.extend(layer_scans([choice], 1))
        except (ValueError, TypeError) as error:
            raise UserError(f"scans: {error}") from error
    names = [label(scan) for scan in scans]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"scans: named twice: {', '.join(twice)}")
    return sorted(scans, key=lambda scan: label(scan) != config.baseline)


def label(scan: ScanOrder) -> str:
    """Its name, with the options that are not the default ones."""
    fields = {field.name: field.default for field in dataclasses.fields(scan)}
    options = [f"{name}={value}" for name, value in scan.options.items() if name != "ndim" and value != fields[name]]
    return f"{scan.name}({', '.join(options)})" if options else scan.name


def machine() -> dict[str, Any]:
    """What times depend on."""
    names = Path("/proc/cpuinfo")
    lines = names.read_text().splitlines() if names.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    facts = {
        "processor": model,
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def versions() -> dict[str, str]:
    """What figures depend on."""
    packages = {"visionssm": visionssm, "torch": torch, "timm": timm, "numpy": numpy, "scipy": scipy}
    return {
        "python": platform.python_version(),
        **{name: package.__version__ for name, package in packages.items()},
    }


def run_benchmark(
    config: BenchmarkConfig,
    *,
    imports: Sequence[str] = (),
    stages: Sequence[str] = STAGES,
    report: Callable[[str, int, Outcome | None], None] = lambda stage, total, outcome: None,
) -> dict[str, Any]:
    """Fills the grid and returns the figures; cells that are already in the folder are not computed again.

    Args:
        config: The grid.
        imports: Modules that register a user's orders.
        stages: Which of `STAGES` to run, beside their own switches in the config.
        report: Called with a stage and its number of cells, once at its start and then with each outcome.

    Returns:
        The figures, ready for JSON, also written to results.json: "orders", "geometry", "cost", "growth", "learning",
        "runs", "seeing", "failures", and "about" with the machine, the versions and the config.

    Raises:
        UserError: the config does not fit.
    """
    start = time.perf_counter()
    import_orders(imports)
    scans = chosen_scans(config)
    root, workers = Path(config.output), config.workers or cores()
    where = machine()
    plans: dict[str, Callable[[], list[Cell]]] = {
        "cost": lambda: cost_cells(scans, config.cost, machine=where),
        "geometry": lambda: geometry_cells(scans, config.geometry),
        "learning": lambda: learning_cells(scans, config.learning),
        "seeing": lambda: seeing_cells(scans, config.seeing, config.learning),
    }
    cells = {stage: plans[stage]() for stage in STAGES if stage in stages and getattr(config, stage).on}
    outcomes: dict[str, list[Outcome]] = {stage: [] for stage in STAGES}
    for stage, todo in cells.items():
        report(stage, len(todo), None)

        def ready(outcome: Outcome, stage: str = stage, total: int = len(todo)) -> None:
            report(stage, total, outcome)

        # Times are taken alone; the others but learning are done sooner than a process starts.
        processes = workers if stage == "learning" else 0
        outcomes[stage] = run_cells(todo, root, workers=processes, imports=imports, report=ready)
    figures = _gather(scans, outcomes, config)
    figures["about"] = {
        "created": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "seconds": time.perf_counter() - start,
        "machine": where,
        "versions": versions(),
        "config": dump_config(config),
        "photos": list(SEEN_PHOTOS[: config.seeing.photos]),
    }
    write_atomic(root / RESULTS, json.dumps(figures, indent=1).encode())
    write_tables(figures, root)
    return figures


def _describe(scan: ScanOrder, draw: int) -> dict[str, Any]:
    doc = (type(scan).__doc__ or "").strip().split("\n\n")[0]
    layers = [scan.for_layer(index, 2) for index in range(2)]
    return {
        **path_entry(scan, draw),
        "order": label(scan),
        "about": " ".join(doc.split()),
        "routes": scan.num_routes,
        "per_layer": layers[0].num_routes,
        "scheduled": any(layer != scan for layer in layers),
        "groups": scan.groups,
        "total": scan.total,
        "padded": scan.padded,
        "segmented": scan.segmented,
    }


def _gather(scans: Sequence[ScanOrder], outcomes: dict[str, list[Outcome]], config: BenchmarkConfig) -> dict[str, Any]:
    names = {scan.key: label(scan) for scan in scans}
    done = {
        stage: [(names[o.cell.scan], o.cell.params, o.result) for o in rows if o.result is not None]
        for stage, rows in outcomes.items()
    }
    geometry = [
        {"order": name, "height": params["size"][0], "width": params["size"][1], **result}
        for name, params, result in done["geometry"]
    ]
    cost = [cost_row(name, params, result) for name, params, result in done["cost"]]
    runs = [{"order": name, "task": p["task"], "seed": p["seed"], **result} for name, p, result in done["learning"]]
    return {
        "baseline": config.baseline,
        "orders": [_describe(scan, config.draw) for scan in scans],
        "geometry": geometry,
        "cost": cost,
        "growth": growth(cost),
        "learning": _learning(runs, config.baseline),
        "runs": runs,
        "seeing": [{"order": name, "trained": params["trained"], **result} for name, params, result in done["seeing"]],
        "failures": [
            {"order": names[o.cell.scan], "stage": stage, "cell": o.cell.digest, "error": o.error}
            for stage, rows in outcomes.items()
            for o in rows
            if o.error is not None
        ],
    }


def _learning(runs: Sequence[dict[str, Any]], baseline: str) -> list[dict[str, Any]]:
    """Rows of `compare` per task; an order of which a seed failed is left out here and stands among the failures."""
    tasks: dict[str, dict[str, dict[int, dict[str, Any]]]] = defaultdict(lambda: defaultdict(dict))
    for run in runs:
        tasks[run["task"]][run["order"]][run["seed"]] = run
    rows = []
    for task, orders in tasks.items():
        whole = max(len(seeds) for seeds in orders.values())
        scores = {
            name: [seeds[seed]["score"] for seed in sorted(seeds)]
            for name, seeds in orders.items()
            if len(seeds) == whole and whole > 1
        }
        if baseline not in scores:
            continue
        for row in compare(scores, baseline):
            group = list(orders[row["order"]].values())
            facts = {"task": task, "metric": group[0]["metric"], "parameters": group[0]["parameters"]}
            rows.append({**facts, **row, "seconds": statistics.mean(run["seconds"] for run in group)})
    return rows


def write_tables(figures: dict[str, Any], folder: Path) -> None:
    """One CSV per table; lists and maps of a row are spread over columns, pictures are left out."""
    for name in ("geometry", "cost", "growth", "learning", "runs", "seeing"):
        rows = [_flat(row) for row in figures[name]]
        if not rows:
            continue
        columns = list(dict.fromkeys(key for row in rows for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomic(folder / f"{name}.csv", text.getvalue().encode())


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if key in ("field", "attention"):
            continue
        if isinstance(value, dict):
            flat |= {f"{key}_{inner}": item for inner, item in value.items()}
        elif isinstance(value, list):
            flat |= {f"{key}_{index}": item for index, item in enumerate(value)}
        else:
            flat[key] = value
    return flat
