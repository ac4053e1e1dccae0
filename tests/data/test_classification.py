"""Folders, tar files and Hugging Face data sets: found or refused by name; bad images raise or are skipped on request."""

import multiprocessing
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from visionssm.data.classification import (
    CorruptImage,
    DataConfig,
    LabelledImages,
    build_loader,
    open_image,
    open_source,
)
from visionssm.data.errors import DataError
from visionssm.data.sampling import EvalBatches
from visionssm.data.transforms import AugmentConfig, InputStats, build_plain_transform, build_train_transform
from visionssm.engine.prediction import find_images

STATS = InputStats(size=(16, 16), mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """train/ and val/ with the classes cat and dog, three images each."""
    for split in ("train", "val"):
        for target, name in enumerate(("cat", "dog")):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for i in range(3):
                pixels = np.full((20, 24, 3), 100 * target + 10 * i, np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path


AUGMENTS = [
    AugmentConfig(auto_augment="rand-m9-mstd0.5-inc1", random_erasing=0.5),
    AugmentConfig(library="albumentations", pipeline=[{"RandomResizedCrop": {}}, {"HorizontalFlip": {"p": 0.5}}]),
    AugmentConfig(library="none"),
]


def loader(config: DataConfig, split: str = "train", *, replace: bool = False, workers: int = 0, **options):
    dataset = LabelledImages(open_source(config, split), transform=build_plain_transform(STATS), replace=replace)
    batches = EvalBatches(length=len(dataset), batch_size=4)
    return build_loader(dataset, batches, workers=workers, skip_corrupt=config.skip_corrupt, **options)


def test_folder(images: Path) -> None:
    source = open_source(DataConfig(path=str(images)), "train")
    assert source.classes == ("cat", "dog")
    assert len(source) == 6
    image, target = source.load(4)
    assert (image.mode, image.size, target) == ("RGB", (24, 20), 1)
    assert source.name(4).endswith("train/dog/1.png")
    validation = open_source(DataConfig(path=str(images)), "validation", classes=source.classes)
    assert len(validation) == 6  # "validation" finds val/


def test_tar(images: Path) -> None:
    with tarfile.open(images / "packed.tar", "w") as archive:
        archive.add(images / "val", arcname=".")
    source = open_source(DataConfig(path=str(images)), "packed")
    assert source.classes == ("cat", "dog")
    assert [source.load(i)[1] for i in range(6)] == [0, 0, 0, 1, 1, 1]
    source.reader.tar_state.tf.close()  # timm keeps it open for speed


@pytest.mark.slow
def test_hugging_face(images: Path, tmp_path: Path) -> None:
    source = open_source(DataConfig(name=f"hfds/{images}", path=str(tmp_path / "cache")), "train")
    assert source.classes == ("cat", "dog")
    assert source.load(5)[1] == 1


def test_classes_are_matched_by_name(images: Path) -> None:
    source = open_source(DataConfig(path=str(images)), "val", classes=("ant", "dog", "cat"))
    assert [source.load(i)[1] for i in (0, 5)] == [2, 1]
    with pytest.raises(DataError, match="class 'dog', which the model or the training split lacks"):
        open_source(DataConfig(path=str(images)), "val", classes=("cat", "dogs"))


@pytest.mark.parametrize("augment", AUGMENTS, ids=lambda augment: augment.library)
@pytest.mark.parametrize("name", ["folder", "digits"])
def test_what_spawned_loader_processes_get_can_be_pickled(images: Path, name: str, augment: AugmentConfig) -> None:
    source = open_source(DataConfig(name=name, path=str(images) if name == "folder" else None), "train")
    dataset = LabelledImages(source, transform=build_train_transform(augment, STATS))
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(dataset[0, 1]["image"], again[0, 1]["image"])


@pytest.mark.slow
def test_loader_processes_may_be_spawned(images: Path) -> None:
    config = DataConfig(path=str(images))
    spawned = loader(config, workers=1)
    spawned.multiprocessing_context = multiprocessing.get_context("spawn")
    for one, other in zip(spawned, loader(config), strict=True):
        assert torch.equal(one["image"], other["image"])
    del spawned._iterator


@pytest.mark.parametrize("suffix", [".webp", ".bmp", ".TIF"])
def test_folders_take_what_the_other_tools_take(images: Path, suffix: str) -> None:
    for path in (images / "train").rglob("*.png"):
        with Image.open(path) as image:
            image.save(path.with_suffix(suffix))
        path.unlink()
    assert len(open_source(DataConfig(path=str(images)), "train")) == 6
    assert len(find_images([str(images / "train")])) == 6


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_sixteen_bits_are_scaled_to_eight(suffix: str, tmp_path: Path) -> None:
    wanted = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(wanted.astype(np.uint16) * 257).save(tmp_path / f"deep{suffix}")
    read = open_image(tmp_path / f"deep{suffix}", "deep")
    assert read.mode == "RGB"
    assert np.array_equal(np.asarray(read), wanted[..., None].repeat(3, 2))


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_values_without_a_range_are_refused(dtype: type, tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 0.5 if dtype is np.float32 else 70_000, dtype)).save(tmp_path / "odd.tif")
    with pytest.raises(CorruptImage, match=r"odd\.tif.* mode '[IF]' .*save it with 8 or 16 bits"):
        open_image(tmp_path / "odd.tif", "odd.tif")


def test_missing_folders_are_named(images: Path) -> None:
    with pytest.raises(DataError, match=r"data\.path is not set"):
        open_source(DataConfig(), "train")
    with pytest.raises(DataError, match="nowhere: no such folder"):
        open_source(DataConfig(path="nowhere"), "train")
    with pytest.raises(DataError, match=r"no split 'test' .*it has: train, val"):
        open_source(DataConfig(path=str(images)), "test")
    with pytest.raises(DataError, match="did you mean digits"):
        open_source(DataConfig(name="digts"), "train")


def test_empty_classes_and_stray_images_are_named(images: Path) -> None:
    (images / "train" / "elk").mkdir()
    with pytest.raises(DataError, match=r"class folder .*elk holds no images"):
        open_source(DataConfig(path=str(images)), "train")
    (images / "train" / "elk").rmdir()
    Image.new("RGB", (4, 4)).save(images / "train" / "stray.png")
    with pytest.raises(DataError, match="outside any class folder"):
        open_source(DataConfig(path=str(images)), "train")
    (images / "void").mkdir()
    with pytest.raises(DataError, match="void holds no images"):
        open_source(DataConfig(path=str(images)), "void")


@pytest.mark.parametrize("content", [b"", b"no image", "half"])
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_corrupt_image_is_named_and_skipped_only_on_request(images: Path, content: bytes | str, workers: int) -> None:
    bad = images / "train" / "dog" / "1.png"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(bad)
    bad.write_bytes(bad.read_bytes()[:4000] if isinstance(content, str) else content)
    config = DataConfig(path=str(images))
    with pytest.raises(CorruptImage, match=r"cannot read image .*dog/1\.png: .*skip_corrupt"):
        list(loader(config, workers=workers))

    told: list[str] = []
    config = DataConfig(path=str(images), skip_corrupt=True)
    targets = torch.cat([batch["target"] for batch in loader(config, report=told.append, workers=workers)])
    assert targets.tolist() == [0, 0, 0, 1, 1]  # evaluation leaves it out
    assert len(told) == 1
    assert "dog/1.png" in told[0]
    batches = list(loader(config, replace=True, workers=workers))
    assert torch.cat([batch["target"] for batch in batches]).tolist() == [0, 0, 0, 1, 1, 1]
    assert torch.equal(batches[1]["image"][0], batches[1]["image"][1])  # training takes the next readable one


PIPELINE = [
    {"RandomResizedCrop": {"scale": [0.3, 1.0]}},
    {"HorizontalFlip": {"p": 0.5}},
    {"VerticalFlip": {"p": 0.5}},
]


@pytest.mark.parametrize(
    "augment",
    [
        AugmentConfig(auto_augment="rand-m9-mstd0.5-inc1", random_erasing=0.5),
        AugmentConfig(library="albumentations", pipeline=PIPELINE),
    ],
    ids=lambda augment: augment.library,
)
def test_augmentation_is_a_function_of_the_seed(augment: AugmentConfig) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30, 3), np.uint8))
    transform = build_train_transform(augment, STATS)
    first = [transform(image, seed) for seed in range(8)]
    state = torch.get_rng_state()
    again = [transform(image, seed) for seed in reversed(range(8))][::-1]
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({tuple(tensor.flatten().tolist()) for tensor in first}) == 8
    assert first[0].shape == (3, 16, 16)
    assert first[0].dtype == torch.float32


