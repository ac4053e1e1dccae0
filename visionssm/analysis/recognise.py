"""Which variant a published classification file belongs to, from its keys and shapes; and the folder that timm loads."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.models import model_entrypoint
from timm.models._hub import save_for_hf
from torch import Tensor, nn

import visionssm
from visionssm.checkpoints import CheckpointError, convert, read_checkpoint
from visionssm.checkpoints.load import check, layout_of
from visionssm.models import pretrained_cfg

__all__ = ["Fit", "convert_file", "fits", "recognise"]

FILES = ("model.safetensors", "config.json")
_SHOWN = 4
_FAMILIAR = 0.5  # of the names (without numbers) that must be the family's for a variant of it to be tried


@dataclass(frozen=True)
class Fit:
    """How a file fits a variant.

    Args:
        name: the variant.
        num_classes: rows of the file's classifier.
        problems: keys that do not fit, with why; empty if all do.
        distance: how many do not.
    """

    name: str
    num_classes: int = 1000
    problems: tuple[str, ...] = ()
    distance: int = field(default=0)


def fits(content: Mapping[str, Any], names: list[str]) -> list[Fit]:
    """The file held against each variant, the best first; families whose names are others are left out.

    Args:
        content: as `read_checkpoint` gives it.
        names: classification variants.
    """
    found, strangers = [], set()
    for name in sorted(
        names, key=lambda name: pretrained_cfg(name).input_size[-1]
    ):  # the small ones tell strangers soonest
        family = model_entrypoint(name).__module__
        if family in strangers:
            continue
        fit = _fit(content, name, _shell(name))
        if fit is None:
            strangers.add(family)
        else:
            found.append(fit)
    return sorted(found, key=lambda fit: fit.distance)


def recognise(content: Mapping[str, Any]) -> Fit:
    """The variant that a published file belongs to.

    Args:
        content: as `read_checkpoint` gives it.

    Raises:
        CheckpointError: no variant, or more than one; the message names the closest and the keys that do not fit.
    """
    found = fits(content, visionssm.list_models(task="classification"))
    exact = [fit for fit in found if not fit.problems]
    if len(exact) == 1:
        return exact[0]
    if exact:
        names = ", ".join(fit.name for fit in exact)
        raise CheckpointError(
            f"the file fits {names} alike (their keys and shapes are the same): choose one with --model"
        )
    if not found:
        shown = ", ".join(sorted(map(str, content))[:_SHOWN])
        raise CheckpointError(f"no family has names like those of this file ({shown}, ...)")
    best = found[0]
    more = "" if best.distance <= _SHOWN else f", and {best.distance - _SHOWN} more"
    raise CheckpointError(f"no variant fits; the closest is {best.name}, but {'; '.join(best.problems[:_SHOWN])}{more}")


@functools.cache
def _shell(name: str) -> nn.Module:
    with torch.device("meta"):
        return visionssm.create_model(name)


def _fit(content: Mapping[str, Any], name: str, model: nn.Module) -> Fit | None:
    try:
        state = convert(content, model)
    except CheckpointError:
        return None
    ours = model.state_dict()
    families_names = {_plain(key) for key in ours}
    if sum(_plain(key) in families_names for key in state) < _FAMILIAR * len(state):
        return None
    problems = list(_problems(state, ours, f"{pretrained_cfg(name).classifier}."))
    classes = state.get(f"{pretrained_cfg(name).classifier}.weight")
    return Fit(name, 1000 if classes is None else len(classes), tuple(problems), len(problems))


def _problems(state: Mapping[str, Tensor], ours: Mapping[str, Tensor], classifier: str) -> Iterator[str]:
    for key, wanted in ours.items():
        if key not in state:
            if not key.endswith("num_batches_tracked"):
                yield f"{key} is missing"
        elif state[key].shape != wanted.shape:
            same_inputs = state[key].shape[1:] == wanted.shape[1:]
            if not (key.startswith(classifier) and same_inputs):  # another number of classes is no other model
                yield f"{key} is {tuple(state[key].shape)} instead of {tuple(wanted.shape)}"
    for key in state:
        if key not in ours:
            yield f"{key} is unknown"


def _plain(key: str) -> str:
    return re.sub(r"\d+", "#", key)


def convert_file(
    source: Path, folder: Path, *, name: str | None = None, origin: str = "", licence: str = ""
) -> dict[str, Any]:
    """Turns a published classification file into a folder with `model.safetensors` and `config.json`.

    Both `create_model("local-dir:<folder>", pretrained=True)` of timm and ours load it, and after an upload "hf-hub:<name>".

    Args:
        source: the file.
        folder: where to; made if needed.
        name: the variant, if it is not to be recognised.
        origin: where the file is from, for the record; the variant's own page if empty.
        licence: of the weights; the one known of the variant if empty.

    Returns:
        What was recorded in config.json under "conversion": architecture, source, file, sha256, licence, layout, version.

    Raises:
        CheckpointError: the file is unreadable, or does not fit.
        FileNotFoundError: no such file.
        ValueError: `name` is no classification variant.
    """
    content = read_checkpoint(source)
    if name is None:
        fit = recognise(content)
    else:
        if name not in visionssm.list_models(task="classification"):
            raise ValueError(f"{name!r} is no classification variant: see visionssm.list_models(task='classification')")
        fit = _fit(content, name, _shell(name)) or Fit(name)
    model = visionssm.create_model(fit.name, num_classes=fit.num_classes)
    state = convert(content, model)
    check(state, model, str(source))
    model.load_state_dict(state, strict=False)  # strictness was checked above, with names
    cfg = pretrained_cfg(fit.name)
    record = {
        "architecture": fit.name,
        "source": origin or cfg.origin_url or "",
        "file": source.name,
        "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        "licence": licence or cfg.license or "",
        "layout": layout_of(model).source,
        "visionssm": visionssm.__version__,
    }
    _write(model, folder, record)
    return record


def _write(model: nn.Module, folder: Path, record: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        save_for_hf(model, scratch, model_config={"conversion": record}, safe_serialization=True)
        config = json.loads((Path(scratch) / "config.json").read_text())
        config["pretrained_cfg"].pop(
            "custom_load", None
        )  # that is for published files; these weights are in our own layout
        config["pretrained_cfg"] |= {"license": record["licence"], "origin_url": record["source"]}
        (Path(scratch) / "config.json").write_text(json.dumps(config, indent=2))
        for file in FILES:
            (Path(scratch) / file).replace(folder / file)
