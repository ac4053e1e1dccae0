"""Embedded scenes for detection and segmentation: scikit-learn's real digits on scikit-image's photographs, no download.

A scene is a square cut out of a photograph with one to four scans of handwritten digits drawn into it, each in a size, a tilt
and a colour of its own, and nearly no overlap. The splits of the digits and of the photographs keep train and val apart: no
scan and no photograph is in both. Every scene is a function of its split and number alone.

Written are images as PNG, COCO annotations (boxes and run-length masks, one category per digit), and label maps in ADE20K's
form: 0 is left out, 1 is background, 2 to 11 are the digits.

    root/images/{training,validation}/0000.png      root/annotations/{training,validation}/0000.png
    root/instances_{training,validation}.json       root/scenes.json (what it was made from; a second call does nothing)
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from PIL import Image

from visionssm.data.digits import DIGIT_CLASSES, DigitSplit, load_digit_images
from visionssm.data.errors import DataError
from visionssm.data.photographs import PHOTOGRAPHS, load_photographs
from visionssm.data.seeding import seed_of

__all__ = ["SCENE_CLASSES", "SceneSettings", "draw_scenes", "write_digit_scenes"]

SCENE_CLASSES = ("background", *DIGIT_CLASSES)
_SOURCES: dict[str, tuple[DigitSplit, ...]] = {"training": ("train",), "validation": ("validation", "test")}
_SKIPPED = {
    "skimage/hubble_deep_field.jpg",
    "skimage/retina.jpg",
}  # mostly black: a digit's ink would stand out by itself
_VERSION = 1  # of the drawing: older folders are refused


@dataclass(frozen=True, kw_only=True)
class SceneSettings:
    """How scenes are drawn.

    Args:
        side: pixels of the square.
        training: scenes for training.
        validation: scenes held out.
        digits: least and most digits in a scene.
        sizes: least and largest side of a drawn digit in pixels.
        ink: "any" colour that can be told from what is under it, lighter or darker; or "light", bright colours on photographs of
            half their brightness, so that all digits have one sign of contrast: much sooner learnt where no box aligns them.

    Raises:
        DataError: another ink.
    """

    side: int = 128
    training: int = 600
    validation: int = 100
    digits: tuple[int, int] = (1, 4)
    sizes: tuple[int, int] = (36, 68)
    ink: Literal["any", "light"] = "any"

    def __post_init__(self) -> None:
        if self.ink not in ("any", "light"):
            raise DataError(f"ink must be 'any' or 'light', got {self.ink!r}")


def draw_scenes(
    split: Literal["training", "validation"], settings: SceneSettings
) -> Iterator[tuple[np.ndarray, list[tuple[int, np.ndarray]]]]:
    """The scenes of a split, in order.

    Args:
        split: which.
        settings: how.

    Returns:
        For every scene the image (side, side, 3) uint8, and per digit its class 0..9 and its mask (side, side) bool, the visible
        part of it.
    """
    photographs = [image for part in _SOURCES[split] for image in _photographs(part, settings.side)]
    scans, classes = [], []
    for part in _SOURCES[split]:
        images, targets, _ = load_digit_images(part)
        scans += images
        classes += targets.tolist()
    for number in range(getattr(settings, split)):
        random = np.random.default_rng(seed_of(list(_SOURCES).index(split), number))
        photograph = photographs[random.integers(len(photographs))]
        top, left = (random.integers(size - settings.side + 1) for size in photograph.shape[:2])
        scene = photograph[top : top + settings.side, left : left + settings.side].astype(np.float64)
        if random.random() < 0.5:
            scene = scene[:, ::-1]
        if settings.ink == "light":
            scene = scene / 2
        masks: list[tuple[int, np.ndarray]] = []
        taken = np.zeros(scene.shape[:2], bool)
        for _ in range(random.integers(settings.digits[0], settings.digits[1] + 1)):
            pick = int(random.integers(len(scans)))
            alpha = _place(scans[pick], taken, settings, random)
            if alpha is None:
                continue
            mask = alpha > 0.5
            ink = random.uniform(150, 255, 3) if settings.ink == "light" else _ink(scene[mask].mean(0), random)
            scene = scene + alpha[:, :, None] * (ink - scene)
            taken |= _box_of(mask)
            masks.append((classes[pick], mask))
        yield np.rint(scene).astype(np.uint8), masks


def _photographs(part: DigitSplit, side: int) -> list[np.ndarray]:
    known = load_photographs(part)
    assert set(known) == set(PHOTOGRAPHS[part])
    images = [image for name, image in known.items() if name not in _SKIPPED]
    halved = [np.asarray(Image.fromarray(image).reduce(2)) for image in images]
    return [image for image in (*images, *halved) if min(image.shape[:2]) >= side]


def _place(
    scan: Image.Image, taken: np.ndarray, settings: SceneSettings, random: np.random.Generator
) -> np.ndarray | None:
    """The ink of a digit at a free place, (side, side) in 0..1; None where ten tries found none."""
    size = int(random.integers(settings.sizes[0], settings.sizes[1] + 1))
    tilted = scan.convert("L").resize((size, size), Image.Resampling.BICUBIC)
    tilted = tilted.rotate(float(random.uniform(-15, 15)), Image.Resampling.BICUBIC, expand=False)
    ink = np.clip(np.asarray(tilted, np.float64) / 255 * 2 - 0.5, 0, 1)  # firm strokes with soft edges
    for _ in range(10):
        top, left = random.integers(0, settings.side - size + 1, 2)
        alpha = np.zeros(taken.shape)
        alpha[top : top + size, left : left + size] = ink
        box = _box_of(alpha > 0.5)
        if box.any() and (box & taken).sum() <= 0.05 * box.sum():
            return alpha * ~taken
    return None


def _box_of(mask: np.ndarray) -> np.ndarray:
    """The smallest box around a mask, as a mask."""
    return np.logical_and.outer(_span(mask.max(1)), _span(mask.max(0)))


def _span(line: np.ndarray) -> np.ndarray:
    return np.maximum.accumulate(line) & np.maximum.accumulate(line[::-1])[::-1]


def _ink(under: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A colour that can be told from what is under it."""
    while True:
        colour = random.uniform(0, 255, 3)
        if np.abs(colour - under).max() > 110:
            return colour


