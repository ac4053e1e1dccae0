"""Segmentation of volumes: recipe, training, sliding windows, and predictions as NIfTI files and pictures."""

# MONAI types what it returns as arrays or tensors of any kind.
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false

from __future__ import annotations

import gzip
import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

import nibabel
import numpy as np
import torch
import yaml
from accelerate import Accelerator
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from monai.data import MetaTensor
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from monai.transforms import CenterSpatialCropd, Compose, SpatialPadd
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import visionssm
from visionssm.data.errors import DataError, UserError, did_you_mean
from visionssm.data.sampling import UpdateBatches
from visionssm.data.seeding import seed_of
from visionssm.data.volumes import (
    Case,
    PatchAugmentConfig,
    VolumeDataConfig,
    VolumePatches,
    build_preprocessing,
    cached_cases,
    find_cases,
    read_case,
    split_cases,
    write_generated,
)
from visionssm.engine.checkpoint import BEST, load_checkpoint, write_atomic
from visionssm.engine.config import ConfigError, build_config, dump_config
from visionssm.engine.logging import RunLogger
from visionssm.engine.loop import Place, Trainer, build_accelerator
from visionssm.engine.models import ModelConfig
from visionssm.engine.plots import plot_curves
from visionssm.engine.run_folder import environment, starting_point
from visionssm.engine.settings import EmaConfig, OptimizerConfig, RunConfig, ScheduleConfig
from visionssm.engine.volume_metrics import VolumeScores, dice, score_regions

__all__ = [
    "DeepSupervision",
    "VolumeConfig",
    "VolumeModel",
    "VolumePrediction",
    "build_segmenter",
    "load_volume_model",
    "predict_volumes",
    "train_volume",
]

EXPORTED = ("model.safetensors", "config.json")


@dataclass(frozen=True, kw_only=True)
class VolumeLossConfig:
    """Dice plus cross-entropy.

    Args:
        dice, cross_entropy: weights.
        deep: levels of the decoder that are supervised besides the output, each half as heavy as the one before.
    """

    dice: float = 1.0
    cross_entropy: float = 1.0
    deep: int = 0


@dataclass(frozen=True, kw_only=True)
class InferenceConfig:
    """Sliding windows.

    Args:
        roi: window; None for the training patch.
        overlap: of neighbouring windows, 0 to 1.
        gaussian: weigh a window's middle more than its border.
        batch_size: windows at a time.
        mirror: average over all eight flips.
    """

    roi: tuple[int, int, int] | None = None
    overlap: float = 0.5
    gaussian: bool = True
    batch_size: int = 2
    mirror: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < 1:
            raise ConfigError(f"inference.overlap={self.overlap} must be at least 0 and less than 1")


@dataclass(frozen=True, kw_only=True)
class VolumeConfig:
    """A recipe for volumes.

    Args:
        validate: what is scored after each epoch: whole "volumes" by sliding windows, or one patch at the "centre" of each.
        run, model, data, augment, loss, inference, optimizer, schedule, ema: sections.
    """

    run: RunConfig
    model: ModelConfig
    data: VolumeDataConfig
    augment: PatchAugmentConfig = field(default_factory=PatchAugmentConfig)
    loss: VolumeLossConfig = field(default_factory=VolumeLossConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    validate: Literal["volumes", "centre"] = "volumes"
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)

    @property
    def roi(self) -> tuple[int, int, int]:
        return self.inference.roi or self.data.patch


# --- network ----------------------------------------------------------------------------------------------------


class DeepSupervision(nn.Module):
    """A network with further heads on its decoder for the time of its training; in evaluation it is the network alone.

    Args:
        net: has `decode`, `decoder.channels`, `head` and `stride` (SegMamba, VMambaUNet).
        levels: number of further heads, on the decoded maps of strides 2, 4, ...
        num_classes: of each head.

    Raises:
        UserError: the network has no such decoder or fewer levels.
    """

    def __init__(self, net: nn.Module, levels: int, *, num_classes: int) -> None:
        super().__init__()
        channels = getattr(getattr(net, "decoder", None), "channels", ())
        if not 1 <= levels < len(channels):
            raise UserError(
                f"loss.deep={levels}: {type(net).__name__} has {max(len(channels) - 1, 0)} further decoder levels"
            )
        self.net = net
        self.heads = nn.ModuleList(type(net.head)(width, num_classes, 1) for width in channels[1 : levels + 1])  # pyright: ignore

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """(B, in_chans, *S) -> logits; in training of all levels, finest first."""
        if not self.training:
            return self.net(x)
        maps = self.net.decode(x)  # pyright: ignore
        return [
            self.net.head(maps[0]),
            *(head(feature) for head, feature in zip(self.heads, maps[1:], strict=False)),
        ]  # pyright: ignore


