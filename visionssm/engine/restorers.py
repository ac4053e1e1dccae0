"""Restoration models in and out: from visionssm's registry, and to folders of weights and what is needed to use them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_safetensors
from torch import nn

import visionssm
from visionssm.checkpoints.load import convert
from visionssm.checkpoints.read import read_checkpoint
from visionssm.data.degradations import DegradationConfig
from visionssm.data.errors import UserError, did_you_mean
from visionssm.engine.checkpoint import write_atomic
from visionssm.engine.config import build_config, dump_config
from visionssm.engine.models import CARD, ModelConfig

__all__ = ["Restorer", "build_restorer", "export_restorer", "load_restorer", "scale_of"]

WEIGHTS = "model.safetensors"
TASK = "restoration"


@dataclass(frozen=True, kw_only=True)
class Restorer:
    """A trained model in evaluation mode, and what it was trained against.

    Args:
        model: (B, C, H, W) -> (B, C, s H, s W), 0..1.
        scale: s.
        channels: C.
        degradation: Of its training, where that is known.
    """

    model: nn.Module
    scale: int
    channels: int
    degradation: DegradationConfig = field(default_factory=DegradationConfig)


def scale_of(model: nn.Module) -> int:
    """Output over input size; models that do not upscale need not say so."""
    return int(getattr(model, "upscale", 1))


def build_restorer(config: ModelConfig) -> nn.Module:
    """A new restoration model, with weights if the recipe asks for them.

    Weights of a model for another scale fit but for the head, which starts anew, as in the papers' fine-tuning.

    Raises:
        UserError: For unknown names, arguments the model does not take, and weights that do not fit.
    """
    known = visionssm.list_models(task=TASK)
    if config.name.partition(".")[0] not in known:
        raise UserError(f"model.name={config.name!r} is not a restoration model; {did_you_mean(config.name, known)}")
    options = dict(config.kwargs)
    if config.drop_path is not None:
        options["drop_path_rate"] = config.drop_path
    try:
        model: Any = visionssm.create_model(config.name, pretrained=config.pretrained, **options)
        if config.checkpoint is not None:
            _start_from(model, config.checkpoint)
        if config.grad_checkpointing:
            model.set_grad_checkpointing(True)
    except UserError:
        raise
    except (TypeError, RuntimeError, ValueError, OSError) as error:
        raise UserError(f"model {config.name!r} cannot be built: {' '.join(str(error).split())[:400]}") from error
    return model


def _start_from(model: nn.Module, checkpoint: str) -> None:
    if not Path(checkpoint).is_file():
        raise UserError(f"model.checkpoint={checkpoint}: no such file")
    state, ours = convert(read_checkpoint(checkpoint), model), model.state_dict()
    wrong = [
        name
        for name in {**ours, **state}
        if name not in state or name not in ours or state[name].shape != ours[name].shape
    ]
    if stray := [name for name in wrong if not name.startswith("head.")]:
        raise UserError(
            f"{checkpoint} does not fit {type(model).__name__}: {', '.join(stray[:5])}, {len(stray)} in all"
        )
    model.load_state_dict({name: value for name, value in state.items() if name not in wrong}, strict=False)


def load_restorer(source: str, *, checkpoint: str | None = None) -> Restorer:
    """A trained restoration model.

    Args:
        source: A run folder, or a visionssm name, whose registered weights are used.
        checkpoint: Weight file to load instead, published, exported or of a run.

    Raises:
        UserError: If there is no such model, or it has no weights.
    """
    folder = Path(source)
    degradation = DegradationConfig()
    try:
        if folder.is_dir():
            needed = (WEIGHTS, CARD) if checkpoint is None else (CARD,)
            if missing := [name for name in needed if not (folder / name).is_file()]:
                raise UserError(f"{source} is not an exported model: it has no {' and no '.join(missing)}")
            card = json.loads((folder / CARD).read_text(encoding="utf-8"))
            if card.get("task") != TASK:
                raise UserError(f"{source} holds a model for {card.get('task', 'classification')}, not for {TASK}")
            model = visionssm.create_model(card["architecture"], **card["options"])
            visionssm.load_official(model, folder / WEIGHTS if checkpoint is None else checkpoint)
            degradation = build_config(DegradationConfig, card["degradation"])
        else:
            model = build_restorer(ModelConfig(name=source, pretrained=checkpoint is None))
            if checkpoint is not None:
                visionssm.load_official(model, checkpoint)
    except UserError:
        raise
    except (
        Exception
    ) as error:  # the hub, safetensors and torch raise many kinds; all mean "these weights cannot be had"
        raise UserError(f"cannot load {source}: {' '.join(str(error).split())[:400]}") from error
    channels = int(getattr(model, "in_chans"))  # noqa: B009  nn.Module's own attributes have no types
    return Restorer(model=model.eval(), scale=scale_of(model), channels=channels, degradation=degradation)


def export_restorer(
    model: nn.Module,
    weights: Mapping[str, torch.Tensor],
    folder: str | Path,
    *,
    config: ModelConfig,
    degradation: DegradationConfig,
) -> None:
    """Writes `model.safetensors` and `config.json`, which `load_restorer(folder)` reads; each file atomically.

    Args:
        model: The architecture; gets the weights.
        weights: Its state dict.
        folder: Where to.
        config: What the model was built from.
        degradation: What it was trained against.
    """
    model.load_state_dict(dict(weights))
    card = {
        "task": TASK,
        "architecture": config.name.partition(".")[0],
        "options": dict(config.kwargs),
        "scale": scale_of(model),
        "degradation": dump_config(degradation),
        "visionssm": visionssm.__version__,
    }
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    write_atomic(Path(folder) / WEIGHTS, to_safetensors(tensors))
    write_atomic(Path(folder) / CARD, json.dumps(card, indent=2).encode())
