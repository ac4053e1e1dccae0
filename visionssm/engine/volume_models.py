"""Segmentation networks: built by a recipe, trained with further heads, used by sliding windows, kept with their recipe."""

# MONAI types what it returns as arrays or tensors of any kind.
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from monai.data import MetaTensor
from monai.inferers import sliding_window_inference
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

import visionssm
from visionssm.checkpoints.layout import unwrap
from visionssm.checkpoints.read import as_tensors, read_checkpoint
from visionssm.data.errors import UserError, did_you_mean
from visionssm.engine.checkpoint import write_atomic
from visionssm.engine.config import ConfigError, build_config, dump_config, load_config
from visionssm.engine.models import CARD, UNET, ModelConfig
from visionssm.engine.volume_config import VolumeConfig
from visionssm.integrations.monai import VMambaUNet
from visionssm.layers.segmentation import CONVS, SegmentationModel

__all__ = [
    "DeepSupervision",
    "SliceBySlice",
    "VolumeModel",
    "build_segmenter",
    "check_window",
    "export_volume_model",
    "load_volume_model",
    "segment",
]

TASK, WEIGHTS = "volume", "model.safetensors"


class SliceBySlice(nn.Module):
    """A network for images, over volumes: every plane along the last axis by itself.

    Args:
        net: for images (B, C, H, W).
    """

    def __init__(self, net: SegmentationModel) -> None:
        super().__init__()
        self.net = net
        self.strides = [*net.strides, 1]

    def check_input(self, shape: Sequence[int]) -> None:
        """Raises ValueError unless an input of `shape`, (B, C, H, W, planes), can be segmented."""
        self.net.check_input(shape[:-1])

    def supervise(self, x: Tensor, heads: Sequence[nn.Module]) -> list[Tensor]:
        """(B, C, H, W, planes), padded -> logits of several levels, finest first."""
        return [_to_volumes(logits, len(x)) for logits in self.net.supervise(_to_planes(x), heads)]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W, planes) -> logits (B, classes, H, W, planes)."""
        return _to_volumes(self.net(_to_planes(x)), len(x))


def _to_planes(x: Tensor) -> Tensor:
    return x.movedim(-1, 1).flatten(0, 1)


def _to_volumes(planes: Tensor, batch: int) -> Tensor:
    return planes.unflatten(0, (batch, -1)).movedim(1, -1)


def bare(model: nn.Module) -> SegmentationModel:
    """The network alone."""
    return cast("SegmentationModel", model.net if isinstance(model, SliceBySlice) else model)


class DeepSupervision(nn.Module):
    """A network with further heads on its decoder for the time of its training; in evaluation it is the network alone.

    Heads that a network brings itself (`further_heads`) are trained and kept.

    Args:
        net: what `build_segmenter` returns.
        levels: number of further heads, on the decoded maps after the finest.
        num_classes: of each head.

    Raises:
        UserError: the network has fewer levels.
    """

    def __init__(self, net: nn.Module, levels: int, *, num_classes: int) -> None:
        super().__init__()
        inner = bare(net)
        channels = inner.decoder.channels
        if not 1 <= levels < len(channels):
            raise UserError(
                f"loss.deep={levels}: {type(inner).__name__} has {max(len(channels) - 1, 0)} further decoder levels"
            )
        self.net: Any = net
        self.levels = levels
        own = inner.further_heads[:levels]
        missing = channels[1 + len(own) : levels + 1]
        self.heads = nn.ModuleList(CONVS[inner.spatial_dims](width, num_classes, 1) for width in missing)
        own.requires_grad_(True)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """(B, in_chans, *S) -> logits; in training of all levels, finest first."""
        if not self.training:
            return self.net(x)
        return self.net.supervise(x, [*bare(self.net).further_heads, *self.heads][: self.levels])


def build_segmenter(config: ModelConfig, *, channels: int, classes: int) -> nn.Module:
    """A network for volumes: one of visionssm's, or "vmamba_unet", SegMamba's decoder over an encoder of MONAI's registry.

    One for images (`spatial_dims=2`) sees the planes along the last axis, each by itself.

    Raises:
        UserError: unknown name, arguments it does not take, or weights that do not fit.
    """
    known = [*visionssm.list_models(task=TASK), UNET]
    if config.name not in known:
        raise UserError(f"model.name={config.name!r} is not a model for volumes; {did_you_mean(config.name, known)}")
    try:
        model: Any
        if config.name == UNET:
            options = {"spatial_dims": 3, **config.kwargs}
            model = VMambaUNet(in_channels=channels, out_channels=classes, pretrained=config.pretrained, **options)
        else:
            options = {"in_chans": channels, "num_classes": classes, **config.kwargs}
            model = visionssm.create_model(config.name, pretrained=config.pretrained, **options)
        if config.checkpoint is not None:
            load_weights(model, config.checkpoint)
        if config.grad_checkpointing:
            model.set_grad_checkpointing(True)
        model = SliceBySlice(model) if model.spatial_dims == 2 else model
    except UserError:
        raise
    except (TypeError, RuntimeError, ValueError) as error:
        raise UserError(f"model {config.name!r} cannot be built: {' '.join(str(error).split())[:400]}") from error
    return model


def load_weights(model: nn.Module, file: str) -> None:
    """Weights from a file in the published layout or our own; all must fit.

    Raises:
        UserError: they do not, or there is no such file.
    """
    model = bare(model)
    try:
        if isinstance(model, VMambaUNet):
            model.load_state_dict(as_tensors(unwrap(read_checkpoint(file))))
        else:
            visionssm.load_official(model, file)
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(f"cannot load {file}: {' '.join(str(error).split())[:400]}") from error


@torch.no_grad()
def segment(
    model: nn.Module,
    image: Tensor,
    config: VolumeConfig,
    accelerator: Accelerator,
    *,
    tick: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Logits (classes, *S), float32 on the CPU, of a preprocessed image (C, *S), by overlapping windows.

    Args:
        model: (B, C, *S) -> (B, classes, *S).
        image: of any size.
        config: window, overlap, flips.
        accelerator: device and precision.
        tick: called after each batch of windows with the number of windows done and of all.
    """
    inference = config.inference
    done, total = 0, count_windows(image.shape[1:], config.roi, inference.overlap)

    def logits(x: Tensor) -> Tensor:
        nonlocal done
        with accelerator.autocast():
            numbers = range(8 if inference.mirror else 1)
            flips = [[axis + 2 for axis in range(3) if number >> axis & 1] for number in numbers]
            mean = sum(model(x.flip(flip)).float().flip(flip) for flip in flips) / len(flips)
        done += len(x)
        if tick is not None:
            tick(done, total)
        return cast("Tensor", mean)

    result = sliding_window_inference(
        image.as_tensor()[None] if isinstance(image, MetaTensor) else image[None],
        config.roi,
        inference.batch_size,
        logits,
        overlap=inference.overlap,
        mode="gaussian" if inference.gaussian else "constant",
        sw_device=accelerator.device,
        device="cpu",
    )
    return cast("Tensor", result)[0]


