"""Writes the table of kernel timings in kernels/README.md, from the result files in kernels/results.

python -m visionssm_kernels.benchmark --keep-memory --json kernels/results/NAME.json     # on the machine to be shown
python dev/update_kernel_table.py
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
START, END = "<!-- kernels: written by dev/update_kernel_table.py -->", "<!-- /kernels -->"
GPU_BASELINE = "published steps"
GPU_HEADS = ("shape", "implementation", "forward", "with backward", "forward of the floor", "backward of the floor", "memory",
             "error", "same bits twice")  # fmt: skip
UNMEASURED = (
    "No GPU has been measured yet: there are no figures for the Triton kernels. `python dev/measure_gpu.py` adds them."
)
HEADS = ("shape", "implementation", "forward", "with backward", "backward / forward", "of the copy bandwidth",
         "of the exp throughput")  # fmt: skip


def ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} x" if value >= 10 else f"{value:.1f} x"


def share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def gpu_table(result: dict[str, Any]) -> list[str]:
    """One GPU: a row per shape and implementation that was timed, as ratios to the published steps."""
    machine, base = result["machine"], {}
    for row in result["timings"]:
        if row["backend"] == GPU_BASELINE:
            base[row["shape"]] = row
    dtype = result["timings"][0]["dtype"]
    versions = ", ".join(f"{name} {machine[name]}" for name in ("torch", "triton", "cuda") if name in machine)
    lines = [
        f"{machine['gpu']}; {versions}; {dtype}. Ratios to {GPU_BASELINE} in the same run, memory of forward and backward:",
        "",
    ]
    lines += ["| " + " | ".join(GPU_HEADS) + " |", "| --- | --- |" + " ---: |" * (len(GPU_HEADS) - 2)]
    for row in result["timings"]:
        if row["forward_s"] is None:
            continue
        other = base.get(row["shape"]) or {}
        ratios = [other[key] / row[key] if other.get(key) and row[key] else None for key in ("forward_s", "both_s")]
        cells = [result["shapes"][row["shape"]]["what"], row["backend"], *map(ratio, ratios)]
        cells += [share(row["of_floor"]), share(row["of_floor_backward"])]
        cells += ["-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:.0f} MB"]
        cells += [
            "-" if row["error"] is None else f"{row['error']:.0e}",
            {True: "yes", False: "no"}.get(row["repeatable"], "-"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def table(result: dict[str, Any]) -> list[str]:
    """One machine: what it is, and a row per shape and implementation that was timed."""
    machine = result["machine"]
    if "gpu" in machine:
        return gpu_table(result)
    where = f"{machine['processor']}, {machine['threads']} threads"
    versions = ", ".join(f"{name} {machine[name]}" for name in ("torch", "numba", "triton") if name in machine)
    kept = "; freed memory kept (`--keep-memory`)" if machine["keeping_memory"] else ""
    lines = [f"{where}; {versions}; float32{kept}. Ratios to the loop over steps in the same run:", ""]
    lines += ["| " + " | ".join(HEADS) + " |", "| --- | --- |" + " ---: |" * (len(HEADS) - 2)]
    for row in result["timings"]:
        if row["backend"] == "step loop" or row["forward_s"] is None:
            continue
        cells = [
            result["shapes"][row["shape"]]["what"],
            row["backend"],
            ratio(row["forward_ratio"]),
            ratio(row["both_ratio"]),
            "-" if row["backward_ratio"] is None else f"{row['backward_ratio']:.1f}",
        ]
        cells += [share(row["of_bandwidth"]), share(row["of_exponentials"])]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def page(results: list[dict[str, Any]], before: str) -> str:
    """The README with its tables anew.

    Raises:
        ValueError: the README lacks the markers.
    """
    head, found, rest = before.partition(START)
    _, closed, tail = rest.partition(END)
    if not found or not closed:
        raise ValueError(f"kernels/README.md has no {START} ... {END}")
    body = "\n\n".join("\n".join(table(result)) for result in results)
    if not any("gpu" in result["machine"] for result in results):
        body += f"\n\n{UNMEASURED}"
    return f"{head}{START}\n{body}\n{END}{tail}"


def read_results() -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((ROOT / "kernels" / "results").glob("*.json"))]


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    path = ROOT / "kernels" / "README.md"
    path.write_text(page(read_results(), path.read_text()))


if __name__ == "__main__":
    main()
