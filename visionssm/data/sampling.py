"""Which samples meet in which optimizer update, on which process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch.utils.data import Sampler

from visionssm.data.errors import DataError
from visionssm.data.seeding import seed_of

__all__ = ["Batches", "CropBatches", "EvalBatches", "PatchStage", "UpdateBatches", "mirrored_shard"]


class Batches(Protocol):
    """The training order: which samples meet in which update. Iterates over the micro-batches of one epoch."""

    epoch: int
    first_update: int
    """Update of the epoch to start at."""

    @property
    def updates_per_epoch(self) -> int: ...

    def samples(self, first: int, last: int) -> int:
        """Samples, over all processes, in the updates `first` to `last - 1` of the epoch."""
        ...


def mirrored_shard(indices: list[int], shard: int, shards: int) -> list[int]:
    """Cuts a batch into equal shards that keep the partners i and B-1-i together, in mirrored places.

    Mixup and cutmix blend sample i of a batch with sample B-1-i. Cut this way, each shard blends exactly the pairs that
    the whole batch would, so the number of processes and of accumulation steps does not change what is learned.
    """
    half = (len(indices) + 1) // 2
    pairs = [index for i in range(half) for index in (indices[i], indices[-1 - i])][: len(indices)]
    size = len(indices) // shards
    part = pairs[shard * size : (shard + 1) * size]
    return part[0::2] + part[1::2][::-1]


class UpdateBatches(Sampler[list[tuple[int, int]]]):
    """Batch sampler of a training epoch that is the same for any number of processes and can start anywhere.

    The order is a function of (seed, epoch). The global batch of an update is cut into processes x accumulate shards;
    the incomplete batch at the end of an epoch is left out. Items are (epoch, index), so that a dataset in a worker
    process knows the epoch its augmentation belongs to.

    Args:
        length: Number of samples.
        batch_size: Samples per optimizer update, over all processes and accumulation steps.
        seed: Seed of the run.
        accumulate: Forward passes per update and process.
        rank, world: This process and the number of processes.
        even: Each shard must hold an even number of samples (mixing blends pairs).

    Raises:
        DataError: If the batch does not divide into shards or is larger than the data set.
    """

    def __init__(
        self,
        *,
        length: int,
        batch_size: int,
        seed: int,
        accumulate: int = 1,
        rank: int = 0,
        world: int = 1,
        even: bool = False,
    ) -> None:
        shards = world * accumulate
        if batch_size % (shards * (2 if even else 1)):
            pairs = " in pairs, as mixup and cutmix need" if even else ""
            raise DataError(
                f"run.batch_size={batch_size} cannot be shared evenly{pairs} by {world} process(es) x "
                f"{accumulate} accumulation step(s)"
            )
        if batch_size > length:
            raise DataError(f"run.batch_size={batch_size} is larger than the training set ({length} samples)")
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.accumulate, self.rank, self.world = accumulate, rank, world
        self.epoch = 0
        self.first_update = 0

    @property
    def updates_per_epoch(self) -> int:
        return self.length // self.batch_size

    def samples(self, first: int, last: int) -> int:
        return (last - first) * self.batch_size

    def __len__(self) -> int:
        return (self.updates_per_epoch - self.first_update) * self.accumulate

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed(seed_of(self.seed, self.epoch))
        order = torch.randperm(self.length, generator=generator).tolist()
        for update in range(self.first_update, self.updates_per_epoch):
            batch = order[update * self.batch_size : (update + 1) * self.batch_size]
            for step in range(self.accumulate):
                shard = step * self.world + self.rank
                part = mirrored_shard(batch, shard, self.world * self.accumulate)
                yield [(self.epoch, index) for index in part]


class EvalBatches(Sampler[list[tuple[int, int]]]):
    """Every sample exactly once over all processes: process r takes r, r + world, ..."""

    def __init__(self, *, length: int, batch_size: int, rank: int = 0, world: int = 1) -> None:
        self.indices = range(rank, length, world)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for start in range(0, len(self.indices), self.batch_size):
            yield [(0, index) for index in self.indices[start : start + self.batch_size]]


@dataclass(frozen=True, kw_only=True)
class PatchStage:
    """Part of a run with its own patches.

    Args:
        until: Update at which it ends.
        patch_size: Side of the clean patches in pixels.
        batch_size: Patches per update, over all processes and accumulation steps.
    """

    until: int
    patch_size: int
    batch_size: int


class CropBatches(Sampler[list[tuple[int, int, int, int]]]):
    """Batch sampler of random patches from pictures, iteration-based; the same for any number of processes.

    Every picture is taken once before any is taken again; the order is a function of (seed, pass). An epoch is a number of
    updates. Items are (update, place in its batch, picture, patch size).

    Args:
        pictures: Number of pictures.
        stages: Patch and batch sizes in the order of the run.
        updates_per_epoch: Updates between evaluations.
        seed: Seed of the run.
        accumulate: Forward passes per update and process.
        rank, world: This process and the number of processes.

    Raises:
        DataError: If a batch does not divide into shards or the stages are not in order.
    """

    def __init__(
        self,
        *,
        pictures: int,
        stages: Sequence[PatchStage],
        updates_per_epoch: int,
        seed: int,
        accumulate: int = 1,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.starts = [0, *(stage.until for stage in stages[:-1])]
        for start, stage in zip(self.starts, stages, strict=True):
            if stage.until <= start:
                raise DataError(f"a stage of patches ends at update {stage.until}, but begins at {start}")
            if stage.batch_size < 1 or stage.batch_size % (world * accumulate):
                raise DataError(
                    f"a batch of {stage.batch_size} patches cannot be shared evenly by {world} process(es) x {accumulate} "
                    "accumulation step(s)"
                )
        self.pictures, self.stages, self.updates_per_epoch, self.seed = (
            pictures,
            stages,
            updates_per_epoch,
            seed,
        )
        self.accumulate, self.rank, self.world = accumulate, rank, world
        self.epoch = 0
        self.first_update = 0
        self._order = lru_cache(maxsize=2)(self._shuffled)

    def _shuffled(self, cycle: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed_of(self.seed, cycle))
        return torch.randperm(self.pictures, generator=generator).tolist()

    def _stage(self, update: int) -> PatchStage:
        return next((stage for stage in self.stages if update < stage.until), self.stages[-1])

    def _before(self, update: int) -> int:
        """Samples in all updates before this one."""
        spans = zip(self.starts, self.stages, strict=True)
        return sum((min(update, stage.until) - start) * stage.batch_size for start, stage in spans if update > start)

    def samples(self, first: int, last: int) -> int:
        base = self.epoch * self.updates_per_epoch
        return self._before(base + last) - self._before(base + first)

    def __len__(self) -> int:
        return (self.updates_per_epoch - self.first_update) * self.accumulate

    def __iter__(self) -> Iterator[list[tuple[int, int, int, int]]]:
        base = self.epoch * self.updates_per_epoch
        for update in range(base + self.first_update, base + self.updates_per_epoch):
            stage, taken = self._stage(update), self._before(update)
            for step in range(self.accumulate):
                shard = step * self.world + self.rank
                places = range(shard, stage.batch_size, self.world * self.accumulate)
                yield [(update, place, self._picture(taken + place), stage.patch_size) for place in places]

    def _picture(self, sample: int) -> int:
        return self._order(sample // self.pictures)[sample % self.pictures]
