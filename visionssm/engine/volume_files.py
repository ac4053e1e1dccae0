"""Segments cases from files: labels as NIfTI on the input's own voxels, a picture of slices, scores where there is a label."""

# MONAI types what it returns as arrays or tensors of any kind.
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false

from __future__ import annotations

import gzip
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import nibabel
import numpy as np
import torch
from accelerate import Accelerator
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from monai.data import MetaTensor
from monai.transforms import Compose

from visionssm.data.errors import DataError
from visionssm.data.volume_patches import build_preprocessing
from visionssm.data.volumes import Case, read_case
from visionssm.engine.checkpoint import write_atomic
from visionssm.engine.volume_metrics import VolumeScores, score_regions
from visionssm.engine.volume_models import VolumeModel, segment

__all__ = ["VolumePrediction", "check_targets", "predict_case", "predict_volumes"]


@dataclass(frozen=True, kw_only=True)
class VolumePrediction:
    """What was found in a case, where it was written, and its scores if the case has a label.

    Args:
        case: the input.
        labels: (*S) uint8 on the input's voxels.
        files: NIfTI and PNG, as far as they were asked for.
        scores: by region.
    """

    case: Case
    labels: np.ndarray
    files: tuple[Path, ...] = ()
    scores: VolumeScores | None = None

    def describe(self, classes: Sequence[str]) -> str:
        """The share of each class but the background."""
        share = np.bincount(self.labels.ravel(), minlength=len(classes)) / self.labels.size
        return ", ".join(f"{name} {value:.2%}" for name, value in zip(classes[1:], share[1:], strict=True))


def predict_case(
    model: VolumeModel,
    case: Case,
    output: str | Path | None,
    *,
    accelerator: Accelerator,
    picture: bool = True,
    tick: Callable[[int, int], None] | None = None,
) -> VolumePrediction:
    """Segments a case and writes <name>.nii.gz on the input's own voxels and affine, and <name>.png.

    Logits are resampled back to the input's voxels before the class is chosen, as the published evaluation does. Each file
    appears whole or not at all.

    Args:
        model: a trained network.
        case: of `visionssm.data.volumes.input_cases`, or a labelled case, which is scored too.
        output: folder, or None to write nothing.
        accelerator: device and precision.
        picture: write the PNG.
        tick: called with the number of windows done and of all.

    Raises:
        DataError: the case cannot be read or does not fit, or the files cannot be written.
    """
    data = model.config.data
    item = read_case(case, data)
    labels = _segment(model, item["image"], accelerator, tick)
    scores = None
    if "label" in item:
        scores = score_regions(labels, item["label"][0].numpy(), data.scored, spacing=item["image"].pixdim.tolist())
    if output is None:
        return VolumePrediction(case=case, labels=labels, scores=scores)
    volume = nibabel.Nifti1Image(labels, np.asarray(item["image"].affine))
    volume.header.set_xyzt_units("mm")
    contents = {".nii.gz": gzip.compress(volume.to_bytes(), mtime=0)}
    if picture:
        contents[".png"] = draw_slices(item["image"][0].numpy(), labels, data.classes, title=case.name)
    files = []
    for suffix, content in contents.items():
        target = Path(output) / f"{case.name}{suffix}"
        try:
            write_atomic(target, content)
        except OSError as error:
            raise DataError(f"cannot write {target}: {error.strerror}") from error
        files.append(target)
    return VolumePrediction(case=case, labels=labels, files=tuple(files), scores=scores)


def predict_volumes(
    model: VolumeModel, cases: Sequence[Case], output: str | Path | None, *, accelerator: Accelerator
) -> list[VolumePrediction]:
    """`predict_case` of several."""
    if output is not None:
        check_targets(cases, output)
    model.net.to(accelerator.device).eval()
    return [predict_case(model, case, output, accelerator=accelerator) for case in cases]


def check_targets(cases: Sequence[Case], output: str | Path) -> None:
    """Refuses results that would meet.

    Raises:
        DataError: two cases would be written to one file, or a result would replace an input.
    """
    names = [case.name for case in cases]
    if double := {name for name in names if names.count(name) > 1}:
        raise DataError(f"several inputs would be written as {', '.join(sorted(double))}")
    inputs = {Path(file).resolve() for case in cases for file in (*case.images, case.label) if file}
    for name in names:
        if (target := Path(output) / f"{name}.nii.gz").resolve() in inputs:
            raise DataError(f"{target} would replace an input; choose another output")


def _segment(
    model: VolumeModel, image: MetaTensor, accelerator: Accelerator, tick: Callable[[int, int], None] | None
) -> np.ndarray:
    """Labels (*S) uint8 on the voxels of `image`."""
    steps = build_preprocessing(model.config.data, labelled=False)
    ready = cast("MetaTensor", steps({"image": image.clone()})["image"])
    logits = segment(model.net, ready, model.config, accelerator, tick=tick)
    placed = MetaTensor(logits, meta=ready.meta, applied_operations=ready.applied_operations)
    invertible = Compose([step for step in steps.transforms if hasattr(step, "inverse")])
    restored = cast("MetaTensor", invertible.inverse({"image": placed})["image"])
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
