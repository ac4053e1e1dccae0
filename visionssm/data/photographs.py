"""The embedded photographs: those inside scikit-image and scikit-learn, split by hand; no download.

Provenance and licences are in the two packages' data folders (`skimage/data/README.txt`, `sklearn/datasets/images/README.txt`).
The two views of scikit-image's motorcycle are of one scene, so both are for training. Pictures of scanned text, cells and
test patterns are left out: they say nothing about photographs.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Literal

import numpy as np
from PIL import Image

from visionssm.data.errors import DataError, did_you_mean

__all__ = ["PHOTOGRAPHS", "PhotographSplit", "load_photographs"]

PhotographSplit = Literal["train", "validation", "test"]

_FOLDERS = {"skimage": "data", "sklearn": "datasets/images"}
PHOTOGRAPHS = {
    "train": (
        "sklearn/china.jpg",
        "skimage/motorcycle_left.png",
        "skimage/motorcycle_right.png",
        "skimage/rocket.jpg",
        "skimage/hubble_deep_field.jpg",
        "skimage/ihc.png",
        "skimage/retina.jpg",
        "skimage/camera.png",
        "skimage/brick.png",
        "skimage/grass.png",
        "skimage/gravel.png",
        "skimage/coins.png",
    ),
    "validation": ("skimage/coffee.png",),
    "test": ("skimage/astronaut.png", "skimage/chelsea.png", "sklearn/flower.jpg"),
}
"""Names by split: package and file."""


def load_photographs(split: PhotographSplit) -> dict[str, np.ndarray]:
    """One part of the photographs: (H, W, 3) uint8 by name; grey ones have three equal channels.

    Raises:
        DataError: If there is no such split, or the installed packages lack a picture.
    """
    if split not in PHOTOGRAPHS:
        raise DataError(f"the photographs have no split {split!r}; {did_you_mean(split, PHOTOGRAPHS)}")
    pictures = {}
    for name in PHOTOGRAPHS[split]:
        package, file = name.split("/")
        place = files(package).joinpath(_FOLDERS[package]).joinpath(file)
        if not place.is_file():
            raise DataError(f"the installed {package} has no {file}; install scikit-image>=0.22 and scikit-learn>=1.4")
        with place.open("rb") as stream, Image.open(stream) as image:
            pictures[name] = np.asarray(image.convert("RGB"))
    return pictures
