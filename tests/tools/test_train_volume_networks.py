"""U-Mamba and LightM-UNet in the volume trainer, in three dimensions and plane by plane."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import visionssm
from tests.tolerances import TOLERANCES
from tests.tools.test_train_volume import _fresh_accelerate, recipe  # noqa: F401  (a fixture that runs by itself)
from visionssm.data.errors import UserError
from visionssm.data.volume_patches import PatchAugmentConfig, VolumePatches
from visionssm.data.volumes import find_cases
from visionssm.engine.models import ModelConfig
from visionssm.engine.volume import train_volume
from visionssm.engine.volume_models import DeepSupervision, build_segmenter, load_volume_model

U_MAMBA = {"name": "u_mamba_nano", "kwargs": {"dims": [4, 8, 8], "depth": 1, "d_state": 2}}
LIGHT = {"name": "light_m_unet_nano", "kwargs": {"dim": 8, "d_state": 2}}
PLANES = {"data": {"patch": [16, 16, 1]}, "inference": {"roi": [16, 16, 8]}}


def flat(model: dict[str, Any]) -> dict[str, Any]:
    return {**model, "kwargs": {**model["kwargs"], "spatial_dims": 2}}


@pytest.mark.parametrize(
    "changes",
    [
        {"model": U_MAMBA, "loss": {"deep": 1}},
        {"model": LIGHT},
        {"model": flat(U_MAMBA), "loss": {"deep": 1}, **PLANES},
        {"model": flat(LIGHT), **PLANES, "ema": {"decay": 0.5}},
    ],
)
def test_trained_kept_and_used(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = recipe(tmp_path, **{"run": {"epochs": 1}, **changes})
    metrics = train_volume(config, cpu=True)
    assert set(metrics["scores"]["dice"]) == {"a", "b"}
    assert len(list((tmp_path / "run" / "predictions").glob("*.nii.gz"))) == metrics["cases"]["test"] == 1
    loaded = load_volume_model(tmp_path / "run").net.double()  # eight planes at a time and one are not rounded alike
    x = torch.randn(1, 1, 16, 16, 8, dtype=torch.float64)
    alone = visionssm.create_model(config.model.name, **config.model.kwargs, in_chans=1, num_classes=3).eval()
    visionssm.load_official(alone, load_file(tmp_path / "run" / "model.safetensors"))  # the network's own names
    alone.double()
    with torch.no_grad():
        planes = [x[..., i] for i in range(x.shape[-1])]
        wanted = alone(x) if alone.spatial_dims == 3 else torch.stack([alone(plane) for plane in planes], -1)
        torch.testing.assert_close(loaded(x), wanted, **TOLERANCES[torch.float64])


def test_a_network_trains_the_heads_that_it_brings() -> None:
    net = build_segmenter(ModelConfig(name="u_mamba_nano", kwargs=flat(U_MAMBA)["kwargs"]), channels=1, classes=3)
    deep = DeepSupervision(net, 1, num_classes=3).train()
    assert not deep.heads
    finest, coarser = deep(torch.randn(2, 1, 8, 8, 4))
    assert finest.shape == (2, 3, 8, 8, 4)
    assert coarser.shape == (2, 3, 4, 4, 4)
    (finest.sum() + coarser.sum()).backward()
    assert all(p.grad is not None for p in deep.parameters())
    with pytest.raises(UserError, match=r"loss\.deep=2: UMamba has 1 further decoder levels"):
        DeepSupervision(net, 2, num_classes=3)


def test_planes_are_turned_and_blurred_in_themselves(tmp_path: Path) -> None:
    """What would leave the plane would find nothing there, and darken it."""
    config = recipe(tmp_path, **PLANES).data
    changed = PatchAugmentConfig(rotate=1.0, scale=1.0, blur=1.0, low_resolution=1.0, mirror=1.0, noise=0.0)
    patches = VolumePatches(find_cases(config), config, changed, seed=3)
    items = [patches[0, i] for i in range(4)]
    assert all(item["image"].shape == item["label"].shape == (1, 16, 16, 1) for item in items)
    assert all((item["image"] != 0).float().mean() > 0.5 for item in items)
    assert torch.equal(items[1]["image"], patches[0, 1]["image"])


def test_a_window_of_another_size_is_refused(tmp_path: Path) -> None:
    model = {"name": "u_mamba_nano", "kwargs": {**U_MAMBA["kwargs"], "img_size": [8, 8, 8]}}
    with pytest.raises(UserError, match=r"data\.patch: this U-Mamba .*img_size=\(8, 8, 8\), got \(16, 16, 16\)"):
        train_volume(recipe(tmp_path, model=model), cpu=True)
