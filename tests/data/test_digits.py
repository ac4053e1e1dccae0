"""The split of the embedded digits is fixed, disjoint and complete."""

import numpy as np
import pytest

from visionssm.data.digits import DIGIT_SPLITS, load_digit_images
from visionssm.data.errors import DataError


def test_split() -> None:
    parts = {split: load_digit_images(split) for split in DIGIT_SPLITS}
    sizes = {split: len(images) for split, (images, _, _) in parts.items()}
    assert sizes == {"train": 1250, "validation": 183, "test": 364}
    indices = np.concatenate([indices for _, _, indices in parts.values()])
    assert sorted(indices) == list(range(1797))
    assert parts["test"][2][:5].tolist() == [0, 1, 2, 3, 4]  # the first scan of each class is held out
    for images, targets, _ in parts.values():
        assert set(targets) == set(range(10))
        assert images[0].size == (8, 8)
        assert max(np.asarray(image).max() for image in images) == 255


def test_an_unknown_split_is_named() -> None:
    with pytest.raises(DataError, match="did you mean validation"):
        load_digit_images("valdation")
