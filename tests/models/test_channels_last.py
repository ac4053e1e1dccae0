"""Layers that are torch's, with another path through memory in inference."""

import pytest
import torch
from torch import nn

from tests.tolerances import TOLERANCES
from visionssm.layers.channels_last import (
    Conv3d,
    InstanceNorm2d,
    InstanceNorm3d,
    channels_last_in_inference,
    use_channels_last,
)

OURS = {2: InstanceNorm2d, 3: InstanceNorm3d}
TORCHS = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("rank", [2, 3])
def test_instance_norm(rank, affine, last):
    x = 30 + torch.randn((2, 5, 6, 7, 4)[: rank + 2])
    with torch.no_grad():
        x = channels_last_in_inference(x) if last else x
    ours, theirs = OURS[rank](5, affine=affine), TORCHS[rank](5, affine=affine)
    for parameter in ours.parameters():
        nn.init.normal_(parameter)
    theirs.load_state_dict(ours.state_dict())
    wanted = theirs.double()(x.double())
    with torch.no_grad():
        got = ours(x)
    torch.testing.assert_close(got.double(), wanted, **TOLERANCES[torch.float32])
    assert got.is_contiguous(memory_format=torch.channels_last if rank == 2 else torch.channels_last_3d)
    torch.testing.assert_close(ours(x).double(), wanted, **TOLERANCES[torch.float32])  # with gradients it is torch's


def test_sums_of_a_whole_volume_stay_exact():
    x = 100 + torch.randn(1, 48, 48, 64, 3)
    with torch.no_grad():
        got = InstanceNorm3d(48)(x)
    torch.testing.assert_close(got.double(), nn.InstanceNorm3d(48)(x.double()), **TOLERANCES[torch.float32])


@pytest.mark.parametrize(
    "options", [{}, {"stride": 2, "bias": False}, {"padding": (1, 0, 2), "groups": 2, "dilation": 2}]
)
def test_conv3d(options):
    ours, theirs = Conv3d(4, 6, 3, **options), nn.Conv3d(4, 6, 3, **options)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(1, 4, 17, 18, 19)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), **TOLERANCES[torch.float32])
    assert torch.equal(ours(x), theirs(x))
    torch.testing.assert_close(torch.jit.script(ours)(x), theirs(x), **TOLERANCES[torch.float32])


def test_layers_are_exchanged_where_they_do_the_same():
    module = nn.Sequential(
        nn.Sequential(nn.Conv3d(4, 4, 1), nn.InstanceNorm3d(4, eps=1e-3, affine=True)),
        nn.InstanceNorm2d(4, track_running_stats=True),
        nn.Conv3d(4, 4, 3, padding="same"),
        nn.Conv3d(4, 4, 3, padding=1, padding_mode="replicate"),
    )
    before = list(module.state_dict())
    assert use_channels_last(module) is module
    (conv, norm), statistics, same, replicate = module
    assert (type(conv), type(norm), norm.eps) == (Conv3d, InstanceNorm3d, 1e-3)
    assert [type(layer) for layer in (statistics, same, replicate)] == [nn.InstanceNorm2d, nn.Conv3d, nn.Conv3d]
    assert list(module.state_dict()) == before


def test_memory_of_the_input_is_used_only_in_inference_and_only_if_allowed():
    for inplace in (False, True):
        norm, x = InstanceNorm3d(3, inplace=inplace), torch.randn(2, 3, 4, 5, 6)
        with torch.no_grad():
            x = channels_last_in_inference(x)
            before, got = x.clone(), norm(x)
        assert (got.data_ptr() == x.data_ptr()) is inplace
        torch.testing.assert_close(got, nn.InstanceNorm3d(3)(before), **TOLERANCES[torch.float32])
        after = x.clone()
        norm(x)  # with gradients
        assert torch.equal(x, after)