def _run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed form: lengths of runs of 0, 1, 0, ..., down the columns."""
    flat = np.concatenate([[0], mask.T.ravel().astype(np.int8), [0]])
    edges = np.flatnonzero(np.diff(flat))
    bounds = np.concatenate([[0], edges, [mask.size]])
    return np.diff(bounds).tolist()


def _annotation(number: int, image: int, digit: int, mask: np.ndarray) -> dict[str, Any]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, left, height, width = rows[0], columns[0], rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
    return {
        "id": number,
        "image_id": image,
        "category_id": digit + 1,
        "bbox": [int(left), int(top), int(width), int(height)],
        "area": int(mask.sum()),
        "iscrowd": 0,
        "segmentation": {"size": list(mask.shape), "counts": _run_lengths(mask)},
    }


def write_digit_scenes(root: str | Path, settings: SceneSettings | None = None) -> Path:
    """Writes both splits, unless they are there already.

    Args:
        root: folder.
        settings: how scenes are drawn; None for the defaults.

    Returns:
        The folder.

    Raises:
        DataError: the folder holds scenes of other settings.
    """
    root, settings = Path(root), SceneSettings() if settings is None else settings
    made_of = json.loads(json.dumps({"version": _VERSION, **asdict(settings)}))
    stamp = root / "scenes.json"
    if stamp.is_file():
        if json.loads(stamp.read_text()) == made_of:
            return root
        raise DataError(f"{root} holds scenes of other settings; remove it, or choose another folder")
    for split in cast("tuple[Literal['training', 'validation'], ...]", tuple(_SOURCES)):
        images, annotations = [], []
        for folder in ("images", "annotations"):
            (root / folder / split).mkdir(parents=True, exist_ok=True)
        for number, (scene, digits) in enumerate(draw_scenes(split, settings)):
            name = f"{number:04}.png"
            Image.fromarray(scene).save(root / "images" / split / name)
            labels = np.ones(scene.shape[:2], np.uint8)
            for digit, mask in digits:
                labels[mask] = digit + 2
                annotations.append(_annotation(len(annotations) + 1, number + 1, digit, mask))
            Image.fromarray(labels).save(root / "annotations" / split / name)
            images.append({"id": number + 1, "file_name": name, "width": settings.side, "height": settings.side})
        categories = [{"id": i + 1, "name": name} for i, name in enumerate(DIGIT_CLASSES)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / f"instances_{split}.json").write_text(json.dumps(content))
    stamp.write_text(json.dumps(made_of))
    return root
