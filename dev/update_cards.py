"""Rewrite model_cards/<name>.md for every registered variant, and the table of variants in the README.

python dev/update_cards.py          count what is not counted yet (model_cards/operations.json), then write
python dev/update_cards.py "vim_*"  count these anew first; "*" counts all, a few minutes

Measured speed comes from model_cards/measurements.json, which this writes, and completes if it was cut off:
    python tools/benchmark_models.py --zoo --loop --device cpu --repetitions 3 --warmup 1 \\
        --json model_cards/measurements.json --accuracy-plot docs/accuracy_throughput.png
Reproduced figures come from
model_cards/reproduced.json: {"vim_tiny": [{"figure": "top-1", "value": "76.1", "command": "python tools/evaluate.py ..."}]}.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib
import inspect
import json
import sys
from pathlib import Path
from typing import Any

import torch
from timm.models import PretrainedCfg

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

import visionssm  # noqa: E402
from visionssm.analysis import CONVENTIONS, count_operations, count_parameters  # noqa: E402
from visionssm.models import _registry, pretrained_cfg  # noqa: E402
from visionssm.models.reported import REPORTED  # noqa: E402

CARDS, README, CASES = ROOT / "model_cards", ROOT / "README.md", ROOT / "tests" / "parity"
OPERATIONS, MEASUREMENTS, REPRODUCED = (CARDS / f"{n}.json" for n in ("operations", "measurements", "reproduced"))
PICTURE = ROOT / "docs" / "accuracy_throughput.png"  # drawn by the command that measured, see above
MARKERS = ("<!-- zoo: written by dev/update_cards.py -->", "<!-- /zoo -->")
BASELINES = ("swin_tiny_patch4_window7_224", "deit_tiny_patch16_224")
OWN = "untrained variant of our own"
TASKS = {
    "classification": "image classification",
    "restoration": "image restoration",
    "volume": "volume segmentation",
}


# --- facts ------------------------------------------------------------------------------------------------------


def entry_point(name: str) -> Any:
    """The function that builds a variant; its docstring says what it is, its module's which paper it is from."""
    return _registry._entry(name)[1]


def is_own(name: str) -> bool:
    """Whether the variant is ours and nobody published it."""
    return "of our own" in (inspect.getdoc(entry_point(name)) or "")


def weights_of(name: str) -> dict[str, PretrainedCfg]:
    """The variant's weights by tag."""
    known = getattr(importlib.import_module(entry_point(name).__module__), "default_cfgs", {}).get(name)
    return {tag: pretrained_cfg(f"{name}.{tag}") for tag in known.cfgs} if known else {}


def count(name: str) -> dict[str, Any]:
    """Parameters, and operations at the default size; no memory is allocated."""
    size = pretrained_cfg(name).input_size
    with torch.device("meta"):
        model = visionssm.create_model(name)
    operations = count_operations(model, size)
    return {"input_size": list(size), "parameters": count_parameters(model), **operations.to_dict()}


def parity_cases() -> dict[str, list[str]]:
    """Which reference cases each variant is held against, by registered name: outputs, and gradients where it has any."""
    found: dict[str, list[str]] = {}
    for path in sorted(CASES.glob("*/*.json")):
        if not path.with_suffix(".npz").exists():
            continue
        content = json.loads(path.read_text())
        family, variant = content["family"], content["variant"]
        name = variant if variant.startswith(family) else f"{family}_{variant}"
        outputs = [case["name"] for case in content["cases"] if case.get("outputs")]
        gradients = [case["name"] for case in content["cases"] if case.get("grads")]
        found[name] = ["outputs"] * bool(outputs) + ["gradients"] * bool(gradients)
    return found


def parity_status(name: str, cases: dict[str, list[str]]) -> str:
    """What of the variant is compared with the published code in the test suite."""
    if name in cases:
        return " and ".join(cases[name])
    if is_own(name):
        return "no published counterpart"
    family = entry_point(name).__module__
    siblings = [n for n in cases if n in visionssm.list_models() and entry_point(n).__module__ == family]
    return "by its family" if siblings else "none"


def weights_status(name: str) -> str:
    """How weights are had, in a word or two."""
    cfgs = weights_of(name)
    if not cfgs or all(tag == "untrained" for tag in cfgs):
        return "none"
    links = [cfg.has_weights for cfg in cfgs.values()]
    return "yes" if all(links) else "some by name, some by hand" if any(links) else "by hand"


