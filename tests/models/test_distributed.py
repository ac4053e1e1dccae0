"""DistributedDataParallel without `find_unused_parameters`, which refuses the step after one that left out a parameter."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import visionssm
from tests.small import small_models

NANO = [
    *small_models("classification"),
    *(pytest.param(name, marks=pytest.mark.slow) for name in small_models("restoration")),
]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store = dist.FileStore(str(tmp_path_factory.mktemp("store") / "file"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def two_steps(model: nn.Module, images: Tensor) -> None:
    parallel = DistributedDataParallel(model.train(), find_unused_parameters=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad(set_to_none=True)
        parallel(images).square().mean().backward()
        optimizer.step()


@pytest.mark.filterwarnings("ignore:Grad strides do not match:UserWarning")  # a hint on speed, for 1x1 convolutions
@pytest.mark.parametrize("name", NANO)
@pytest.mark.usefixtures("one_process")
def test_every_gradient_arrives_in_two_steps(name: str) -> None:
    model = visionssm.create_model(name)
    two_steps(model, torch.randn(2, 3, 32, 32))
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


def _rank(rank: int, folder: str) -> None:
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = visionssm.create_model("vmamba_nano", num_classes=4)
    images = torch.randn(4, 3, 32, 32)
    two_steps(model, images[2 * rank : 2 * rank + 2])
    torch.save(model.state_dict(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_train_as_one_with_both_their_images(tmp_path: Path) -> None:
    mp.start_processes(_rank, (str(tmp_path),), nprocs=2, start_method="spawn")
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    torch.manual_seed(0)
    model = visionssm.create_model("vmamba_nano", num_classes=4).train()
    images = torch.randn(4, 3, 32, 32)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()
    for name, wanted in model.state_dict().items():
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)
        torch.testing.assert_close(first[name], wanted)
