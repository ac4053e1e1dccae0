"""Albumentations in the pipelines of MMDetection and MMSegmentation, drawn by the run's seed."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["seed_albumentations"]


class _Seeded:
    """An albumentations pipeline that draws by NumPy's global state."""

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline

    def __call__(self, **data: Any) -> dict[str, Any]:
        # Compose.set_random_seed would give all its transforms one seed, and so make their choices together.
        for transform in self.pipeline.transforms:
            transform.set_random_seed(int(np.random.randint(2**31)))  # noqa: NPY002 that which MMEngine seeds
        return self.pipeline(**data)


def seed_albumentations(part: Any) -> None:
    """Lets every `Albu` in a dataset follow `randomness.seed`, in every worker too; by itself it follows no seed.

    Args:
        part: a dataset, wrapped or not, or a pipeline.
    """
    if hasattr(getattr(part, "aug", None), "set_random_seed"):
        part.aug = _Seeded(part.aug)
        return
    for name in ("dataset", "datasets", "pipeline", "transforms"):
        inner = getattr(part, name, None) or ()
        for child in inner if isinstance(inner, (list, tuple)) else (inner,):
            seed_albumentations(child)