def licence_of(name: str) -> str:
    return pretrained_cfg(name).license or "none stated"


def reported_in_short(name: str) -> str:
    """Accuracy, or the figure of each tag's notes."""
    reported = REPORTED.get(name)
    if reported and reported.top1 is not None:
        return f"{reported.top1} %"
    notes = [note for cfg in weights_of(name).values() for note in cfg.notes or () if "reported" in note]
    figures = [note.partition(": ")[2] for note in notes]
    return "; ".join(figures) if figures else "-"


# --- pages ------------------------------------------------------------------------------------------------------


def billions(value: int) -> str:
    return f"{value / 1e9:.2f} G" if value >= 1e8 else f"{value / 1e6:.2f} M"


def millions(value: int) -> str:
    return f"{value / 1e6:.2f} M"


def size_text(size: list[int]) -> str:
    return " x ".join(map(str, size))


def _figures(name: str, counted: dict[str, Any]) -> list[str]:
    reported = REPORTED.get(name)
    papers = counted["macs"] + counted["scan"] + counted["norms"]
    lines = [
        "| | ours | published |",
        "| --- | --- | --- |",
        f"| parameters | {counted['parameters']:,} | {(reported and reported.params) or 'not stated'} |",
        f"| MACs at {size_text(counted['input_size'])} | {billions(counted['macs'])} | - |",
    ]
    one_route = counted["macs_one_route"] + counted["scan_short"]
    no_scan = counted["macs"] + counted["norms"]
    for convention, value in (("papers", papers), ("one route", one_route), ("no scan", no_scan)):
        published = reported.flops if reported and reported.flops and reported.counted == convention else None
        if convention == "papers" or published:
            what = {
                "papers": "FLOPs",
                "one route": "FLOPs, one route's projections",
                "no scan": "FLOPs, no scan",
            }[convention]
            lines.append(f"| {what} | {billions(value)} | {published or '-'} |")
    lines += ["", f"MACs: {CONVENTIONS['macs']}. FLOPs: {CONVENTIONS['papers']}."]
    if reported and reported.counted != "papers":
        lines.append(f"The published FLOPs are counted otherwise: {CONVENTIONS[reported.counted]}.")
    if reported and reported.flops_differ:
        lines.append(f"The published FLOPs are not ours: {reported.flops_differ}.")
    if reported and reported.params_counted != "model":
        lines.append(
            "The published number of parameters leaves out the classifier, and its last digits are cut off, not rounded."
        )
    return lines


def _accuracy(name: str, reproduced: list[dict[str, str]]) -> list[str]:
    reported = REPORTED.get(name)
    rows = []
    if reported:
        for what, value in (("top-1", reported.top1), ("top-5", reported.top5)):
            if value is not None:
                rows.append((f"ImageNet-1k {what}", f"{value} %", reported.source))
    for tag, cfg in weights_of(name).items():
        rows += [(f"`{tag}`", note, cfg.origin_url or "") for note in cfg.notes or () if note.startswith("reported")]
    lines = []
    if rows:
        lines += [
            "| figure | reported | source |",
            "| --- | --- | --- |",
            *(f"| {' | '.join(row)} |" for row in rows),
            "",
        ]
    elif not is_own(name):
        lines += ["The authors' page reports no figures for this variant.", ""]
    if reported and reported.note:
        lines += [f"Note: {reported.note}.", ""]
    if reproduced:
        lines += ["| figure | reproduced | command |", "| --- | --- | --- |"]
        lines += [f"| {row['figure']} | {row['value']} | `{row['command']}` |" for row in reproduced]
    elif not is_own(name):
        lines.append("Reproduced: not reproduced yet.")
        if _registry._entry(name)[0] == "classification" and weights_status(name) != "none":
            how = "" if weights_status(name) == "yes" else " --checkpoint FILE"
            lines.append(f"To do so: `python tools/evaluate.py {name} --data /path/to/imagenet --split val{how}`")
    return lines or [f"None: an {OWN}, for tests, demonstrations and small images."]


