"""The order of the data is a function of (seed, epoch) alone; processes and accumulation only cut it."""

import pytest
import torch

from visionssm.data.errors import DataError
from visionssm.data.sampling import EvalBatches, UpdateBatches, mirrored_shard


def epoch_of(**options: int) -> list[list[tuple[int, int]]]:
    batches = UpdateBatches(length=50, batch_size=12, seed=5, **options)
    batches.epoch = 3
    return list(batches)


@pytest.mark.parametrize(("size", "shards"), [(12, 1), (12, 2), (12, 3), (12, 6), (9, 3), (5, 1), (5, 5)])
def test_shards_partition_the_batch(size: int, shards: int) -> None:
    batch = list(range(100, 100 + size))
    parts = [mirrored_shard(batch, shard, shards) for shard in range(shards)]
    assert sorted(index for part in parts for index in part) == batch
    assert {len(part) for part in parts} == {size // shards}


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_partners_stay_partners(shards: int) -> None:
    batch = list(range(12))
    whole = {frozenset(pair) for pair in zip(batch, batch[::-1], strict=True)}
    for shard in range(shards):
        part = mirrored_shard(batch, shard, shards)
        assert {frozenset(pair) for pair in zip(part, part[::-1], strict=True)} <= whole
    assert mirrored_shard(batch, 0, 1) == batch


@pytest.mark.parametrize(("world", "accumulate"), [(2, 1), (1, 2), (2, 3)])
def test_processes_and_accumulation_see_the_same_updates(world: int, accumulate: int) -> None:
    whole = epoch_of()
    parts = [epoch_of(rank=rank, world=world, accumulate=accumulate) for rank in range(world)]
    for update, batch in enumerate(whole):
        seen = [
            key
            for rank in range(world)
            for step in range(accumulate)
            for key in parts[rank][update * accumulate + step]
        ]
        assert sorted(seen) == sorted(batch)


def test_an_epoch_can_start_in_the_middle() -> None:
    batches = UpdateBatches(length=50, batch_size=12, seed=5, accumulate=2)
    batches.epoch = 3
    whole = list(batches)
    batches.first_update = 2
    assert list(batches) == whole[4:]
    assert len(batches) == len(whole) - 4


def test_epochs_differ_and_no_sample_comes_twice() -> None:
    batches = UpdateBatches(length=50, batch_size=10, seed=5)
    first = [index for batch in batches for _, index in batch]
    batches.epoch = 1
    second = [index for batch in batches for _, index in batch]
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    torch.rand(3)  # the global generator plays no part
    assert second == [index for batch in batches for _, index in batch]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 64}, "larger than the training set"),
        ({"batch_size": 9, "world": 2}, "cannot be shared evenly"),
        ({"batch_size": 6, "world": 2, "even": True}, "in pairs"),
    ],
)
def test_batches_that_do_not_divide_are_refused(options: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        UpdateBatches(length=50, seed=0, **options)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_sees_every_sample_once(world: int) -> None:
    parts = [EvalBatches(length=11, batch_size=3, rank=rank, world=world) for rank in range(world)]
    assert sorted(index for part in parts for batch in part for _, index in batch) == list(range(11))
    assert all(len(list(part)) == len(part) for part in parts)
