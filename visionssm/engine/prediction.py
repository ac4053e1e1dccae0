"""Predictions on image files: top classes with probabilities, as rows and as a contact sheet."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from PIL import Image
from timm.utils.misc import natural_key
from torch import nn

from visionssm.data.classification import PICTURE_TYPES, CorruptImage, open_image
from visionssm.data.errors import DataError
from visionssm.data.transforms import build_eval_transform
from visionssm.engine.models import class_names, input_stats

__all__ = ["Prediction", "find_images", "predict_images"]

THUMBNAIL = 224


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The most probable classes of one image, most probable first."""

    path: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    thumbnail: Image.Image


def find_images(inputs: Sequence[str]) -> list[str]:
    """Image files named by files, folders (searched with all below them) and glob patterns, each once, in order.

    Args:
        inputs: What to look for.

    Raises:
        DataError: For an input that names no image.
    """
    found: dict[str, None] = {}
    for entry in inputs:
        path = Path(entry).expanduser()
        if path.is_dir():
            files = [os.path.join(root, name) for root, _, names in os.walk(path) for name in names]
            files = sorted((f for f in files if Path(f).suffix.lower() in PICTURE_TYPES), key=natural_key)
            if not files:
                raise DataError(f"the folder {entry} holds no images ({', '.join(PICTURE_TYPES)})")
        elif path.is_file():
            files = [str(path)]
        elif glob.has_magic(entry):
            files = sorted((f for f in glob.glob(str(path), recursive=True) if os.path.isfile(f)), key=natural_key)
            if not files:
                raise DataError(f"the pattern {entry!r} matches no file")
        else:
            raise DataError(f"no such image or folder: {entry}")
        found |= dict.fromkeys(files)
    return list(found)


@torch.no_grad()
def predict_images(
    model: nn.Module,
    paths: Sequence[str],
    *,
    accelerator: Accelerator,
    top: int = 5,
    batch_size: int = 32,
    skip_corrupt: bool = False,
) -> tuple[list[Prediction], list[str]]:
    """Classifies image files with the preprocessing of the model's configuration.

    Args:
        model: A classifier (`visionssm.engine.models.load_classifier`).
        paths: Image files.
        accelerator: Device and precision.
        top: Classes per image.
        batch_size: Images at a time.
        skip_corrupt: Leave unreadable images out instead of raising.

    Returns:
        The predictions in the order of `paths`, and one line per image left out.

    Raises:
        CorruptImage: If an image cannot be read and `skip_corrupt` is off.
        DataError: If no image can be read.
    """
    transform = build_eval_transform(input_stats(model))
    model = model.to(accelerator.device).eval()
    predictions: list[Prediction] = []
    problems: list[str] = []
    for start in range(0, len(paths), batch_size):
        opened: list[tuple[str, Image.Image]] = []
        for path in paths[start : start + batch_size]:
            try:
                opened.append((path, open_image(path, path)))
            except CorruptImage as error:
                if not skip_corrupt:
                    raise CorruptImage(f"{error} (--skip-corrupt would skip it)") from error
                problems.append(str(error))
        if not opened:
            continue
        batch = torch.stack([transform(image) for _, image in opened]).to(accelerator.device)
        with accelerator.autocast():
            logits = model(batch)
        names = class_names(model, logits.shape[1])
        probabilities, classes = logits.float().softmax(-1).topk(min(top, logits.shape[1]))
        for (path, image), share, index in zip(opened, probabilities.tolist(), classes.tolist(), strict=True):
            image.thumbnail((THUMBNAIL, THUMBNAIL))
            predictions.append(
                Prediction(
                    path=path,
                    classes=tuple(names[i] for i in index),
                    probabilities=tuple(share),
                    thumbnail=image,
                )
            )
    if not predictions:
        raise DataError("no image could be read")
    return predictions, problems
