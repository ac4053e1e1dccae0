"""What the figures say, in a few sentences; nothing in them that is not in the tables."""

from __future__ import annotations

from typing import Any

from .cost import SETTING, by_setting

__all__ = ["summarise"]

SIGNIFICANT = 0.05


def summarise(figures: dict[str, Any]) -> list[str]:
    """A first sentence on what was done, then one finding each."""
    orders, about = figures["orders"], figures["about"]
    stages = [name for name in ("cost", "geometry", "learning", "seeing") if figures[name]]
    lead = f"{len(orders)} orders in which a state-space backbone can read an image: {', '.join(stages)}."
    findings = [lead, *_learning(figures), *_cost(figures), *_geometry(figures)]
    if figures["failures"]:
        findings.append(f"{len(figures['failures'])} measurements failed; they are listed below.")
    seeds = about["config"]["learning"]["seeds"]
    if figures["learning"] and seeds < 5:
        findings.append(
            f"{seeds} seeds give the tests little power: read the differences, and repeat the study with more."
        )
    return findings


def _learning(figures: dict[str, Any]) -> list[str]:
    findings = []
    for task in dict.fromkeys(row["task"] for row in figures["learning"]):
        rows = [row for row in figures["learning"] if row["task"] == task]
        best, worst = max(rows, key=lambda row: row["mean"]), min(rows, key=lambda row: row["mean"])
        sure = [row for row in rows if row["p_holm"] is not None and row["p_holm"] < SIGNIFICANT]
        better = [row["order"] for row in sure if row["difference"] > 0]
        worse = [row["order"] for row in sure if row["difference"] < 0]
        text = (
            f"{task.capitalize()}: {best['order']} scores highest ({best['mean']:.3f} ± {best['std']:.3f} {best['metric']}), "
            f"{worst['order']} lowest ({worst['mean']:.3f} ± {worst['std']:.3f}); "
        )
        said = [f"better than {figures['baseline']}: {', '.join(better)}"] if better else []
        said += [f"worse: {', '.join(worse)}"] if worse else []
        none = "no order differs significantly from " + figures["baseline"]
        findings.append(text + ("significantly " + "; ".join(said) if said else none) + " after Holm's correction.")
    return findings


def _cost(figures: dict[str, Any]) -> list[str]:
    findings = []
    for setting, measured in by_setting(figures["cost"]).items():
        where = f" ({setting})" if setting else ""
        most = max(row["tokens"] for row in measured)
        rows = [row for row in measured if row["tokens"] == most]
        cheap, dear = min(rows, key=lambda row: row["both_s"]), max(rows, key=lambda row: row["both_s"])
        findings.append(f"Forward and backward over {most:,} tokens{where} take from {_time(cheap)} to {_time(dear)}.")
        fits = [fit for fit in figures["growth"] if all(fit[name] == cheap[name] for name in SETTING)]
        if fits:
            powers = sorted(fit["both"] for fit in fits)
            findings.append(
                f"Time{where} grows as tokens to the power {powers[0]:.2f} to {powers[-1]:.2f}; 1 is linear."
            )
    return findings


def _time(row: dict[str, Any]) -> str:
    return f"{1e3 * row['both_s']:.1f} ms ({row['order']}, {row['routes']} route{'s' * (row['routes'] > 1)})"


def _geometry(figures: dict[str, Any]) -> list[str]:
    if not figures["geometry"]:
        return []
    most = max(row["height"] * row["width"] for row in figures["geometry"])
    rows = [row for row in figures["geometry"] if row["height"] * row["width"] == most]
    whole = [row["order"] for row in rows if row["continuity"] == 1]
    like = max(rows, key=lambda row: row["autocorrelation"][1])
    findings = [f"Every step goes to a direct neighbour in: {', '.join(whole)}."] if whole else []
    findings.append(
        f"At {rows[0]['height']} × {rows[0]['width']}, {like['order']} reads the most alike pixels one after the other "
        f"(correlation {like['autocorrelation'][1]:.2f})."
    )
    return findings
