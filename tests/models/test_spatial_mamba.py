"""What is Spatial-Mamba's own: sizes, published files on Google Drive, both forms of the fusion."""

from pathlib import Path

import pytest
import timm
import torch
from timm.optim import param_groups_weight_decay

import visionssm
from tests.parity.cases import load_cases
from tests.parity.families import HERE, torch_weights
from tests.tolerances import TOLERANCES
from visionssm.checkpoints import CheckpointError

# tiny and base: counted with the published code; small: 43 M there
PARAMETERS = {"spatial_mamba_tiny": 26_748_862, "spatial_mamba_base": 95_745_592}
DRIVE = {"tiny": "19kXoqGSTuKK", "small": "1Wb3sYoWLpgm", "base": "1k8dHp2QRCOq"}


@pytest.mark.parametrize("name", PARAMETERS)
def test_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        model = visionssm.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


def test_small_is_between() -> None:
    with torch.device("meta"):
        model = visionssm.create_model("spatial_mamba_small")
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == 43


@pytest.mark.parametrize("variant", DRIVE)
def test_pretrained_says_where_the_weights_are(variant: str) -> None:
    with pytest.raises(
        RuntimeError, match=f"^the weights of spatial_mamba_{variant} .*/d/{DRIVE[variant]}.*load_official$"
    ):
        visionssm.create_model(f"spatial_mamba_{variant}", pretrained=True)


def published() -> dict[str, torch.Tensor]:
    case = next(c for c in load_cases(HERE / "spatial_mamba/tiny.json") if c.name == "small")
    return torch_weights(case)


def test_pretrained_takes_a_file_that_was_fetched(tmp_path: Path) -> None:
    state = published()
    torch.save({"model": state, "epoch": 299}, tmp_path / "tiny.pth")
    overlay = {"file": str(tmp_path / "tiny.pth"), "custom_load": True}
    model = timm.create_model(
        "spatial_mamba_tiny", pretrained=True, num_classes=3, in_chans=1, pretrained_cfg_overlay=overlay
    )
    fusion = model.stages[2].blocks[5].mixer.fusion
    name = "layers.2.blocks.5.self_attention.state_fusion."
    assert torch.equal(fusion.kernels.chunk(3)[1], state[f"{name}kernel_3_1"])
    assert torch.equal(fusion.alpha, state[f"{name}alpha"])
    torch.testing.assert_close(model.stem.conv1.weight, state["patch_embed.conv1.conv.weight"].sum(1, keepdim=True))
    assert model.head.fc.weight.shape == (3, 512)


def test_a_published_file_is_loaded_strictly() -> None:
    state = published()
    model = visionssm.create_model("spatial_mamba_tiny")
    lost = "layers.0.blocks.1.self_attention.state_fusion.kernel_3_2"
    with pytest.raises(CheckpointError, match=r"of another shape: stages\.0\.blocks\.1\.mixer\.fusion\.kernels"):
        visionssm.load_official(model, {k: v for k, v in state.items() if k != lost})
    with pytest.raises(CheckpointError, match=r"1 missing: stages\.1\.downsample\.norm\.running_var"):
        visionssm.load_official(
            model, {k: v for k, v in state.items() if k != "layers.0.downsample.conv.2.norm.running_var"}
        )


def test_files_from_when_the_kernels_had_five_dimensions_are_loaded() -> None:
    model = visionssm.create_model("spatial_mamba_nano")
    state = model.state_dict()
    old = {n: t.unflatten(0, (3, -1)) if n.endswith("kernels") else t for n, t in state.items()}
    assert any(tensor.ndim == 5 for tensor in old.values())
    other = visionssm.load_official(visionssm.create_model("spatial_mamba_nano"), old).state_dict()
    assert all(torch.equal(other[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("size", [(64, 64), (33, 70), (4, 100), (1, 1)])
def test_with_and_without_gradients_it_is_the_same_model(size: tuple[int, int]) -> None:
    model = visionssm.create_model("spatial_mamba_nano").eval()
    x = torch.randn(2, 3, *size)
    logits = model(x)
    with torch.no_grad():
        torch.testing.assert_close(model(x), logits, **TOLERANCES[torch.float32])


def test_evaluation_after_training_uses_the_new_weights() -> None:
    model = visionssm.create_model("spatial_mamba_nano")
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        model.eval()(x)
    for name, param in model.named_parameters():
        param.requires_grad_("fusion" in name)
    model.train()(x).square().mean().backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    fresh = visionssm.create_model("spatial_mamba_nano").eval()
    fresh.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(model.eval()(x), fresh(x))


def test_weights_serve_any_scan_order() -> None:
    raster = visionssm.create_model("spatial_mamba_nano").eval()
    snake = visionssm.create_model("spatial_mamba_nano", scan="snake").eval()
    snake.load_state_dict(raster.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert not torch.allclose(raster(x), snake(x), atol=1e-3)


def test_weight_decay_is_that_of_the_published_training() -> None:
    model = visionssm.create_model("spatial_mamba_nano")
    kept, _ = param_groups_weight_decay(model, 0.1, no_weight_decay_list=model.no_weight_decay())
    names = {id(p): name for name, p in model.named_parameters()}
    without = {names[id(p)] for p in kept["params"]}
    assert {name for name in names.values() if name.endswith((".D", ".dt_bias", ".alpha", "norm1.weight"))} <= without
    assert not any(name.endswith((".A_log", ".kernels", ".x_proj", ".dt_proj")) for name in without)
