"""Writes docs/scan_orders.png and the table of scan orders in the README.

    python dev/update_gallery.py                                  # from runs/scan_benchmark_quick
    python dev/update_gallery.py --run FOLDER

The picture is drawn from the registry; the table comes from results.json of a run of tools/benchmark_scans.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

from visionssm import scans  # noqa: E402
from visionssm.analysis.scan_benchmark.figures import draw_paths, path_entry  # noqa: E402

START, END = "<!-- scans: written by dev/update_gallery.py -->", "<!-- /scans -->"
PICTURE = Path("docs") / "scan_orders.png"
SIDE = 8


def table(figures: dict[str, Any]) -> list[str]:
    """The quick table, as Markdown lines."""
    tasks = {row["task"]: row["metric"] for row in figures["learning"]}
    learned = {(row["order"], row["task"]): row for row in figures["learning"]}
    size = max(((row["height"], row["width"]) for row in figures["geometry"]), default=None)
    shapes = {row["order"]: row for row in figures["geometry"] if (row["height"], row["width"]) == size}
    most = max((row["tokens"] for row in figures["cost"]), default=0)
    times = {row["order"]: row["both_s"] for row in figures["cost"] if row["tokens"] == most}
    heads = ["order", "routes", "mean step", "correlation one step on", f"ms, {most} tokens"]
    heads += [f"{task}, {metric}" for task, metric in tasks.items()]
    lines = [" | ".join(["", *heads, ""]).strip(), "|" + " --- |" + " ---: |" * (len(heads) - 1)]
    for entry in figures["orders"]:
        order = entry["order"]
        shape = shapes.get(order)
        cells = [f"`{order}`", str(entry["routes"])]
        cells += [f"{shape['mean_step']:.2f}", f"{shape['autocorrelation'][1]:.2f}"] if shape else ["–", "–"]
        cells.append(f"{1e3 * times[order]:.1f}" if order in times else "–")
        for task in tasks:
            row = learned.get((order, task))
            sure = row is not None and row["p_holm"] is not None and row["p_holm"] < 0.05
            cells.append(f"{row['mean']:.3f} ± {row['std']:.3f}{' *' if sure else ''}" if row else "–")
        lines.append(f"| {' | '.join(cells)} |")
    about = figures["about"]
    machine = about["machine"]
    seeds = about["config"]["learning"]["seeds"]
    height, width = size or (0, 0)
    lines += [
        "",
        f"`make bench` of {about['created'][:10]} on {machine['processor']}, {machine['cores']} cores, torch "
        f"{about['versions']['torch']}: mean step and correlation of photographs over {height} x {width} tokens, forward and "
        f"backward of one mixer, and a backbone of two blocks trained for seconds with {seeds} seeds. * differs from "
        f"`{figures['baseline']}` (paired t-test, p < 0.05 after Holm's correction).",
    ]
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "scan_benchmark_quick", help="folder of a run")
    args = parser.parse_args()
    names = scans.list_scans(ndim=2)
    (ROOT / PICTURE).parent.mkdir(exist_ok=True)
    orders = [scans.create_scan(name) for name in names]
    draw_paths([path_entry(order, SIDE) for order in orders], columns=8).savefig(ROOT / PICTURE, dpi=110)
    print(f"wrote {PICTURE} with {len(names)} orders")
    results, readme = args.run / "results.json", ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    if not results.is_file():
        print(f"{results} is not there, so the table stays: run `make bench` first", file=sys.stderr)
        return 1
    if text.count(START) != 1 or text.count(END) != 1:
        print(f"README.md must hold {START} and {END} once each", file=sys.stderr)
        return 1
    before, rest = text.split(START)
    lines = [f"![A route of each order over 8 x 8 cells]({PICTURE.as_posix()})", ""]
    lines += table(json.loads(results.read_text(encoding="utf-8")))
    readme.write_text("\n".join([f"{before}{START}", "", *lines, "", END + rest.split(END)[1]]), encoding="utf-8")
    print("wrote the table in README.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