def _speed(name: str, measurements: dict[str, Any]) -> list[str]:
    rows = measurements.get("rows", [])
    mine = [row for row in rows if row["model"] == name and row.get("seconds")]
    if not mine:
        return ["Not measured yet: `python tools/benchmark_models.py " + name + "`"]
    by_key = {(row["model"], *_turn(row)): row for row in rows if row.get("seconds")}
    lines = [
        "| mode | size | batch | against swin_tiny | against deit_tiny | against the per-step loop |",
        "| --- " * 6 + "|",
    ]
    for row in mine:
        if row["mode"] == "loop":
            continue
        ratios = [_ratio(by_key.get((baseline, *_turn(row))), row) for baseline in BASELINES]
        loop = by_key.get((name, *_turn(row | {"mode": "loop"}))) if row["mode"] == "latency" else None
        cells = (row["mode"], str(row["resolution"]), str(row["batch"]), *ratios, _ratio(loop, row))
        lines.append(f"| {' | '.join(cells)} |")
    setting = measurements["setting"]
    lines += ["", f"How many times as fast in the same run (below 1: slower). {setting['hardware']}; {setting['versions']}; "
              f"{setting['arithmetic']}. Command: `{setting['command']}`"]  # fmt: skip
    return lines


def _turn(row: dict[str, Any]) -> tuple[Any, ...]:
    """What rows have in common whose models took turns, so that their ratio means something."""
    return row.get("part", ""), row["mode"], row["resolution"], row["batch"]


def _ratio(other: dict[str, Any] | None, row: dict[str, Any]) -> str:
    return f"{other['seconds'] / row['seconds']:.2f}" if other else "-"


def _weights(name: str) -> list[str]:
    lines = []
    reported = REPORTED.get(name)
    for tag, cfg in weights_of(name).items():
        if tag == "untrained":
            continue
        if cfg.has_weights:
            where = cfg.url or f"https://huggingface.co/{cfg.hf_hub_id}, file {cfg.hf_hub_filename}"
            lines += [
                f"- `{tag}`: {where}",
                "",
                f'      model = visionssm.create_model("{name}.{tag}", pretrained=True)',
                "",
            ]
        else:
            lines += [f"- `{tag}`: no direct link; fetch the file by hand from {cfg.origin_url}", "",
                      f'      model = visionssm.load_official(visionssm.create_model("{name}"), "FILE")', ""]  # fmt: skip
    if not lines:
        lines = ["None are published." if not is_own(name) else "None.", ""]
    if reported and reported.weights:
        lines += [f"State of the file: {reported.weights}.", ""]
    if weights_status(name) != "none" and _registry._entry(name)[0] == "classification":
        lines += ["To make a folder that timm loads from disk or hub:", "",
                  f"    python tools/convert_checkpoint.py FILE --model {name} --out {name}/", ""]  # fmt: skip
    return lines[:-1]


def _limits(name: str, counted: dict[str, Any]) -> list[str]:
    cfg = pretrained_cfg(name)
    lines = []
    if cfg.fixed_input_size:
        size = counted["input_size"][-1]
        lines.append(
            f"- Made for {size} x {size} images; another size is given as `img_size`, and position tables are resized."
        )
    if _registry._entry(name)[0] == "classification" and not is_own(name):
        lines.append(
            "- Published weights know the 1,000 ImageNet-1k classes and its biases; they are no basis for decisions about people."
        )
    lines.append("- Not for use without a check of your own where a wrong answer does harm.")
    return lines


def render_card(name: str, counted: dict[str, Any], measurements: dict[str, Any], reproduced: list[dict[str, str]],
                cases: dict[str, list[str]]) -> str:  # fmt: skip
    """The page of one variant."""
    entry, cfg = entry_point(name), pretrained_cfg(name)
    about = (inspect.getdoc(sys.modules[entry.__module__]) or "").splitlines()[0]
    task = TASKS[_registry._entry(name)[0]]
    reported = REPORTED.get(name)
    sections = {
        "Size": _figures(name, counted),
        "Reported and reproduced figures": _accuracy(name, reproduced),
        "Parity with the published code": [_parity_sentence(parity_status(name, cases))],
        "Speed": _speed(name, measurements),
        "Weights": _weights(name),
        "Limits": _limits(name, counted),
        "Licence": [f"Weights: {licence_of(name)}, of those who published them. Code: Apache-2.0." if not is_own(name)
                    else "Code: Apache-2.0."],
        "Citation": [f"{cfg.paper_name}, {cfg.paper_ids}" if cfg.paper_name else "The family's paper.",
                     *([f"Published code and weights: {cfg.origin_url}"] if cfg.origin_url else [])],
    }  # fmt: skip
    lines = [f"# {name}", "", inspect.getdoc(entry) or "", "", f"For {task}. {about}"]
    if reported and reported.drop_path is not None:
        lines += ["", f"Stochastic depth of the published training: {reported.drop_path}."]
    for title, body in sections.items():
        lines += ["", f"## {title}", "", *body]
    return "\n".join([*lines, "", "Written by dev/update_cards.py.", ""])


