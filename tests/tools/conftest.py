"""One trained model and one folder of images for all tools."""

from pathlib import Path

import pytest

from visionssm.data.digits import DIGIT_SPLITS, load_digit_images


@pytest.fixture(scope="session")
def digit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of PNG files: 40 digits per split."""
    root = tmp_path_factory.mktemp("digits")
    for split in DIGIT_SPLITS:
        images, targets, indices = load_digit_images(split)
        for image, target, index in list(zip(images, targets, indices, strict=True))[:40]:
            folder = root / split / str(target)
            folder.mkdir(parents=True, exist_ok=True)
            image.save(folder / f"{index}.png")
    return root


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model: timm's smallest ConvNeXt, trained on the digits for an epoch."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    from visionssm.engine.classification import ClassificationConfig, train_classifier
    from visionssm.engine.config import build_config

    output = tmp_path_factory.mktemp("run")
    tree = {
        "run": {"output": str(output), "epochs": 3, "batch_size": 50, "tensorboard": False},
        "model": {"name": "test_convnext"},
        "data": {"name": "digits", "image_size": 32, "crop_pct": 1.0, "workers": 0, "test_split": "test"},
        "augment": {"library": "none"},
        "optimizer": {"lr": 3e-3},
    }
    train_classifier(build_config(ClassificationConfig, tree), cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    PartialState._reset_state()
    return output
