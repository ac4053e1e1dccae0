"""Small recipes, and a fresh accelerate state for every test."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState

from visionssm.engine.classification import ClassificationConfig
from visionssm.engine.config import build_config


@pytest.fixture(autouse=True)
def _fresh_accelerate() -> Iterator[None]:
    """accelerate keeps device and precision in class attributes; each run in a test chooses its own."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    PartialState._reset_state()


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., ClassificationConfig]:
    """A two-epoch run of timm's smallest ViT on the digits, with some sections changed."""

    def build(**changes: dict[str, Any]) -> ClassificationConfig:
        tree: dict[str, dict[str, Any]] = {
            "run": {"output": str(tmp_path / "run"), "epochs": 2, "batch_size": 128, "tensorboard": False},
            "model": {"name": "test_vit"},
            "data": {"name": "digits", "image_size": 32, "workers": 0, "crop_pct": 1.0},
            "augment": {"scale": [0.8, 1.0], "hflip": 0.0, "color_jitter": 0.0},
            "optimizer": {"lr": 1e-3},
        }
        for section, values in changes.items():
            tree[section] = {**tree.get(section, {}), **values}
        return build_config(ClassificationConfig, tree)

    return build
