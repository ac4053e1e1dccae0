"""Pictures of what detectors and segmentors found: boxes, outlines and labels on the image, beside the ground truth."""

from __future__ import annotations

import colorsys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from visionssm.data.classification import CorruptImage, open_image
from visionssm.engine.openmmlab import Task, build_model, load_weights

__all__ = ["Finder", "Found", "Instances", "draw_examples", "draw_instances", "draw_labels", "found_instances"]

_SIDE = 384  # smaller pictures are enlarged, so that captions can be read


@dataclass(frozen=True, kw_only=True)
class Instances:
    """Objects in an image: N boxes (x1, y1, x2, y2), classes, and where known scores and masks (N, H, W)."""

    boxes: np.ndarray
    classes: np.ndarray
    scores: np.ndarray | None = None
    masks: np.ndarray | None = None


def found_instances(sample: Any, *, threshold: float) -> Instances:
    """What a detector found in an image, above a score."""
    found = sample.pred_instances.cpu()
    found = found[found.scores >= threshold]
    masks = found.masks.numpy() if "masks" in found else None
    return Instances(boxes=found.bboxes.numpy(), classes=found.labels.numpy(), scores=found.scores.numpy(), masks=masks)


def _true_instances(sample: Any) -> Instances:
    true = sample.gt_instances.cpu()
    boxes: Any = true.bboxes
    boxes = boxes.tensor if hasattr(boxes, "tensor") else boxes
    factor = np.tile(np.asarray(sample.metainfo.get("scale_factor", (1.0, 1.0))), 2)
    masks = None
    if "masks" in true:
        masks = true.masks.resize(sample.metainfo["ori_shape"]).to_ndarray().astype(bool)
    return Instances(boxes=boxes.numpy() / factor, classes=true.labels.numpy(), masks=masks)


def _colour(index: int) -> tuple[int, int, int]:
    """A colour per class; neighbours differ by the golden angle."""
    red, green, blue = colorsys.hsv_to_rgb(index * 0.381966 % 1, 0.75, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def _enlarged(image: np.ndarray) -> tuple[Image.Image, float]:
    scale = max(1.0, _SIDE / max(image.shape[:2]))
    size = round(image.shape[1] * scale), round(image.shape[0] * scale)
    return Image.fromarray(image).resize(size, Image.Resampling.BICUBIC), scale


def _read(path: str) -> np.ndarray:
    """An image as the pipelines read it, upright by its EXIF: (H, W, 3) uint8, RGB."""
    import mmcv

    image = mmcv.imread(path, channel_order="rgb")
    if image is None:
        raise CorruptImage(f"cannot read image {path}: no format that OpenCV knows")
    return image


def draw_instances(image: np.ndarray, found: Instances, classes: Sequence[str]) -> Image.Image:
    """Boxes with class and score, masks as a tint.

    Args:
        image: (H, W, 3) uint8, RGB.
        found: in the image's own pixels.
        classes: names.
    """
    picture, scale = _enlarged(image)
    for mask, label in zip(() if found.masks is None else found.masks, found.classes, strict=False):
        shape = Image.fromarray(mask.astype(np.uint8) * 130).resize(picture.size, Image.Resampling.NEAREST)
        picture.paste(Image.new("RGB", picture.size, _colour(int(label))), mask=shape)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(14)
    for i, (box, label) in enumerate(zip(found.boxes * scale, found.classes, strict=True)):
        colour = _colour(int(label))
        draw.rectangle([float(side) for side in box], outline=colour, width=2)
        caption = classes[int(label)] + ("" if found.scores is None else f" {found.scores[i]:.2f}")
        place = (float(box[0]) + 3, max(float(box[1]) - 17, 0.0))
        draw.rectangle(draw.textbbox(place, caption, font=font), fill=colour)
        draw.text(place, caption, fill="black", font=font)
    return picture


def draw_labels(image: np.ndarray, labels: np.ndarray, palette: Sequence[Sequence[int]]) -> Image.Image:
    """The image tinted by its labels; 255 stays untinted.

    Args:
        image: (H, W, 3) uint8, RGB.
        labels: (H, W) class per pixel.
        palette: RGB per class.
    """
    colours = np.zeros((256, 3))
    colours[: len(palette)] = palette
    tint = (0.6 * (labels < len(palette)))[..., None]
    mixed = (1 - tint) * image + tint * colours[labels]
    return _enlarged(np.rint(mixed).astype(np.uint8))[0]


@dataclass(frozen=True, kw_only=True)
class Found:
    """What was found in one image.

    Args:
        summary: for JSON; boxes as (x1, y1, x2, y2) in the image's pixels, masks as COCO's run lengths.
        counts: objects, or the share of pixels, by class.
        labels: (H, W) uint8 class per pixel, of a segmentor.
    """

    summary: dict[str, Any]
    counts: dict[str, float]
    labels: np.ndarray | None = None

    def describe(self) -> str:
        """The counts in one line."""
        number = "{} {}" if self.labels is None else "{1} {0:.1%}"
        return ", ".join(number.format(count, name) for name, count in self.counts.items()) or "nothing"


class Finder:
    """A trained detector or segmentor for image files.

    Args:
        config: of `open_config`.
        checkpoint: its weights.
        task: what it is for.
    """

    def __init__(self, config: Any, checkpoint: str | Path, task: Task) -> None:
        from mmengine.dataset import Compose
        from mmengine.registry import DATASETS

        self.task: Task = task
        self.model = build_model(config, task).eval()
        load_weights(self.model, checkpoint)
        if torch.cuda.is_available():
            self.model.cuda()
        dataset = config.test_dataloader.dataset
        meta = {**getattr(DATASETS.get(dataset.type), "METAINFO", {}), **(dataset.get("metainfo") or {})}
        self.classes: list[str] = list(meta["classes"])
        self.palette = meta.get("palette") or [_colour(i) for i in range(len(self.classes))]
        self.pipeline = Compose([step for step in dataset.pipeline if step["type"] != "LoadAnnotations"])

    def draw(self, path: str, *, threshold: float) -> tuple[Image.Image, Found]:
        """The image with what was found in it, and that in figures.

        Args:
            path: image file.
            threshold: least score of a detection.

        Raises:
            CorruptImage: it cannot be read.
        """
        from mmengine.dataset import pseudo_collate

        open_image(path, path)  # the pipeline takes files that are cut short
        image = _read(path)
        data = self.pipeline({"img_path": path, "img_id": 0, "reduce_zero_label": False, "seg_fields": []})
        with torch.no_grad():
            (sample,) = self.model.test_step(pseudo_collate([data]))
        if self.task == "segmentation":
            labels = sample.pred_sem_seg.data[0].cpu().numpy().astype(np.uint8)
            share = np.bincount(labels.ravel(), minlength=len(self.classes)) / labels.size
            counts = {self.classes[i]: float(share[i]) for i in np.argsort(-share) if share[i]}
            return draw_labels(image, labels, self.palette), Found(
                summary={"pixels": counts}, counts=counts, labels=labels
            )
        found = found_instances(sample, threshold=threshold)
        names = [self.classes[int(label)] for label in found.classes]
        assert found.scores is not None
        rows = zip(names, found.scores.tolist(), found.boxes.tolist(), strict=True)
        objects: list[dict[str, Any]] = [{"class": name, "score": score, "box": box} for name, score, box in rows]
        for entry, mask in zip(objects, () if found.masks is None else found.masks, strict=False):
            entry["segmentation"] = _run_lengths(mask)
        picture = draw_instances(image, found, self.classes)
        return picture, Found(summary={"objects": objects}, counts=dict(Counter(names)))


def _run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """A mask (H, W) in COCO's compressed form."""
    from pycocotools.mask import encode

    code: Any = encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(code["size"]), "counts": code["counts"].decode()}