def test_randaugment_survives_every_strength() -> None:
    image = Image.effect_noise((20, 20), 60).convert("RGB")
    transform = build_train_transform(AugmentConfig(auto_augment="rand-m10-n8-inc1"), STATS)
    for seed in range(40):  # at full strength posterize keeps 0 bits
        transform(image, seed)


@pytest.mark.parametrize("policy", ["bogus", "rand-m9-q3"])
def test_unknown_policies_are_named(policy: str) -> None:
    with pytest.raises(DataError, match=rf"augment\.auto_augment='{policy}' is no policy"):
        build_train_transform(AugmentConfig(auto_augment=policy), STATS)


def test_albumentations_choices_are_independent() -> None:
    stats = InputStats(size=(2, 2), mean=(0.0,) * 3, std=(1.0,) * 3)
    augment = AugmentConfig(library="albumentations", pipeline=PIPELINE[1:])
    image = Image.fromarray(np.array([[[0] * 3, [50] * 3], [[100] * 3, [200] * 3]], np.uint8))
    transform = build_train_transform(augment, stats)
    corners = {round(float(transform(image, seed)[0, 0, 0]) * 255) for seed in range(32)}
    assert corners == {0, 50, 100, 200}  # each flip with and without the other


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"HorizontlFlip": {}}, "did you mean HorizontalFlip"),
        ({"HorizontalFlip": {"prob": 1}}, "takes no 'prob'"),
        ({"RandomResizedCrop": {"scale": [2.0, 3.0]}}, "RandomResizedCrop: "),
        ({"A": {}, "B": {}}, "each entry is one"),
    ],
)
def test_bad_pipelines_are_named(entry: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        build_train_transform(AugmentConfig(library="albumentations", pipeline=[entry]), STATS)


def test_a_pipeline_of_the_wrong_size_is_named() -> None:
    transform = build_train_transform(AugmentConfig(library="albumentations", pipeline=PIPELINE[1:]), STATS)
    with pytest.raises(DataError, match="gives 40x30 images, training wants 16x16"):
        transform(Image.new("RGB", (30, 40)), 0)
