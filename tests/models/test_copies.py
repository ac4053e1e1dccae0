"""Every small model as Python knows it: shapes without memory, copies, pickles."""

import copy
import io
import pickle

import pytest
import torch

import visionssm
from tests.small import small_models
from visionssm.models import pretrained_cfg

NAMES = [name for task in ("classification", "restoration", "volume") for name in small_models(task)]


def image(name: str, **options: object) -> torch.Tensor:
    chans, *size = pretrained_cfg(name).input_size
    return torch.rand(2, chans, *(min(side, 64 if len(size) == 2 else 16) for side in size), **options)  # pyright: ignore


@pytest.mark.parametrize("name", [name for name in NAMES if len(pretrained_cfg(name).input_size) == 3])
def test_shapes_without_memory(name: str) -> None:
    """On the meta device, where tools that plan memory or shard a model run it."""
    with torch.device("meta"):
        model = visionssm.create_model(name).eval()
        x = image(name)
    y = model(x)
    assert y.is_meta
    assert y.shape[0] == 2


@pytest.mark.parametrize("name", NAMES)
def test_copies_compute_the_same_and_share_nothing(name: str) -> None:
    model, x = visionssm.create_model(name).eval(), image(name)[:1]
    file = io.BytesIO()
    with torch.no_grad():
        wanted = model(x)  # caches that this leaves behind must not get in the way of a copy
        torch.save(model, file)
        file.seek(0)
        copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)]
        for parameter in model.parameters():
            parameter.zero_()
        for other in copies:
            torch.testing.assert_close(other(x), wanted, rtol=0, atol=0)
