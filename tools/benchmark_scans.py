"""Compare scan orders: what they cost, how they lie in the image, what a backbone learns with them and sees.

python tools/benchmark_scans.py --quick
python tools/benchmark_scans.py --full cost.devices=[cpu,cuda]
python tools/benchmark_scans.py --quick --import my_orders --scans cross hilbert my_order
python tools/benchmark_scans.py --config my_grid.yaml --only geometry cost

Writes report.html (one file, no network), results.json, CSV tables and PNGs into the output folder. Started again, it goes on
where it was: every finished cell is kept there.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler complains on standard error where there is no GPU

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from visionssm.analysis.scan_benchmark import BenchmarkConfig, run_benchmark, write_report
from visionssm.analysis.scan_benchmark.cells import Outcome
from visionssm.analysis.scan_benchmark.cost import by_setting
from visionssm.analysis.scan_benchmark.run import STAGES
from visionssm.engine.command_line import print_table, user_errors
from visionssm.engine.config import load_config

CONFIGS = Path(__file__).parents[1] / "configs" / "benchmark"


class Bars:
    """A progress bar with the time left per stage."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.tasks: dict[str, TaskID] = {}

    def __call__(self, stage: str, total: int, outcome: Outcome | None) -> None:
        if outcome is None:
            self.tasks[stage] = self.progress.add_task(stage, total=total)
            return
        self.progress.advance(self.tasks[stage])
        if outcome.error is not None:
            self.progress.console.print(f"{stage} {outcome.cell.scan}: {outcome.error}", markup=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="dotted.key=value, in place of what the config says")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--quick", action="store_true", help="configs/benchmark/scans_quick.yaml")
    which.add_argument("--full", action="store_true", help="configs/benchmark/scans_full.yaml")
    which.add_argument("--config", metavar="YAML", help="a grid of your own")
    parser.add_argument(
        "--import", dest="imports", nargs="+", default=[], metavar="MODULE", help="registers your own orders"
    )
    parser.add_argument("--scans", nargs="+", metavar="NAME", help="orders, in place of the config's")
    parser.add_argument("--only", nargs="+", choices=STAGES, default=STAGES, metavar="STAGE", help=", ".join(STAGES))
    parser.add_argument(
        "--again",
        nargs="+",
        choices=STAGES,
        default=[],
        metavar="STAGE",
        help="forget what these have measured",
    )
    args = parser.parse_intermixed_args()
    sys.path.insert(0, os.getcwd())  # where a user's own module lies
    path = args.config or CONFIGS / ("scans_quick.yaml" if args.quick else "scans_full.yaml")
    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with user_errors():
        overrides = [*args.overrides, *([f"scans=[{','.join(args.scans)}]"] if args.scans else [])]
        config = load_config(BenchmarkConfig, path, overrides)
        for stage in args.again:
            shutil.rmtree(Path(config.output) / "cells" / stage, ignore_errors=True)
        with Progress(*columns) as progress:
            figures = run_benchmark(config, imports=args.imports, stages=args.only, report=Bars(progress))
        report = write_report(figures, Path(config.output))
    _summary(figures)
    print(f"{figures['about']['seconds']:.0f} s; report: {report}")
    if figures["failures"]:
        raise SystemExit(
            f"{len(figures['failures'])} cells failed; the report names them, error.txt beside them tells more"
        )


def _summary(figures: dict[str, Any]) -> None:
    tasks = list(dict.fromkeys(row["task"] for row in figures["learning"]))
    scores = {(row["order"], row["task"]): row for row in figures["learning"]}
    times = {}
    for setting, rows in by_setting(figures["cost"]).items():
        most = max(row["tokens"] for row in rows)
        title = f"ms, {most} tokens" + (f", {setting}" if setting else "")
        times[title] = {row["order"]: f"{1e3 * row['both_s']:.1f}" for row in rows if row["tokens"] == most}
    table = []
    for order in (entry["order"] for entry in figures["orders"]):
        cells: list[Any] = [order, *(column.get(order) for column in times.values())]
        for task in tasks:
            row = scores.get((order, task))
            cells.append(f"{row['mean']:.3f} ± {row['std']:.3f}" if row else None)
        table.append(cells)
    print_table(["order", *times, *tasks], table)


if __name__ == "__main__":
    main()
