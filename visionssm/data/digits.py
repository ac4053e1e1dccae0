"""The embedded data set: scikit-learn's 1,797 scans of handwritten digits, 8x8 pixels, ten classes.

It comes inside scikit-learn (the test part of UCI's "Optical Recognition of Handwritten Digits", E. Alpaydin and
C. Kaynak, 1998), so it needs no download. The split is fixed and draws no random number: within each class, in the order of
scikit-learn, of every ten scans the first and the sixth are held out for testing, the second for validation (to choose
the best epoch), the other seven are for training. That gives 1,250 / 183 / 364 scans.
The scans of one writer lie side by side, so writers occur in all three parts.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from PIL import Image

from visionssm.data.errors import DataError, did_you_mean

__all__ = ["DIGIT_CLASSES", "DIGIT_SPLITS", "DigitSplit", "load_digit_images"]

DigitSplit = Literal["train", "validation", "test"]

DIGIT_CLASSES = tuple("0123456789")
DIGIT_SPLITS = {
    "train": (2, 3, 4, 6, 7, 8, 9),
    "validation": (1,),
    "test": (0, 5),
}  # position in the class, mod 10


def load_digit_images(split: DigitSplit) -> tuple[list[Image.Image], np.ndarray, np.ndarray]:
    """The scans of one split as 8-bit images.

    Args:
        split: "train", "validation" or "test".

    Returns:
        images: N RGB images of 8x8 pixels, ink white on black.
        targets: (N,) int64, the digit.
        indices: (N,) int64, the place in scikit-learn's order.

    Raises:
        DataError: If there is no such split.
    """
    from sklearn.datasets import load_digits

    if split not in DIGIT_SPLITS:
        raise DataError(f"the embedded digits have no split {split!r}; {did_you_mean(split, DIGIT_SPLITS)}")
    data: Any = load_digits()
    indices = np.sort(
        np.concatenate(
            [
                members[np.isin(np.arange(len(members)) % 10, DIGIT_SPLITS[split])]
                for members in (np.flatnonzero(data.target == digit) for digit in range(10))
            ]
        )
    )
    pixels = np.rint(data.images[indices] * (255 / 16)).astype(np.uint8)  # the scans hold counts 0..16
    return (
        [Image.fromarray(scan).convert("RGB") for scan in pixels],
        data.target[indices].astype(np.int64),
        indices,
    )