def build_segmenter(config: ModelConfig, *, channels: int, classes: int) -> nn.Module:
    """A network for volumes.

    Raises:
        UserError: unknown name, arguments it does not take, weights that do not fit, or MONAI is missing.
    """
    known = visionssm.list_models(task="volume")
    if config.name not in known:
        raise UserError(f"model.name={config.name!r} is not a model for volumes; {did_you_mean(config.name, known)}")
    try:
        options = {"in_chans": channels, "num_classes": classes, **config.kwargs}
        model = visionssm.create_model(config.name, pretrained=config.pretrained, **options)
        if config.checkpoint is not None:
            visionssm.load_official(model, config.checkpoint)
        if config.grad_checkpointing:
            model.set_grad_checkpointing(True)  # pyright: ignore
    except (TypeError, RuntimeError, ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        raise UserError(f"model {config.name!r} cannot be built: {' '.join(str(error).split())[:400]}") from error
    return model


@torch.no_grad()
def segment(model: nn.Module, image: Tensor, config: VolumeConfig, accelerator: Accelerator) -> Tensor:
    """Logits (classes, *S), float32 on the CPU, of a preprocessed image (C, *S), by overlapping windows."""
    inference = config.inference

    def logits(x: Tensor) -> Tensor:
        with accelerator.autocast():
            numbers = range(8 if inference.mirror else 1)
            flips = [[axis + 2 for axis in range(3) if number >> axis & 1] for number in numbers]
            return torch.stack([model(x.flip(flip)).float().flip(flip) for flip in flips]).mean(0)

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


# --- training ---------------------------------------------------------------------------------------------------


class VolumeTask:
    """Batches, loss and scores of a recipe (see `visionssm.engine.loop.Task`)."""

    score = "dice"
    higher_is_better = True

    def __init__(
        self,
        config: VolumeConfig,
        *,
        train: Sequence[Case],
        validation: Sequence[Case],
        accelerator: Accelerator,
    ) -> None:
        self.config, self.accelerator = config, accelerator
        self.patches = VolumePatches(train, config.data, config.augment, seed=config.run.seed)
        rank, world = accelerator.process_index, accelerator.num_processes
        self.count = len(validation)
        self.mine = range(rank, self.count, world)
        keys, patch = ["image", "label"], config.data.patch
        centre = [SpatialPadd(keys, patch), CenterSpatialCropd(keys, patch)] if config.validate == "centre" else []
        self.validation = cached_cases([validation[i] for i in self.mine], config.data, extra=centre)
        self.criterion = DiceCELoss(
            to_onehot_y=True,
            softmax=True,
            lambda_dice=config.loss.dice,
            lambda_ce=config.loss.cross_entropy,
            batch=True,
        )
        self._loader: Any = None

    def train_loader(self, batches: UpdateBatches) -> Any:
        if self._loader is None:  # once: its workers stay from epoch to epoch
            workers = self.config.data.workers
            self._loader = DataLoader(
                self.patches,
                batch_sampler=batches,
                num_workers=workers,
                persistent_workers=workers > 0,
                pin_memory=self.accelerator.device.type == "cuda",
            )
        return self._loader

    def loss(self, model: Callable[..., Any], batch: Any, place: Place, *, teacher: nn.Module | None) -> Tensor:
        device = self.accelerator.device
        image, label = (batch[key].to(device, non_blocking=True) for key in ("image", "label"))
        outputs = model(image)
        levels = [logits.float() for logits in (outputs if isinstance(outputs, list) else [outputs])]
        total = torch.zeros((), device=device)
        for i, logits in enumerate(levels):
            target = label if i == 0 else F.interpolate(label.float(), size=logits.shape[2:])
            total = total + 0.5**i * self.criterion(logits, target)
        return total / sum(0.5**i for i in range(len(levels)))

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Dice in the preprocessed space, of every region and their mean; both empty count as 1."""
        model.eval()
        config = replace(self.config, inference=replace(self.config.inference, mirror=False))
        regions = config.data.scored
        table = torch.zeros(self.count, len(regions), dtype=torch.float64)
        for place, number in enumerate(self.mine):
            item = self.validation[place]
            guess = segment(model, item["image"], config, self.accelerator).argmax(0).numpy()
            truth = item["label"][0].numpy()
            table[number] = torch.tensor(
                [dice(np.isin(guess, v), np.isin(truth, v), empty=1.0) for v in regions.values()]
            )
        table = self.accelerator.reduce(table.float().to(self.accelerator.device), reduction="sum").cpu()
        means = table.mean(0).tolist()
        return {
            "dice": sum(means) / len(means),
            **{f"dice_{name}": mean for name, mean in zip(regions, means, strict=True)},
        }


def train_volume(
    config: VolumeConfig, *, resume: str = "never", cpu: bool = False, changed_recipe: bool = False
) -> dict[str, Any]:
    """Trains by a recipe and leaves a complete run folder.

    The folder holds config.yaml, log.csv, tensorboard/, checkpoints/{last,best}.pt, and at the end model.safetensors with
    config.json (`load_volume_model`), predictions/ of the test cases (NIfTI and pictures), metrics.json and curves.png. The
    final figures are those of the exported model, loaded again, on the cases' own voxels.

    Args:
        config: The recipe.
        resume: "never", "auto" (continue if there is a checkpoint) or the path of a checkpoint.
        cpu: Stay on the CPU even where there is a GPU.
        changed_recipe: Accept a checkpoint of another recipe.

    Returns:
        What metrics.json holds (on all processes but the main one: an empty dict).

    Raises:
        UserError: For anything in the recipe, the data or the folder that does not fit.
    """
    started = time.perf_counter()
    folder, data = Path(config.run.output), config.data
    accelerator = build_accelerator(config.run, cpu=cpu)
    checkpoint = starting_point(config.run, resume, accelerator)
    if data.name == "generated" and accelerator.is_main_process:
        write_generated(data.path, classes=len(data.classes) - 1)
    accelerator.wait_for_everyone()
    train, validation, test = split_cases(find_cases(data), data)
    torch.manual_seed(seed_of(config.run.seed))
    model = build_segmenter(config.model, channels=len(data.channels), classes=len(data.classes))
    _check_window(model, config)
    trained = DeepSupervision(model, config.loss.deep, num_classes=len(data.classes)) if config.loss.deep else model
    task = VolumeTask(config, train=train, validation=validation, accelerator=accelerator)
    batches = UpdateBatches(
        length=len(task.patches),
        batch_size=config.run.batch_size,
        seed=config.run.seed,
        accumulate=config.run.accumulate,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )
    logger = RunLogger(folder, active=accelerator.is_main_process, tensorboard=config.run.tensorboard)
    try:
        trainer = Trainer(
            trained,
            task,
            batches,
            run=config.run,
            optimizer=config.optimizer,
            schedule=config.schedule,
            ema=config.ema,
            config=dump_config(config),
            accelerator=accelerator,
            logger=logger,
        )
        if checkpoint is not None:
            trainer.resume(checkpoint, changed_recipe=changed_recipe)
            logger.say(f"resumed {checkpoint} at update {trainer.updates_done}")
        elif accelerator.is_main_process:
            write_atomic(folder / "config.yaml", yaml.safe_dump(dump_config(config), sort_keys=False).encode())
        parameters = sum(parameter.numel() for parameter in model.parameters())
        logger.say(
            f"{config.model.name}: {parameters:,} parameters; {len(train)} training, {len(validation)} validation, {len(test)} "
            f"test cases; {accelerator.num_processes} x {accelerator.device.type}, output {folder}"
        )
        history = trainer.fit()
        metrics: dict[str, Any] = {}
        if accelerator.is_main_process:
            best = load_checkpoint(folder / "checkpoints" / BEST)
            export_volume_model(folder, best["model"] if best["ema"] is None else best["ema"], config)
            saved = load_volume_model(folder)
            subject = test or validation
            found = predict_volumes(saved, subject, folder / "predictions", accelerator=accelerator)
            plot_curves(history, folder / "curves.png", title=config.model.name)
            metrics = {
                "model": config.model.name,
                "parameters": parameters,
                "classes": list(data.classes),
                "cases": {"train": len(train), "validation": len(validation), "test": len(test)},
                "epochs": trainer.state.epoch,
                "updates": trainer.updates_done,
                "best_epoch": trainer.state.best_epoch,
                "best_validation_dice": trainer.state.best_score,
                "evaluated_on": "test" if test else "validation",
                "scores": summarise([p.scores for p in found if p.scores is not None]),
                "history": history,
                "seconds": time.perf_counter() - started,
                "environment": environment(accelerator),
                "config": dump_config(config),
            }
            write_atomic(folder / "metrics.json", json.dumps(metrics, indent=2).encode())
        accelerator.wait_for_everyone()
        return metrics
    finally:
        logger.close()


def _check_window(model: nn.Module, config: VolumeConfig) -> None:
    """Refuses sizes that the network cannot read, before any data is."""
    for name, size in (("data.patch", config.data.patch), ("inference.roi", config.roi)):
        if min(size) < 1:
            raise ConfigError(f"{name}={size} must be sizes of at least 1")
        try:
            model.check_input((1, len(config.data.channels), *size))  # pyright: ignore
        except ValueError as error:
            raise ConfigError(f"{name}: {error}") from error
    stride = cast("int", model.stride)
    if config.loss.deep and any(side % stride for side in config.data.patch):
        raise ConfigError(f"data.patch={config.data.patch} must be multiples of {stride} for loss.deep")


def summarise(scores: Sequence[VolumeScores]) -> dict[str, Any]:
    """Means over the cases, per region and over the regions."""
    names = list(scores[0].dice)
    by_region = {
        kind: {name: float(np.mean([getattr(score, kind)[name] for score in scores])) for name in names}
        for kind in ("dice", "hd95")
    }
    means = {f"mean_{kind}": float(np.mean(list(values.values()))) for kind, values in by_region.items()}
    return {**means, **by_region, "cases": len(scores)}


# --- export and prediction --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class VolumeModel:
    """A trained network with the recipe it was trained by."""

    net: nn.Module
    config: VolumeConfig


@dataclass(frozen=True, kw_only=True)
class VolumePrediction:
    """What was written for a case, and its scores where it has a label."""

    case: Case
    nifti: Path
    picture: Path
    scores: VolumeScores | None


def export_volume_model(folder: Path, weights: Mapping[str, Tensor], config: VolumeConfig) -> None:
    """Writes the network's weights, without training heads, and its recipe."""
    if config.loss.deep:
        weights = {name.removeprefix("net."): value for name, value in weights.items() if name.startswith("net.")}
    net = {name: value.contiguous() for name, value in weights.items()}
    write_atomic(folder / EXPORTED[0], save_safetensors(net))
    write_atomic(folder / EXPORTED[1], json.dumps(dump_config(config), indent=2).encode())


def load_volume_model(folder: str | Path) -> VolumeModel:
    """A trained network from its run folder, in evaluation mode.

    Raises:
        UserError: the folder holds none, or it is damaged.
    """
    folder = Path(folder)
    if missing := [name for name in EXPORTED if not (folder / name).is_file()]:
        raise UserError(f"{folder} is not an exported model: it has no {' and no '.join(missing)}")
    try:
        config = build_config(VolumeConfig, json.loads((folder / EXPORTED[1]).read_text(encoding="utf-8")))
        net = build_segmenter(
            ModelConfig(name=config.model.name, kwargs=config.model.kwargs),
            channels=len(config.data.channels),
            classes=len(config.data.classes),
        )
        net.load_state_dict(load_safetensors((folder / EXPORTED[0]).read_bytes()))
    except UserError:
        raise
    except Exception as error:  # safetensors and torch raise many kinds; all mean that this is no whole model
        raise UserError(f"cannot load {folder}: {' '.join(str(error).split())[:400]}") from error
    return VolumeModel(net=net.eval(), config=config)


def predict_volumes(
    model: VolumeModel,
    cases: Sequence[Case],
    output: str | Path,
    *,
    accelerator: Accelerator,
    picture: bool = True,
) -> list[VolumePrediction]:
    """Segments cases and writes, for each, <name>.nii.gz on the input's own voxels and affine, and <name>.png.

    Logits are resampled back to the input's voxels before the class is chosen, as the published evaluation does.

    Args:
        model: a trained network.
        cases: `visionssm.data.volumes.input_cases`, or labelled cases, which are scored too.
        output: folder.
        accelerator: device and precision.
        picture: write the PNG.

    Raises:
        DataError: a case that cannot be read or does not fit; nothing is written for it.
    """
    output, data = Path(output), model.config.data
    if double := {case.name for case in cases if sum(case.name == other.name for other in cases) > 1}:
        raise DataError(f"several inputs would be written as {', '.join(sorted(double))}")
    net = model.net.to(accelerator.device).eval()
    predictions = []
    for case in cases:
        item = read_case(case, data)
        guess = _segment_case(net, item["image"], model.config, accelerator)
        image = nibabel.Nifti1Image(guess, np.asarray(item["image"].affine))  # pyright: ignore
        image.header.set_xyzt_units("mm")
        scores = None
        if "label" in item:
            scores = score_regions(guess, item["label"][0].numpy(), data.scored, spacing=item["image"].pixdim.tolist())
        files = output / f"{case.name}.nii.gz", output / f"{case.name}.png"
        drawing = draw_slices(item["image"][0].numpy(), guess, data.classes, title=case.name) if picture else None
        write_atomic(files[0], gzip.compress(image.to_bytes(), mtime=0))
        if drawing is not None:
            write_atomic(files[1], drawing)
        predictions.append(VolumePrediction(case=case, nifti=files[0], picture=files[1], scores=scores))
    return predictions


def _segment_case(net: nn.Module, image: MetaTensor, config: VolumeConfig, accelerator: Accelerator) -> np.ndarray:
    """Labels uint8 (*S) on the voxels of `image`."""
    steps = build_preprocessing(config.data, labelled=False)
    ready = cast("MetaTensor", steps({"image": image.clone()})["image"])
    logits = MetaTensor(
        segment(net, ready, config, accelerator), meta=ready.meta, applied_operations=ready.applied_operations
    )
    invertible = Compose([step for step in steps.transforms if hasattr(step, "inverse")])
    restored = cast("MetaTensor", invertible.inverse({"image": logits})["image"])
    assert restored.shape[1:] == image.shape[1:], "preprocessing was not undone"
    # what was cropped away comes back as zeros in every class, of which argmax takes the first: background
    return restored.as_tensor().argmax(0).to(torch.uint8).numpy()


def draw_slices(image: np.ndarray, labels: np.ndarray, classes: Sequence[str], *, title: str) -> bytes:
    """A PNG of the three planes through the middle of what is labelled, or of the volume: the image, and the labels over it."""
    found = np.argwhere(labels)
    centre = found.mean(0).round().astype(int) if len(found) else np.array(labels.shape) // 2
    low, high = np.percentile(image, (1, 99.5))
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    panels = figure.subplots(2, 3)
    for axis in range(3):
        plane, mask = (np.take(volume, centre[axis], axis).T for volume in (image, labels))
        for row in range(2):
            panels[row, axis].imshow(plane, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), origin="lower")
            panels[row, axis].set_axis_off()
        over = np.ma.masked_equal(mask, 0)
        last = panels[1, axis].imshow(
            over, cmap="tab10", vmin=0.5, vmax=10.5, alpha=0.5, origin="lower", interpolation="nearest"
        )
        panels[0, axis].set_title(f"plane {centre[axis]} of axis {axis}")
    shown = [value for value in range(1, len(classes)) if (labels == value).any()]
    marks = [
        panels[1, 1].plot([], [], "s", color=last.cmap(last.norm(value)), label=classes[value])[0] for value in shown
    ]
    if marks:
        figure.legend(handles=marks, loc="outside lower center", ncols=len(marks))
    figure.suptitle(title)
    FigureCanvasAgg(figure)
    data = io.BytesIO()
    figure.savefig(data, dpi=100, format="png")
    return data.getvalue()