def check_window(net: nn.Module, config: VolumeConfig, name: str, size: Sequence[int]) -> None:
    """Refuses a size that the network cannot read.

    Raises:
        ConfigError: it says so of the key `name`.
    """
    if min(size) < 1:
        raise ConfigError(f"{name}={tuple(size)} must be sizes of at least 1")
    try:
        net.check_input((1, len(config.data.channels), *size))
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from error


def count_windows(size: tuple[int, ...], roi: tuple[int, ...], overlap: float) -> int:
    """Number of windows that MONAI's sliding window takes."""
    steps = [max(int(window * (1 - overlap)), 1) for window in roi]
    return math.prod(
        1 + max(0, math.ceil((side - window) / step)) for side, window, step in zip(size, roi, steps, strict=True)
    )


# --- in and out -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class VolumeModel:
    """A trained network with the recipe it was trained by."""

    net: nn.Module
    config: VolumeConfig

    def with_windows(
        self, *, roi: Sequence[int] | None = None, overlap: float | None = None, mirror: bool | None = None
    ) -> VolumeModel:
        """The same with other sliding windows; None leaves what the recipe says.

        Raises:
            UserError: the network cannot read such a window.
        """
        wanted = {"roi": None if roi is None else tuple(roi), "overlap": overlap, "mirror": mirror}
        inference = replace(self.config.inference, **{k: v for k, v in wanted.items() if v is not None})
        config = replace(self.config, inference=inference)
        check_window(self.net, config, "inference.roi", config.roi)
        return replace(self, config=config)


def export_volume_model(folder: Path, weights: Mapping[str, Tensor], config: VolumeConfig) -> None:
    """Writes the network's weights, without training heads, and its recipe; each file atomically."""
    # the heads of deep supervision stay behind, and the names are those of the network without its wrappers
    names = [name for name in weights if name.startswith("net.")] if config.loss.deep else list(weights)
    net = {re.sub(r"^(net\.)+", "", name): weights[name].contiguous() for name in names}
    card = {"task": TASK, "recipe": dump_config(config), "visionssm": visionssm.__version__}
    write_atomic(folder / WEIGHTS, save_safetensors(net))
    write_atomic(folder / CARD, json.dumps(card, indent=2).encode())


def load_volume_model(source: str | Path, *, checkpoint: str | None = None, recipe: str | None = None) -> VolumeModel:
    """A trained network in evaluation mode.

    Args:
        source: a run folder, or the name of a model; a name needs the two others.
        checkpoint: its weights, published or our own.
        recipe: YAML file that says what its channels, classes and windows are.

    Raises:
        UserError: there is no such model, or it is damaged, or something of it is missing.
    """
    folder = Path(source)
    if folder.is_dir():
        if checkpoint is not None or recipe is not None:
            raise UserError(f"{source} is a run folder, which brings its weights and its recipe; name a model instead")
        return _load_folder(folder)
    if checkpoint is None or recipe is None:
        raise UserError(f"{source} needs weights and a recipe for its data: --checkpoint FILE and --recipe YAML")
    config = load_config(VolumeConfig, recipe)
    named = ModelConfig(name=str(source), kwargs=config.model.kwargs if config.model.name == str(source) else {})
    config = replace(config, model=named)
    net = build_segmenter(named, channels=len(config.data.channels), classes=len(config.data.classes))
    load_weights(net, checkpoint)
    return VolumeModel(net=net.eval(), config=config)


def _load_folder(folder: Path) -> VolumeModel:
    if missing := [name for name in (WEIGHTS, CARD) if not (folder / name).is_file()]:
        raise UserError(f"{folder} is not an exported model: it has no {' and no '.join(missing)}")
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        if card.get("task") != TASK:
            raise UserError(f"{folder} holds a model for {card.get('task', 'classification')}, not for {TASK}")
        config = build_config(VolumeConfig, card["recipe"])
        net = build_segmenter(
            ModelConfig(name=config.model.name, kwargs=config.model.kwargs),
            channels=len(config.data.channels),
            classes=len(config.data.classes),
        )
        bare(net).load_state_dict(load_safetensors((folder / WEIGHTS).read_bytes()))
    except UserError:
        raise
    except Exception as error:  # safetensors and torch raise many kinds; all mean that this is no whole model
        raise UserError(f"cannot load {folder}: {' '.join(str(error).split())[:400]}") from error
    return VolumeModel(net=net.eval(), config=config)
