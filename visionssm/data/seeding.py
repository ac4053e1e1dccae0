"""Random numbers as a function of where they are used, never of what ran before.

Every draw of a training run is made after seeding with its own place (run seed, epoch, sample or update). A run that was
killed and resumed, a different number of workers or of processes, all draw the same numbers, and no generator state
needs saving.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["seed_of", "seeded"]


def seed_of(*key: int) -> int:
    """A 32-bit seed from non-negative integers; different keys give unrelated seeds (numpy's SeedSequence)."""
    # The length goes in first, because SeedSequence takes (1, 2) and (1, 2, 0) for the same.
    return int(np.random.SeedSequence((len(key), *key)).generate_state(1)[0])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds Python's, numpy's and torch's CPU generators inside the block and restores them after it."""
    # numpy's global generator is what timm's augmentation and Mixup draw from.
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach the GPUs' generators as well
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.default_generator.set_state(states[2])
