"""What is PlainMamba's own: sizes, patches, positions, published files and options."""

import argparse
from pathlib import Path

import pytest
import timm
import torch
from timm.optim import param_groups_weight_decay

import visionssm
from tests.parity.cases import load_cases
from tests.parity.families import HERE, torch_weights
from visionssm.checkpoints import CheckpointError

# The published classifiers, counted with the published code.
PARAMETERS = {"plain_mamba_l1": 7_551_656, "plain_mamba_l2": 26_145_832, "plain_mamba_l3": 50_956_456}


@pytest.mark.parametrize("name", PARAMETERS)
def test_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        model = visionssm.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize(
    ("size", "grid"), [((224, 224), (14, 14)), ((225, 33), (15, 3)), ((16, 17), (1, 2)), ((1, 1), (1, 1))]
)
def test_grid_pads_the_last_patch(size: tuple[int, int], grid: tuple[int, int]) -> None:
    stem = visionssm.create_model("plain_mamba_nano").patch_embed.eval()
    assert stem.grid_size(size) == grid
    assert stem(torch.randn(1, 3, *size)).shape == (1, *grid, 96)


def test_padding_is_zeros_at_the_bottom_and_right_of_the_stem() -> None:
    stem = visionssm.create_model("plain_mamba_nano").patch_embed.eval()
    x = torch.randn(1, 3, 40, 40)  # 20 after the first convolution: 4 are missing
    y = stem.convs(stem.act(stem.norm1(stem.conv1(x))))
    padded = torch.zeros(1, 64, 24, 24)
    padded[:, :, :20, :20] = y
    torch.testing.assert_close(stem(x), stem.proj(padded).permute(0, 2, 3, 1))


def published() -> dict[str, torch.Tensor]:
    case = next(c for c in load_cases(HERE / "plain_mamba/plain_mamba_l1.json") if c.name == "small")
    return torch_weights(case)


def test_a_file_as_mmcv_writes_it(tmp_path: Path) -> None:
    state = published()
    averages = {f"ema_{name.replace('.', '_')}": value + 1 for name, value in state.items()}
    extra = {"meta": argparse.Namespace(epoch=300), "optimizer": {"state": {}}}
    torch.save({**extra, "state_dict": {**state, **averages}}, tmp_path / "l1.pth")
    model = visionssm.load_official(visionssm.create_model("plain_mamba_l1"), tmp_path / "l1.pth")
    assert torch.equal(model.head.weight, state["head.fc.weight"])
    assert torch.equal(model.blocks[0].local.norm.running_var, state["backbone.layers.0.dw.1.running_var"])
    assert torch.equal(model.blocks[23].mixer.direction_B, state["backbone.layers.23.mamba.direction_Bs"])


def test_a_published_file_is_loaded_strictly() -> None:
    state = published()
    model = visionssm.create_model("plain_mamba_l1")
    with pytest.raises(CheckpointError, match=r"1 missing: blocks\.0\.local\.norm\.running_mean"):
        visionssm.load_official(model, {k: v for k, v in state.items() if k != "backbone.layers.0.dw.1.running_mean"})
    with pytest.raises(CheckpointError, match=r"1 unexpected: blocks\.1\.local\.conv\.weight"):
        visionssm.load_official(model, {**state, "backbone.layers.1.dw.0.weight": torch.zeros(192, 1, 3, 3)})


@pytest.mark.slow
def test_published_weights_serve_any_scan_order_and_size(tmp_path: Path) -> None:
    torch.save({"state_dict": published()}, tmp_path / "l1.pth")
    options = {
        "pretrained": True,
        "pretrained_cfg_overlay": {"file": str(tmp_path / "l1.pth"), "custom_load": True},
    }
    model = timm.create_model("plain_mamba_l1", img_size=(64, 96), num_classes=3, scan="hilbert", **options).eval()
    assert model.pos_embed.shape == (1, 4 * 6, 192)
    usual = timm.create_model("plain_mamba_l1", num_classes=0, **options).eval()
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(model.embed(x)[0], usual.embed(x)[0])  # resized when loading, and on the way
        assert model(x).isfinite().all()
        assert not torch.allclose(model.forward_features(x), usual.forward_features(x), atol=1e-3)


def test_weight_decay_is_that_of_the_published_training() -> None:
    model = visionssm.create_model("plain_mamba_nano")
    kept, decayed = param_groups_weight_decay(model, 0.1, no_weight_decay_list=model.no_weight_decay())
    assert (kept["weight_decay"], decayed["weight_decay"]) == (0.0, 0.1)
    names = {id(p): name for name, p in model.named_parameters()}
    decayed_kinds = {".".join(names[id(p)].split(".")[-2:]) for p in decayed["params"]}
    layers = {"in_proj", "x_proj", "dt_proj", "out_proj", "conv", "conv1", "0", "proj", "head"}
    assert decayed_kinds == {f"{layer}.weight" for layer in layers}


def test_published_initial_values() -> None:
    torch.manual_seed(0)
    model = visionssm.create_model("plain_mamba_l1", drop_path_rate=0.2)
    mixer = model.blocks[5].mixer
    for linear in (mixer.in_proj, mixer.x_proj, mixer.dt_proj, mixer.out_proj):
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not mixer.in_proj.bias.any()
    assert not mixer.out_proj.bias.any()
    assert not mixer.dt_bias.any()
    assert torch.equal(mixer.D, torch.ones(384))
    torch.testing.assert_close(mixer.A_log.exp(), torch.arange(1.0, 17.0).expand(384, 16))
    assert model.pos_embed.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.head.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert [model.blocks[i].drop_path.drop_prob for i in (0, 23)] == [0.0, pytest.approx(0.2)]
    assert (model.blocks[0].norm.eps, model.norm.eps) == (1e-5, 1e-6)


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="align must be 'published' or 'exact', got 'none'"):
        visionssm.create_model("plain_mamba_nano", align="none")
    with pytest.raises(ValueError, match=r"local_blocks must lie in 0\.\.7, got \(8,\)"):
        visionssm.create_model("plain_mamba_nano", local_blocks=(8,))
    with pytest.raises(ValueError, match="without a class token"):
        visionssm.create_model("plain_mamba_nano", global_pool="token")


def test_exact_alignment_is_another_model_with_the_same_weights() -> None:
    published_model = visionssm.create_model("plain_mamba_nano").eval()
    exact = visionssm.create_model("plain_mamba_nano", align="exact").eval()
    exact.load_state_dict(published_model.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert not torch.allclose(exact.forward_features(x), published_model.forward_features(x), atol=1e-3)


def test_statistics_of_the_stem_and_the_local_convolution_follow_training() -> None:
    model = visionssm.create_model("plain_mamba_nano").train()
    model(torch.randn(2, 3, 64, 64) + 3)
    for norm in (model.patch_embed.norm1, model.patch_embed.convs[1], model.blocks[0].local.norm):
        assert norm.num_batches_tracked == 1
        assert norm.running_mean.abs().sum() > 0
