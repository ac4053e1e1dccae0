"""The embedded scenes: deterministic, true to their masks, kept apart by split."""

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visionssm.data.digit_scenes import SCENE_CLASSES, SceneSettings, draw_scenes, write_digit_scenes
from visionssm.data.errors import DataError

SMALL = SceneSettings(training=6, validation=3)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digit_scenes(tmp_path_factory.mktemp("scenes"), SMALL)


def decoded(segmentation: dict) -> np.ndarray:
    """COCO's run lengths, by hand."""
    flat = np.concatenate([np.full(count, i % 2, bool) for i, count in enumerate(segmentation["counts"])])
    return flat.reshape(segmentation["size"][::-1]).T


def test_annotations_say_what_is_drawn(root: Path) -> None:
    for split, count in (("training", 6), ("validation", 3)):
        content = json.loads((root / f"instances_{split}.json").read_text())
        assert [category["name"] for category in content["categories"]] == list(SCENE_CLASSES[1:])
        assert len(content["images"]) == count
        assert len({a["id"] for a in content["annotations"]}) == len(content["annotations"]) >= count
        scenes = list(draw_scenes(split, SMALL))
        for entry, (scene, digits) in zip(content["images"], scenes, strict=True):
            assert np.array_equal(np.asarray(Image.open(root / "images" / split / entry["file_name"])), scene)
            labels = np.asarray(Image.open(root / "annotations" / split / entry["file_name"]))
            wanted = np.ones_like(labels)
            own = [a for a in content["annotations"] if a["image_id"] == entry["id"]]
            for annotation, (digit, mask) in zip(own, digits, strict=True):
                assert annotation["category_id"] == digit + 1
                assert np.array_equal(decoded(annotation["segmentation"]), mask)
                assert annotation["area"] == mask.sum() > 20
                x, y, width, height = annotation["bbox"]
                box = mask[y : y + height, x : x + width]
                assert box.sum() == mask.sum()
                assert all(edge.any() for edge in (box[0], box[-1], box[:, 0], box[:, -1]))
                wanted[mask] = digit + 2
            assert np.array_equal(labels, wanted)


def test_scenes_are_drawn_alike_every_time_and_differ_by_split() -> None:
    first, again = (list(islice(draw_scenes("training", SMALL), 3)) for _ in range(2))
    for (a, _), (b, _) in zip(first, again, strict=True):
        assert np.array_equal(a, b)
    more = SceneSettings(training=60, validation=3)  # more scenes leave the earlier ones as they are
    assert np.array_equal(next(iter(draw_scenes("training", more)))[0], first[0][0])
    assert not np.array_equal(next(iter(draw_scenes("validation", SMALL)))[0], first[0][0])


def test_ink_can_be_seen() -> None:
    for scene, digits in draw_scenes("training", SMALL):
        for _, mask in digits:
            ring = np.pad(mask, 2)[4:, 2:-2] | np.pad(mask, 2)[:-4, 2:-2]
            around = scene[ring & ~mask].astype(float)
            assert np.abs(scene[mask].astype(float).mean(0) - around.mean(0)).max() > 20


def test_light_ink_is_brighter_than_any_ground() -> None:
    for scene, digits in draw_scenes("training", SceneSettings(training=6, validation=3, ink="light")):
        ink = np.any([mask for _, mask in digits], axis=0)
        assert all(scene[mask].mean(0).min() > 127 for _, mask in digits)
        assert np.median(scene[~ink]) < 127
    with pytest.raises(DataError, match="ink must be 'any' or 'light', got 'dark'"):
        SceneSettings(ink="dark")  # pyright: ignore[reportArgumentType]


def test_a_second_call_keeps_the_files_and_other_settings_are_refused(root: Path) -> None:
    stamp = (root / "instances_training.json").stat().st_mtime_ns
    assert write_digit_scenes(root, SMALL) == root
    assert (root / "instances_training.json").stat().st_mtime_ns == stamp
    with pytest.raises(DataError, match="holds scenes of other settings"):
        write_digit_scenes(root)