def _parity_sentence(status: str) -> str:
    return {
        "no published counterpart": f"There is none: an {OWN}.",
        "by its family": "This variant has no reference case of its own; others of its family, built by the same code, have.",
        "none": "Not compared: there is no reference case of this family.",
    }.get(
        status,
        f"The test suite compares {status} with those of the published code, for the same weights and inputs.",
    )


def render_table(counts: dict[str, Any], cases: dict[str, list[str]]) -> str:
    """The README's table."""
    head = ["model", "parameters", "MACs", "FLOPs", "at", "reported", "licence", "weights", "parity"]
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for task, title in TASKS.items():
        lines.append(f"| **{title}** " + "| " * (len(head) - 1) + "|")
        for name in visionssm.list_models(task=task):
            counted = counts[name]
            papers = counted["macs"] + counted["scan"] + counted["norms"]
            cells = [
                f"[{name}](model_cards/{name}.md)",
                millions(counted["parameters"]),
                billions(counted["macs"]),
                billions(papers),
                size_text(counted["input_size"][1:]),
                reported_in_short(name),
                licence_of(name),
                weights_status(name),
                parity_status(name, cases),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    if PICTURE.exists():
        setting = read_json(MEASUREMENTS)["setting"]
        lines = [
            f"![Reported accuracy against measured throughput]({PICTURE.relative_to(ROOT)})",
            "",
            f"Measured on {setting['hardware']}; {setting['versions']}; {setting['arithmetic']}: `{setting['command']}`",
            "",
            *lines,
        ]
    lines += [
        "",
        f"MACs: {CONVENTIONS['macs']}. FLOPs: {CONVENTIONS['papers']}.",
        "Reported: what the authors print (top-1 of ImageNet-1k, or the figure named); each card says where.",
        "Parity: what the test suite compares with the published code.",
    ]
    return "\n".join(lines)


def put_table(readme: str, table: str) -> str:
    """The README with the table between its markers.

    Raises:
        ValueError: the markers are not there.
    """
    before, start, rest = readme.partition(MARKERS[0])
    _, end, after = rest.partition(MARKERS[1])
    if not start or not end:
        raise ValueError(f"README.md lacks the lines {MARKERS[0]} and {MARKERS[1]}")
    return f"{before}{start}\n{table}\n{end}{after}"


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def render_all(counts: dict[str, Any]) -> dict[Path, str]:
    """Every file that this script writes but the counts, with its content."""
    measurements, reproduced, cases = read_json(MEASUREMENTS), read_json(REPRODUCED), parity_cases()
    files = {
        CARDS / f"{name}.md": render_card(name, counts[name], measurements, reproduced.get(name, []), cases)
        for name in visionssm.list_models()
    }
    return files | {README: put_table(README.read_text(), render_table(counts, cases))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "anew",
        nargs="*",
        metavar="PATTERN",
        help='variants to count anew, "vim_*"; the others keep their counts',
    )
    anew = parser.parse_args().anew
    known = read_json(OPERATIONS)
    for name in [name for pattern in anew for name in fnmatch.filter(known, pattern)]:
        known.pop(name, None)
    counts = {}
    for name in visionssm.list_models():
        if name not in known:
            print(f"counting {name}", flush=True)
        counts[name] = known.get(name) or count(name)
    lines = [f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in counts.items()]
    OPERATIONS.write_text("{\n" + ",\n".join(lines) + "\n}\n")  # one variant per line, for diffs
    files = render_all(counts)
    for path, text in files.items():
        path.write_text(text)
    for path in CARDS.glob("*.md"):
        if path not in files:
            path.unlink()
    print(f"{len(files) - 1} cards and the README's table")


if __name__ == "__main__":
    main()
