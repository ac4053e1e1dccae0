"""Layer-wise learning rates, and what is never decayed."""

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from torch import nn

import visionssm
from visionssm.integrations.openmmlab import VisionSSM
from visionssm.integrations.openmmlab_optim import layer_scales, spared

LR, DECAY, RATE = 1e-3, 0.05, 0.8


def build(model: nn.Module, **paramwise: object) -> torch.optim.Optimizer:
    config = {"constructor": "VisionSSMLayerDecay", "paramwise_cfg": {"layer_decay_rate": RATE, **paramwise}}
    return build_optim_wrapper(
        model, {**config, "optimizer": {"type": "AdamW", "lr": LR, "weight_decay": DECAY}}
    ).optimizer


@pytest.mark.parametrize("name", visionssm.list_models("*_nano", task="classification"))
def test_every_parameter_has_the_rate_of_its_layer(name: str) -> None:
    """In order of depth: stem, blocks, then what belongs to no layer; the stem is below the first block, the last below 1."""
    detector = nn.ModuleDict({"backbone": VisionSSM(name), "neck": nn.Conv2d(4, 4, 1)})
    groups = build(detector).param_groups
    rates = {key: group["lr"] / LR for group in groups for key in group["param_names"]}
    assert set(rates) == {key for key, p in detector.named_parameters() if p.requires_grad}
    assert {rates[key] for key in rates if key.startswith(("neck", "backbone.out_norms"))} == {1.0}
    model = {key: value for key, value in rates.items() if key.startswith("backbone.model.")}
    stem = {value for key, value in model.items() if ".stem." in key or ".patch_embed." in key or ".pos_embed" in key}
    assert stem == {min(model.values())}
    # EfficientViM's last layer is what only its head reads, which is frozen here
    assert max(model.values()) == pytest.approx(RATE**2 if name == "efficient_vim_nano" else RATE)
    for group in groups:
        for key, p in zip(group["param_names"], group["params"], strict=True):
            assert group["weight_decay"] == (0.0 if spared(key, p) else DECAY), key


def test_depth_is_the_familys() -> None:
    scales = layer_scales(VisionSSM("vim_tiny"), RATE)
    assert scales["model.patch_embed.proj.weight"] == scales["model.pos_embed"] == pytest.approx(RATE**25)
    assert [scales[f"model.blocks.{i}.mixer.A_log"] for i in (0, 23)] == pytest.approx([RATE**24, RATE])
    scales = layer_scales(VisionSSM("vmamba_tiny_s1l8"), RATE)
    assert scales["model.stem.conv1.weight"] == pytest.approx(RATE**15)
    assert scales["model.stages.1.downsample.conv.weight"] == scales["model.stages.1.blocks.0.mixer.dt_bias"]
    assert scales["model.stages.3.blocks.1.mlp.fc1.weight"] == pytest.approx(RATE)


def test_what_drives_the_scan_is_not_decayed() -> None:
    groups = build(nn.ModuleDict({"backbone": VisionSSM("vmamba_nano")})).param_groups
    decayed = {key.rpartition(".")[2] for group in groups if group["weight_decay"] for key in group["param_names"]}
    assert decayed == {"weight", "x_proj", "dt_proj"}


def test_custom_keys_and_frozen_parts() -> None:
    detector = nn.ModuleDict({"backbone": VisionSSM("vmamba_nano", frozen_stages=1), "decode_head": nn.Linear(4, 4)})
    groups = build(detector, custom_keys={"decode_head": {"lr_mult": 10.0, "decay_mult": 0.5}}).param_groups
    rows = {key: (group["lr"], group["weight_decay"]) for group in groups for key in group["param_names"]}
    assert rows["decode_head.weight"] == pytest.approx((10 * LR, 0.5 * DECAY))
    assert not any(key.startswith(("backbone.model.stem", "backbone.model.stages.0")) for key in rows)


@pytest.mark.parametrize(
    ("paramwise", "message"),
    [({"layer_decay_rate": 0.0}, r"in \(0, 1\]"), ({"num_layers": 12}, "num_layers")],
)
def test_errors(paramwise: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(nn.ModuleDict({"backbone": VisionSSM("vmamba_nano")}), **paramwise)
    with pytest.raises(ValueError, match="found no backbone of visionssm in Linear"):
        build(nn.Linear(2, 2))
