"""Every family that scans takes every kind of order, for images and, where the idea carries over, for volumes."""

import pytest
import timm
import torch

import visionssm
from visionssm.mixers.paths import Paths
from visionssm.scans import create_scan, list_scans

# One of each kind: a table per image with prompts, one with scores; pieces; pieces in channel groups; a schedule; padding.
KINDS = ["semantic", "adaptive", "local_bidirectional", "slices", "alternating", "atrous_window"]
WITHOUT_ORDER = {"vssd_nano", "efficient_vim_nano"}  # every token of theirs reads one sum over all of them
ODD_WIDTHS = {"mambair_nano_x2"}
IMAGES = [name for task in ("classification", "restoration") for name in visionssm.list_models("*nano*", task=task)]
VOLUMES = visionssm.list_models("*nano*", task="volume")


def test_kinds_are_kinds() -> None:
    orders = [create_scan(name) for name in KINDS]
    assert any(order.content for order in orders)
    assert any(order.segmented and order.groups > 1 for order in orders)
    assert any(order.padded for order in orders)
    assert set(KINDS) <= set(list_scans(2)) & set(list_scans(3))


def test_families_without_an_order_take_none() -> None:
    for name in WITHOUT_ORDER:
        with pytest.raises(TypeError, match="scan"):
            visionssm.create_model(name, scan="raster")


def _image(name: str) -> torch.Tensor:
    settings = timm.get_pretrained_cfg(name)  # of classifiers
    side = settings.input_size[-1] if settings is not None and settings.input_size else 32
    return torch.randn(2, 3, side, side)


@pytest.mark.parametrize("scan", KINDS)
@pytest.mark.parametrize("name", [name for name in IMAGES if name not in WITHOUT_ORDER and "3d" not in name])
def test_images(name: str, scan: str) -> None:
    if scan == "slices" and name in ODD_WIDTHS:
        with pytest.raises(ValueError, match=r"splits the channels into 2 groups, but d_inner is \d+"):
            visionssm.create_model(name, scan=scan)
        return
    model = visionssm.create_model(name, scan=scan).train()
    used = {module.scan.name for module in model.modules() if isinstance(module, Paths)}
    assert used
    model(_image(name)).square().mean().backward()
    learned = [p.grad for key, p in model.named_parameters() if ".content." in key]
    assert bool(learned) == create_scan(scan).content
    assert all(grad is not None for grad in learned)


@pytest.mark.parametrize("scan", ["semantic", "adaptive", "local_bidirectional"])
@pytest.mark.parametrize("name", VOLUMES)
def test_volumes(name: str, scan: str) -> None:
    model = visionssm.create_model(name, scan=scan).train()
    x = torch.randn(1, 1, 16, 16, 16)
    y = model(x)
    (y[0] if isinstance(y, (list, tuple)) else y).square().mean().backward()
    assert any(isinstance(module, Paths) for module in model.modules())
