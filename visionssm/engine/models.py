"""Classifiers in and out: from timm's registry (visionssm's models are in it) and to folders that timm loads."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_model_data_config
from timm.models import clean_state_dict, is_model, resolve_model_input_args
from timm.models._hub import save_for_hf
from torch import nn

import visionssm
from visionssm.checkpoints.layout import unwrap
from visionssm.checkpoints.read import read_checkpoint
from visionssm.data.errors import UserError, did_you_mean
from visionssm.data.transforms import InputStats
from visionssm.engine.checkpoint import write_atomic
from visionssm.models._registry import TASKS

__all__ = [
    "ModelConfig",
    "build_classifier",
    "class_names",
    "export_classifier",
    "input_stats",
    "load_classifier",
    "task_of",
]

CARD = "config.json"  # of a run folder: says what the model is
UNET = "vmamba_unet"  # made of MONAI's encoders, which the registry of models does without
DECIDED = {"num_classes": "the data say how many classes there are", "in_chans": "images are read in RGB"}
EXPORTED = ("model.safetensors", CARD)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network.

    Args:
        name: A timm name; visionssm's models are registered there ("vmamba_tiny_s1l8").
        pretrained: Start from the weights registered for the name.
        checkpoint: Start from a weight file instead; as in timm, a head for another number of classes starts anew.
        drop_path: Stochastic depth rate, or None for the model's own.
        grad_checkpointing: Recompute activations in the backward pass, to save memory.
        kwargs: Further arguments of the model, such as {scan: hilbert}.
    """

    name: str
    pretrained: bool = False
    checkpoint: str | None = None
    drop_path: float | None = None
    grad_checkpointing: bool = False
    kwargs: dict[str, Any] = field(default_factory=dict)


def build_classifier(config: ModelConfig, *, num_classes: int, image_size: int | None) -> nn.Module:
    """A new classifier.

    Args:
        config: Which model.
        num_classes: Outputs.
        image_size: Input size for models with a fixed grid; others ignore it.

    Raises:
        UserError: For unknown names, arguments the model does not take, and weights that do not fit.
    """
    if ":" not in config.name and not is_model(config.name.partition(".")[0]):
        raise UserError(f"model.name={config.name!r} is not a model; {did_you_mean(config.name, timm.list_models())}")
    for name, origin in DECIDED.items():
        if name in config.kwargs:
            raise UserError(f"model.kwargs.{name} cannot be set: {origin}")
    options: dict[str, Any] = {"num_classes": num_classes, **config.kwargs}
    if config.drop_path is not None:
        options["drop_path_rate"] = config.drop_path
    request = {} if image_size is None else {"img_size": image_size}
    if config.checkpoint is not None and not Path(config.checkpoint).is_file():
        raise UserError(f"model.checkpoint={config.checkpoint}: no such file")
    try:
        arguments = resolve_model_input_args(config.name, request, **options)
        model = _create(config, arguments)
        if config.grad_checkpointing:
            model.set_grad_checkpointing(True)
    except (TypeError, RuntimeError, ValueError, FileNotFoundError, AssertionError) as error:
        reason = " ".join(str(error).split())[:400]
        raise UserError(f"model {config.name!r} cannot be built: {reason}") from error
    return model


def _create(config: ModelConfig, arguments: dict[str, Any]) -> Any:
    """timm's model with the weights that the recipe asks for."""
    if config.checkpoint is None:
        return timm.create_model(pretrained=config.pretrained, **arguments)
    if config.name.partition(".")[0] in visionssm.list_models(task="classification"):
        model: Any = timm.create_model(**arguments)
        model.load_pretrained(config.checkpoint)
        return model
    arguments["pretrained_cfg"] |= _weights_of(config.checkpoint, arguments["pretrained_cfg"])
    return timm.create_model(pretrained=True, **arguments)


def _weights_of(checkpoint: str, pretrained_cfg: Mapping[str, Any]) -> dict[str, Any]:
    """What to change in a pretrained_cfg so that timm's own loading takes a file: it converts, resizes and is strict."""
    state = _read_weights(checkpoint)
    head = state.get(f"{pretrained_cfg.get('classifier')}.weight")
    size = {} if head is None else {"num_classes": head.shape[0]}
    return {"state_dict": state, "source": "", **size}


def _read_weights(checkpoint: str) -> dict[str, Any]:
    """The state dict in a file, without what wrappers of modules put before its names."""
    return clean_state_dict(dict(unwrap(read_checkpoint(checkpoint))))


