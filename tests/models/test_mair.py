"""What is MaIR's own: shuffle attention, the schedule of shifted stripes, the U-Net's files."""

import re

import pytest
import torch

import visionssm
from tests.tolerances import TOLERANCES
from visionssm.mixers import ImageScan, ShuffleMerge
from visionssm.scans import create_scan


def scans(model: torch.nn.Module) -> list:
    return [module.paths.scan for module in model.modules() if isinstance(module, ImageScan)]


@pytest.mark.parametrize("routes", [2, 4])
def test_shuffle_merge_against_a_grouped_convolution(routes: int) -> None:
    """The published form: routes side by side, channels shuffled, one group per channel, gates shuffled back."""
    B, L, D = 2, 15, 6
    merge, y = ShuffleMerge(D, routes), torch.randn(B, L, routes, D)
    conv = torch.nn.Conv2d(routes * D, routes * D, 1, groups=D)
    with torch.no_grad():
        conv.weight.copy_(merge.weight.reshape(conv.weight.shape))
        conv.bias.copy_(merge.bias.flatten())
    maps = y.permute(0, 2, 3, 1).reshape(B, routes * D, L, 1)  # route-major
    shuffled = maps.view(B, routes, D, L, 1).transpose(1, 2).reshape(B, D * routes, L, 1)
    gates = conv(shuffled.mean((2, 3), keepdim=True)).sigmoid()
    gates = gates.view(B, D, routes, 1, 1).transpose(1, 2).reshape(B, routes * D, 1, 1)
    wanted = (maps * gates).view(B, routes, D, L).sum(1).transpose(1, 2)
    torch.testing.assert_close(merge(y), wanted, **TOLERANCES[torch.float32])


def test_every_second_block_of_a_group_shifts_its_stripes() -> None:
    model = visionssm.create_model("mair_small_light_x2", depths=(3, 2))
    assert [scan.shift for scan in scans(model)] == [0, 2, 0, 0, 2]
    assert {scan.scan_len for scan in scans(model)} == {4}
    assert {scan.scan_len for scan in scans(visionssm.create_model("mair_nano_x2"))} == {8}


def test_scans_per_block() -> None:
    chosen = [
        create_scan("nested_s", scan_len=2),
        "hilbert",
        "cross",
        "nested_s",
        "cross",
        "cross",
        "cross",
        "cross",
    ]
    model = visionssm.create_model("mair_nano_x2", scan=chosen)
    assert [scan.name for scan in scans(model)][:4] == ["nested_s", "hilbert", "cross", "nested_s"]


def test_the_unet_never_shifts() -> None:
    with torch.device("meta"):
        model = visionssm.create_model("mair_dehaze")
    assert {(scan.scan_len, scan.shift) for scan in scans(model)} == {(8, 0)}


# Counted with the published code; ssm width, d_state 4, 8, 16, 32 by level, MLPs.
@pytest.mark.parametrize(
    ("name", "parameters"),
    [("mair_real_dn", 26_293_296), ("mair_deblur", 26_293_296), ("mair_dehaze", 3_404_376)],
)
def test_unet_sizes(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = visionssm.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == parameters


def published_names(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The U-Net's state under the names that its files have, written down apart from the loader's rules."""
    places = {
        "conv_first": "patch_embed.proj", "conv_last": "output", "refinement.blocks": "refinement",
        "encoder.0.blocks": "encoder_level1", "encoder.1.blocks": "encoder_level2", "encoder.2.blocks": "encoder_level3",
        "encoder.3.blocks": "latent", "decoder.0.blocks": "decoder_level3", "decoder.1.blocks": "decoder_level2",
        "decoder.2.blocks": "decoder_level1", "encoder.1.downsample.conv": "down1_2.body.0",
        "encoder.2.downsample.conv": "down2_3.body.0", "encoder.3.downsample.conv": "down3_4.body.0",
        "ups.0.conv": "up4_3.body.0", "ups.1.conv": "up3_2.body.0", "ups.2.conv": "up2_1.body.0",
        "reduce.0": "reduce_chan_level3", "reduce.1": "reduce_chan_level2",
    }  # fmt: skip
    parts = {
        "scale1": "skip_scale", "scale2": "skip_scale2", "norm1": "ln_1", "norm2": "ln_2", "mixer": "self_attention",
        "conv": "conv2d", "x_proj": "x_proj_weight", "dt_proj": "dt_projs_weight", "dt_bias": "dt_projs_bias",
        "A_log": "A_logs", "D": "Ds", "merge": "gating.gating.1",
    }  # fmt: skip
    state = {}
    for name, value in model.state_dict().items():
        place = next(place for place in places if name.startswith(f"{place}."))
        inside = name[len(place) + 1 :]
        if re.match(r"\d+\.", inside):
            inside = ".".join(parts.get(part, part) for part in inside.split("."))
        if ".gating." in inside:
            value = value.reshape(-1, *((4, 1, 1) if inside.endswith("weight") else ()))
        if inside.endswith(("A_logs", "Ds")):
            value = value.flatten(0, 1)
        if place.startswith("reduce"):
            value = value[..., None, None]
        state[f"{places[place]}.{inside}"] = value
    return state


def test_unet_files() -> None:
    options = {"dim": 16, "depths": (1, 1, 1, 1), "refinement": 1}
    source = visionssm.create_model("mair_dehaze", **options)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.copy_(torch.randn_like(parameter))
    published = published_names(source)
    assert "encoder_level1.0.self_attention.gating.gating.1.weight" in published
    assert published["latent.0.self_attention.A_logs"].shape == (4 * int(1.2 * 128), 32)
    model = visionssm.load_official(visionssm.create_model("mair_dehaze", **options), {"params": published})
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in model.state_dict().items())