def draw_examples(runner: Any, task: Task, path: str | Path, *, count: int, threshold: float = 0.3) -> None:
    """Writes the first images of the test split, ground truth on the left, what the model finds on the right.

    Args:
        runner: with a test loop that has run.
        task: of the model.
        path: PNG.
        count: how many.
        threshold: least score of boxes that are drawn.
    """
    from mmengine.dataset import pseudo_collate

    dataset = runner.test_loop.dataloader.dataset
    model = runner.model.module if hasattr(runner.model, "module") else runner.model
    classes = dataset.metainfo["classes"]
    rows = []
    for index in range(min(count, len(dataset))):
        with torch.no_grad():
            (sample,) = model.eval().test_step(pseudo_collate([dataset[index]]))
        image = _read(sample.metainfo["img_path"])
        if task == "detection":
            pair = [draw_instances(image, _true_instances(sample), classes)]
            pair.append(draw_instances(image, found_instances(sample, threshold=threshold), classes))
        else:
            palette = dataset.metainfo.get("palette") or [_colour(i) for i in range(len(classes))]
            maps = (sample.gt_sem_seg.data, sample.pred_sem_seg.data)
            pair = [draw_labels(image, part[0].cpu().numpy(), palette) for part in maps]
        rows.append(np.concatenate([np.asarray(picture) for picture in pair], 1))
    sheet(rows, path)


def sheet(rows: Sequence[np.ndarray], path: str | Path) -> None:
    """Writes pictures in two columns; narrower ones are filled up with white."""
    height, width = max(row.shape[0] for row in rows), max(row.shape[1] for row in rows)
    columns = 2 if len(rows) > 1 else 1
    canvas = np.full((-(-len(rows) // columns) * (height + 8), columns * (width + 8), 3), 255, np.uint8)
    for i, row in enumerate(rows):
        top, left = i // columns * (height + 8), i % columns * (width + 8)
        canvas[top : top + row.shape[0], left : left + row.shape[1]] = row
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(canvas).save(path)
