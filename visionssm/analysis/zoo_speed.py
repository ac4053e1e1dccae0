"""Speed of every published classifier, a family at a time beside two baselines, in a file that a later run completes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from timm.models import model_entrypoint

import visionssm
from visionssm.models import pretrained_cfg
from visionssm.models.reported import REPORTED

from .baselines import BASELINES
from .speed import Mode, Result, Setting, measure
from .speed_report import to_json

__all__ = ["BESIDE", "Part", "family_of", "measure_zoo", "zoo_parts"]

BESIDE = ("swin_tiny_patch4_window7_224", "deit_tiny_patch16_224")  # in every part, so that ratios are of one run


@dataclass(frozen=True, kw_only=True)
class Part:
    """What is measured in turn.

    Args:
        name: of the part, unique.
        models: full names.
        resolution: of their images: that of the reported figures.
    """

    name: str
    models: tuple[str, ...]
    resolution: int


def family_of(name: str) -> str:
    """The family of one of our classifiers: the file that it is built in; "timm" for timm's own."""
    module = model_entrypoint(name).__module__
    return "timm" if module.startswith("timm.") else module.rpartition(".")[2]


def zoo_parts(names: Sequence[str] | None = None) -> list[Part]:
    """timm's baselines, then the published classifiers by family and size of image, each part beside `BESIDE`.

    Args:
        names: only these; None for all whose authors report an accuracy.
    """
    published = [n for n in visionssm.list_models(task="classification") if n in REPORTED and REPORTED[n].top1]
    chosen = published if names is None else [n for n in names if n in published]
    groups: dict[tuple[str, int], list[str]] = {}
    for name in chosen:
        groups.setdefault((family_of(name), pretrained_cfg(name).input_size[-1]), []).append(name)
    parts = [Part(name="timm", models=tuple(BASELINES.values()), resolution=224)]
    for (family, resolution), models in groups.items():
        label = family if resolution == 224 else f"{family} at {resolution}"
        parts.append(Part(name=label, models=(*BESIDE, *models), resolution=resolution))
    return parts


def measure_zoo(
    parts: Sequence[Part],
    modes: Sequence[Mode],
    setting: Setting,
    *,
    file: Path | None = None,
    command: str = "",
    report: Callable[[str], None] = lambda line: None,
) -> list[Result]:
    """Measures parts one after the other, and writes the file after each; what it holds already is not measured again.

    Args:
        parts: of `zoo_parts`.
        modes: as in `measure`.
        setting: how. A file of another setting, machine or version is refused: its rows are no part of this run.
        file: JSON of `to_json`; None to keep nothing.
        command: written into the file.
        report: told what is being done.

    Raises:
        ValueError: the file is no such file, or was measured otherwise.
    """
    done = _read(file, setting) if file is not None and file.exists() else []
    for number, part in enumerate(parts, 1):
        present = {(r.model, r.mode) for r in done if r.part == part.name}
        open_modes: list[Mode] = [
            mode for mode in modes if any((name, mode) not in present for name in _subjects(part, mode))
        ]
        if not open_modes:
            continue
        report(f"part {number} of {len(parts)}: {part.name}")
        results = measure(part.models, [part.resolution], open_modes, setting, report=report)
        done = [r for r in done if r.part != part.name or r.mode not in open_modes]
        done += [replace(result, part=part.name) for result in results]
        if file is not None:
            _write(file, to_json(done, setting, command))
    order = {part.name: number for number, part in enumerate(parts)}
    return sorted((r for r in done if r.part in order), key=lambda r: order[r.part])


def _subjects(part: Part, mode: Mode) -> tuple[str, ...]:
    ours = visionssm.list_models()
    return tuple(name for name in part.models if mode != "loop" or name in ours)


def _read(file: Path, setting: Setting) -> list[Result]:
    try:
        content: dict[str, Any] = json.loads(file.read_text())
        about, rows = content["setting"], content["rows"]
        results = [Result(**{k: v for k, v in row.items() if k != "throughput"}) for row in rows]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is no file of measurements ({error}): name another, or delete it") from None
    ours = json.loads(to_json([], setting, ""))["setting"]
    for key in ("hardware", "versions", "arithmetic", "batch", "repetitions", "warmup"):
        if about.get(key) != ours[key]:
            raise ValueError(
                f"{file} was measured with {key} {about.get(key)!r}, this run is with {ours[key]!r}: name another, or delete it"
            )
    return results


def _write(file: Path, text: str) -> None:
    """Whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f"{file.name}.part")
    beside.write_text(text)
    beside.replace(file)
