"""The simple feature pyramid: strides 4, 8, 16, 32 from plain backbones, through timm's features_only."""

from functools import partial
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionssm.layers import SimpleFeaturePyramid

PLAIN = ("vim_nano", "local_vim_nano", "plain_mamba_nano", "mamba_nd_nano")


def features(name: str, pyramid: object, **options: Any) -> Any:
    return timm.create_model(name, features_only=True, feature_pyramid=pyramid, **options)


@pytest.mark.parametrize("name", PLAIN)
def test_plain_models_give_four_strides_and_every_parameter_a_gradient(name: str) -> None:
    model = features(name, True)
    maps = model(torch.randn(2, 3, 64, 96))
    assert model.feature_info.reduction() == [4, 8, 16, 32]
    assert [m.shape[1] for m in maps] == model.feature_info.channels()
    assert [m.shape[2:] for m in maps] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    torch.cat([m.flatten() for m in maps]).mean().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not without


def test_overlapping_patches_of_stride_8_give_the_same_strides() -> None:
    model = features("vim_nano", {"out_channels": 32, "norm": True}, patch_size=16)
    maps = model(torch.randn(1, 3, 64, 64))
    assert [tuple(m.shape[1:]) for m in maps] == [(32, 14, 14), (32, 7, 7), (32, 4, 4), (32, 2, 2)]


def test_chosen_levels_alone_are_built() -> None:
    model = features("plain_mamba_nano", True, out_indices=(1, 3))
    assert model.feature_info.reduction() == [8, 32]
    assert len(model.pyramid.levels) == 2
    assert [m.shape[2] for m in model(torch.randn(1, 3, 64, 64))] == [8, 2]


def test_levels_are_what_the_paper_says() -> None:
    pyramid = SimpleFeaturePyramid(16, 8)
    x = torch.randn(2, 16, 6, 5)
    first, norm, _, second, one, one_norm, three, three_norm = pyramid.levels[0].children()

    def double(x: Tensor, layer: Any) -> Tensor:  # a 2x2 transposed convolution, pixel by pixel
        y = torch.einsum("bihw,ioyx->bohywx", x, layer.weight)
        return y.reshape(len(x), -1, 2 * x.shape[2], 2 * x.shape[3]) + layer.bias[:, None, None]

    y = double(F.gelu(norm(double(x, first))), second)
    y = three_norm(three(one_norm(one(y))))
    maps = pyramid(x)
    torch.testing.assert_close(maps[0], y)
    assert maps[0].shape == (2, 8, 24, 20)
    assert [tuple(m.shape[2:]) for m in maps[1:]] == [(12, 10), (6, 5), (3, 3)]
    bare = SimpleFeaturePyramid(16)
    maps = bare(x)
    assert bare.num_features == [4, 8, 16, 16]
    torch.testing.assert_close(maps[2], x, rtol=0, atol=0)
    torch.testing.assert_close(maps[3][:, :, 0, 0], x[:, :, :2, :2].amax((2, 3)), rtol=0, atol=0)


def test_norms_can_be_chosen_or_left_out() -> None:
    grouped = SimpleFeaturePyramid(16, 8, norm_layer=partial(nn.GroupNorm, 2))
    assert sum(isinstance(m, nn.GroupNorm) for m in grouped.modules()) == 9
    plain = SimpleFeaturePyramid(16, 8, norm_layer=None)
    assert all(conv.bias is not None for conv in plain.modules() if isinstance(conv, nn.Conv2d))


def test_errors_say_what_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"powers of two.*3"):
        SimpleFeaturePyramid(16, scales=(3.0,))
    with pytest.raises(ValueError, match="multiple of 4"):
        SimpleFeaturePyramid(18)
    with pytest.raises(ValueError, match="features_only"):
        timm.create_model("vim_nano", feature_pyramid=True)
    with pytest.raises(TypeError, match="feature_pyramid"):
        features("vim_nano", 3)
    with pytest.raises(TypeError, match="out_chanels"):
        features("vim_nano", {"out_chanels": 3})