def load_classifier(source: str, *, checkpoint: str | None = None) -> nn.Module:
    """A trained classifier in evaluation mode.

    Args:
        source: A run folder (or any folder with timm's config.json), or a timm name, whose registered weights are used.
        checkpoint: Weight file to load instead, published, exported or of a run.

    Raises:
        UserError: If there is no such model or it has no weights.
    """
    folder = Path(source)
    if folder.is_dir():
        if missing := [name for name in EXPORTED if not (folder / name).is_file()]:
            raise UserError(f"{source} is not an exported model: it has no {' and no '.join(missing)}")
        name = f"local-dir:{folder}"
    elif ":" in source or is_model(source.partition(".")[0]):
        name = source
    else:
        raise UserError(f"{source!r} is neither a folder nor a model; {did_you_mean(source, timm.list_models())}")
    try:
        model = timm.create_model(name, pretrained=checkpoint is None)
        if checkpoint is not None:
            _load(model, checkpoint)
    except Exception as error:  # timm, safetensors and the hub raise many kinds; all mean "these weights cannot be had"
        raise UserError(f"cannot load {source}: {' '.join(str(error).split())[:400]}") from error
    return model.eval()


def _load(model: nn.Module, checkpoint: str) -> None:
    if hasattr(model, "official_layout"):
        visionssm.load_official(model, checkpoint)
    else:
        model.load_state_dict(_read_weights(checkpoint))


def class_names(model: nn.Module, num_classes: int) -> tuple[str, ...]:
    """The names that came with the weights, in the order of the outputs; plain numbers where none did."""
    names = getattr(model, "pretrained_cfg", {}).get("label_names")
    return tuple(map(str, names)) if names and len(names) == num_classes else tuple(map(str, range(num_classes)))


def input_stats(model: nn.Module, **wanted: Any) -> InputStats:
    """What images a model wants: its pretrained_cfg, with `wanted` (img_size, mean, std, crop_pct) on top."""
    given = {key: value for key, value in wanted.items() if value is not None}
    return InputStats.from_data_config(resolve_model_data_config(model, args=given))


def export_classifier(
    model: nn.Module,
    weights: Mapping[str, torch.Tensor],
    folder: str | Path,
    *,
    classes: Sequence[str],
    stats: InputStats,
) -> None:
    """Writes `model.safetensors` and `config.json`, which `timm.create_model("local-dir:<folder>", pretrained=True)` loads.

    Args:
        model: The architecture, built by `build_classifier`; gets the weights.
        weights: Its state dict.
        folder: Where to; each file is replaced atomically.
        classes: Names in the order of the outputs.
        stats: The preprocessing of the training.
    """
    model.load_state_dict(dict(weights))
    data_config = {
        "input_size": (len(stats.mean), *stats.size),
        "mean": stats.mean,
        "std": stats.std,
        "interpolation": stats.interpolation,
        "crop_pct": stats.crop_pct,
        "crop_mode": stats.crop_mode,
    }
    with tempfile.TemporaryDirectory() as scratch:
        save_for_hf(
            model,
            scratch,
            model_config={"label_names": list(classes)},
            safe_serialization=True,
            data_config=data_config,
        )
        for name in EXPORTED:
            write_atomic(Path(folder) / name, (Path(scratch) / name).read_bytes())


def task_of(source: str) -> str:
    """What a run folder, a model name or a config of MMEngine is for: one of visionssm's tasks, "detection", "segmentation".

    Names that visionssm does not know are timm's, so classifiers.

    Raises:
        UserError: a folder without a readable config.json.
    """
    if source.endswith(".py"):
        from visionssm.engine.openmmlab import task_of_config

        return task_of_config(Path(source))
    card = Path(source) / CARD
    if card.parent.is_dir() and not card.is_file():
        raise UserError(
            f"{source} is not an exported model or finished run: it has no {CARD}, which training writes at its end"
        )
    if card.is_file():
        try:
            content = json.loads(card.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            raise UserError(f"{card} is not readable JSON: {' '.join(str(error).split())}") from error
        return str(content.get("task", "classification")) if isinstance(content, dict) else "classification"
    name = source.partition(".")[0]
    if name == UNET:
        return "volume"
    return next((task for task in TASKS if name in visionssm.list_models(task=task)), "classification")
