"""What is their own in MSVMamba, EfficientVMamba, GroupMamba, Mamba-ND and Mamba2D: sizes, weights, training, scales, corners."""

from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.optim import param_groups_weight_decay
from torch import Tensor

import visionssm
from tests.parity.cases import load_cases
from tests.parity.families import HERE, torch_weights
from tests.tolerances import TOLERANCES
from visionssm.checkpoints import CheckpointError
from visionssm.mixers import GroupScan, ImageScan, MultiScaleScan
from visionssm.mixers.schedule import layer_scans
from visionssm.scans import chain, create_scan, deal, list_scans, split_scales

PARAMETERS = {
    "msvmamba_nano": 6_864_136,
    "msvmamba_micro": 11_879_272,
    "msvmamba_tiny": 33_046_312,
    "msvmamba_v3_tiny": 32_263_720,
    "msvmamba_v3_small": 50_216_296,
    "msvmamba_v3_base": 90_591_976,
    "efficient_vmamba_tiny": 6_493_660,
    "efficient_vmamba_small": 11_273_688,
    "efficient_vmamba_base": 33_717_136,
    "group_mamba_tiny": 23_361_917,
    "group_mamba_small": 34_781_555,
    "group_mamba_base": 57_150_838,
    "mamba_nd_2d_small": 24_505_192,
    "mamba_nd_2d_base": 94_425_832,
    "mamba2d_nano": 7_178_496,
    "mamba2d_tiny": 26_523_136,
    "mamba2d_small": 50_273_636,
}
BY_HAND = {
    "msvmamba_micro": "folders/1jfl2GmuKcUB8sPwRlyHK_wT0MjqgljYk",
    "efficient_vmamba_base": "TerryPei/EfficientVMamba-Base",
    "group_mamba_tiny": "1TrYYs0uGZbja_2ONQLyfiNdp8C5ZYP1o",
}
NANO = ["msvmamba_pico", "msvmamba_v3_nano", "efficient_vmamba_nano", "group_mamba_nano", "mamba_nd_nano"]


def small_case(path: str) -> dict[str, Tensor]:
    return torch_weights(next(case for case in load_cases(HERE / path) if case.name == "small"))


@pytest.mark.parametrize("name", PARAMETERS)
def test_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        model = visionssm.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", [*NANO, "mamba2d_pico"])
def test_small_ones_are_small(name: str) -> None:
    with torch.device("meta"):
        model = visionssm.create_model(name)
    assert 0.5e6 < sum(p.numel() for p in model.parameters()) < 1.5e6


@pytest.mark.parametrize("name", BY_HAND)
def test_pretrained_says_where_the_weights_are(name: str) -> None:
    with pytest.raises(RuntimeError, match=f"for {name}: .*{BY_HAND[name]}.*load_official$"):
        visionssm.create_model(name, pretrained=True)


@pytest.mark.parametrize("name", NANO)
def test_weight_decay_is_that_of_the_published_training(name: str) -> None:
    model = visionssm.create_model(name)
    kept, _ = param_groups_weight_decay(model, 0.1, no_weight_decay_list=model.no_weight_decay())
    names = {id(p): name for name, p in model.named_parameters()}
    without = {names[id(p)] for p in kept["params"]}
    vectors = (".D", "norm.weight", "out_norm.bias", "skip_scale", "fc.bias")
    assert {name for name in names.values() if name.endswith(vectors)} <= without
    assert not any(
        name.endswith((".A_log", ".x_proj", ".dt_proj", "in_proj.weight", "conv.weight")) for name in without
    )
    assert any(name.endswith(".dt_bias") for name in without) == (name == "mamba_nd_nano")


def test_mamba2d_is_trained_without_decay_of_the_scan() -> None:
    model = visionssm.create_model("mamba2d_pico")
    kept, decayed = param_groups_weight_decay(model, 0.1, no_weight_decay_list=model.no_weight_decay())
    names = {id(p): name for name, p in model.named_parameters()}
    without, others = ({names[id(p)] for p in group["params"]} for group in (kept, decayed))
    assert {
        name for name in names.values() if name.endswith((".A_log", ".D", ".dt_bias", ".scale1", "norm.bias"))
    } <= without
    assert {name for name in names.values() if name.endswith(("x_proj.weight", ".dt_proj", "conv.weight"))} <= others


def test_stage_norms_take_the_place_of_norm_and_classifier() -> None:
    model = visionssm.create_model("efficient_vmamba_nano", stage_norms=True).eval()
    names = [name for name, _ in model.named_parameters()]
    assert [name for name in names if "out_norm" in name and "mixer" not in name] == [
        f"stages.{i}.out_norm.{part}" for i in range(4) for part in ("weight", "bias")
    ]
    assert not any(name.startswith(("norm.", "head.")) for name in names)
    with torch.no_grad():
        for feature in model.forward_intermediates(torch.randn(1, 3, 64, 64), intermediates_only=True):
            torch.testing.assert_close(feature.mean(1), torch.zeros_like(feature[:, 0]), **TOLERANCES[torch.float32])


# --- orders -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(4, 4), (3, 5), (1, 1)])
def test_a_chain_reads_one_route_after_the_other(size: tuple[int, int]) -> None:
    for name in ("cross", "skip", "window"):
        inner = create_scan(name)
        (path,) = chain(inner).routes(size)
        assert len(path) == chain(inner).length(size)
        pieces = path.view(inner.num_routes, -1)
        cells = size[0] * size[1]
        for k, (piece, route) in enumerate(zip(pieces, inner.routes(size), strict=True)):
            assert torch.equal(piece[route >= 0] - k * cells, route[route >= 0])
            assert (piece[route < 0] == -1).all()
        assert chain(inner).positions(size) == inner.num_routes * cells


@pytest.mark.parametrize("low", [1, 2, 3])
@pytest.mark.parametrize("size", [(7, 12), (4, 4)])
def test_two_scales_of_the_published_order(low: int, size: tuple[int, int]) -> None:
    scan = create_scan("multi_scale", low=low)
    full, coarse, stride = split_scales(scan)
    assert (full, stride) == (scan, 2)
    small = scan.low_size(size)
    copies = torch.arange(low).unsqueeze(1) * small[0] * small[1]
    assert torch.equal(coarse.routes(small)[0], (scan.low_routes(size) + copies).flatten())


def test_two_scales_of_any_order() -> None:
    full, coarse, _ = split_scales(create_scan("cross"))
    assert torch.equal(full.routes((3, 5)), create_scan("cross").routes((3, 5))[:1])
    assert coarse.copies == 3
    full, coarse, _ = split_scales(create_scan("raster"))
    assert full == create_scan("raster")
    assert coarse.copies == 1
    assert split_scales(create_scan("skip"))[0] == create_scan("skip")  # its routes visit a part each


def test_routes_are_dealt_to_groups() -> None:
    size = (3, 5)
    cross = create_scan("cross").routes(size)
    assert torch.equal(deal(create_scan("cross"), 4).routes(size), cross)
    assert torch.equal(deal(create_scan("cross"), 2).routes(size), cross[[0, 2, 1, 3]])
    assert torch.equal(deal(create_scan("bidirectional"), 4).routes(size), cross[[0, 2, 0, 2]])
    assert torch.equal(deal(create_scan("skip"), 2).routes(size), create_scan("skip").routes(size).repeat(2, 1))
    assert deal(create_scan("group"), 4) == create_scan("group")
    assert deal(create_scan("slices"), 4).which == (0, 0, 1, 1)
    with pytest.raises(ValueError, match="4 channel groups, which 3"):
        deal(create_scan("group"), 3)


# --- mixers -----------------------------------------------------------------------------------------------------


TABLES = [name for name in list_scans(2) if not create_scan(name).content and not create_scan(name).segmented]


@pytest.mark.parametrize("scan", [name for name in TABLES if create_scan(name).groups == 1][::3])
def test_coarse_scan_carries_its_state_from_route_to_route(scan: str) -> None:
    (order,) = layer_scans(scan, 1)
    mixer = MultiScaleScan(
        8, scan=order, d_inner=16, d_state=2, dt_rank=1, gate=True, norm="routes", upsample="bilinear"
    ).double()
    branch = mixer.coarse
    x = torch.randn(2, 5, 7, 16, dtype=torch.float64)
    u = F.silu(branch.conv(x.permute(0, 3, 1, 2))).flatten(2).transpose(1, 2)
    inner = split_scales(order)[1]
    (path,) = inner.routes((3, 4))
    wanted = torch.zeros(2, 12 * branch.copies, 16, dtype=torch.float64)
    h = torch.zeros(2, 16, 2, dtype=torch.float64)
    for position in path.tolist():
        token = u[:, position % 12] if position >= 0 else torch.zeros_like(u[:, 0])
        low, B, C = (token @ branch.x_proj[0].T).split(branch.dims, -1)
        dt = F.softplus(low @ branch.dt_proj[0].T + branch.dt_bias[0])
        h = torch.exp(-dt[..., None] * branch.A_log[0].exp()) * h + (dt * token)[..., None] * B[:, None]
        if position >= 0:
            wanted[:, position] = (h * C[:, None]).sum(-1) + branch.D[0] * token
    torch.testing.assert_close(branch(x).flatten(1, 3), wanted, **TOLERANCES[torch.float64])


def test_a_group_is_an_image_scan_of_its_own() -> None:
    groups = GroupScan(32, scan=create_scan("group"), groups=4, d_state=2, dt_rank=1, expand=2).double()
    for weight in (groups.out_norm.weight, groups.out_norm.bias):
        torch.nn.init.normal_(weight)
    x = torch.randn(2, 3, 5, 32, dtype=torch.float64)
    parts = []
    for g in range(4):
        order = create_scan("select", scan="cross", which=(g,))
        one = ImageScan(8, scan=order, d_inner=16, d_state=2, dt_rank=1).double()
        state = groups.state_dict()
        for name, tensor in one.state_dict().items():
            tensor.copy_(state[name].unflatten(0, (4, -1))[g].view_as(tensor))
        parts.append(one(x[..., 8 * g : 8 * g + 8]))
    torch.testing.assert_close(groups(x), torch.cat(parts, -1), **TOLERANCES[torch.float64])


def test_every_second_block_of_mamba2d_begins_at_the_other_corner() -> None:
    """Its scan is the first one's over the image turned around; what is added beside it is not turned."""
    first, second = (block.mixer for block in visionssm.create_model("mamba2d_pico").double().stages[0].blocks[:2])
    second.load_state_dict(first.state_dict())
    x = torch.randn(2, 3, 5, 16, dtype=torch.float64)
    turned = first.scan(x.flip(1, 2)).flip(1, 2)
    torch.testing.assert_close(second(x), turned + first.local(x), **TOLERANCES[torch.float64])
    assert (turned - first.scan(x)).abs().max() > 1e-3


def test_refusals() -> None:
    raster = create_scan("raster")
    rest = {"d_inner": 8, "d_state": 1, "dt_rank": 1, "gate": False}
    with pytest.raises(ValueError, match="norm must be 'routes' or 'sum', got 'all'"):
        MultiScaleScan(8, scan=raster, norm="all", upsample="nearest", **rest)
    with pytest.raises(ValueError, match="upsample must be"):
        MultiScaleScan(8, scan=raster, norm="sum", upsample="cubic", **rest)
    with pytest.raises(ValueError, match="dim=10 does not split into 4"):
        GroupScan(10, scan=raster, groups=4, d_state=1, dt_rank=1)
    with pytest.raises(ValueError, match="generation must be 1 or 3, got 2"):
        visionssm.create_model("msvmamba_nano", generation=2)
    with pytest.raises(ValueError, match=r"scan_stages must be 0\.\.4, got 5"):
        visionssm.create_model("efficient_vmamba_nano", scan_stages=5)
    with pytest.raises(ValueError, match=r"merge_after must lie in 0\.\.7"):
        visionssm.create_model("mamba_nd_nano", merge_after=(8,))


# --- published files --------------------------------------------------------------------------------------------


def test_convolutions_as_weights_of_linear_layers() -> None:
    state = small_case("msvmamba/nano.json")
    as_convs = {k: v[..., None, None] if k.endswith("_proj.weight") else v for k, v in state.items()}
    one, other = visionssm.create_model("msvmamba_nano"), visionssm.create_model("msvmamba_nano")
    visionssm.load_official(one, {"model_ema": state, "epoch": 299})
    visionssm.load_official(other, as_convs)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    with pytest.raises(
        CheckpointError, match=r"1 missing: stages\.2\.blocks\.0\.mixer\.squeeze_excite\.reduce\.weight"
    ):
        visionssm.load_official(one, {k: v for k, v in state.items() if k != "layers.2.blocks.0.op.se.fc.0.weight"})


def test_a_lightning_file_of_mamba2d() -> None:
    state = small_case("mamba2d/nano.json")
    model = visionssm.create_model("mamba2d_nano")
    visionssm.load_official(model, {"state_dict": state, "epoch": 299, "pytorch-lightning_version": "2.5.0"})
    core = model.stages[1].blocks[2].mixer.scan.scan
    for part, letter in enumerate("TL"):
        assert torch.equal(core.A_log[part], state[f"backbone.stages.1.2.token_mixer.A{letter}_log"])
        assert torch.equal(core.dt_bias[part], state[f"backbone.stages.1.2.token_mixer.dt_proj{letter}.bias"])
    missing = "backbone.stages.1.2.token_mixer.dt_projL.bias"
    with pytest.raises(CheckpointError, match=r"stages\.1\.blocks\.2\.mixer\.scan\.scan\.dt_bias"):
        visionssm.load_official(model, {name: value for name, value in state.items() if name != missing})


def test_both_classifiers_make_way_for_another_number_of_classes(tmp_path: Path) -> None:
    state = small_case("group_mamba/tiny.json")
    torch.save(state, tmp_path / "tiny.pth")
    overlay = {"file": str(tmp_path / "tiny.pth"), "custom_load": True}
    model = timm.create_model("group_mamba_tiny", pretrained=True, num_classes=3, pretrained_cfg_overlay=overlay)
    assert model.head.fc.weight.shape == model.head.fc_dist.weight.shape == (3, 448)
    assert torch.equal(model.head.neck.norm.weight, state["norm4.weight"])
    assert torch.equal(model.stages[1].blocks[4].bias, state["norm2.bias"])


def test_a_teacher_trains_the_second_classifier() -> None:
    model = visionssm.create_model("group_mamba_nano", num_classes=5)
    x = torch.randn(2, 3, 64, 64)
    assert model.train()(x).shape == (2, 5)
    model.set_distilled_training()
    labels, teacher = model(x)
    assert not torch.allclose(labels, teacher)
    assert model.eval()(x).shape == (2, 5)


def test_positions_of_another_grid(tmp_path: Path) -> None:
    state = small_case("mamba_nd/2d_small.json")
    torch.save({"state_dict": state}, tmp_path / "small.pth")
    overlay = {"file": str(tmp_path / "small.pth"), "hf_hub_id": None, "custom_load": True}
    resized = timm.create_model(
        "mamba_nd_2d_small", pretrained=True, img_size=64, pretrained_cfg_overlay=overlay
    ).eval()
    fixed = visionssm.load_official(visionssm.create_model("mamba_nd_2d_small"), state).eval()
    assert resized.stem.pos_embed.shape == (1, 64, 384)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(resized(x), fixed(x), **TOLERANCES[torch.float32])
    fixed.set_input_size((64, 96))
    assert fixed.stem.pos_embed.shape == (1, 8 * 12, 384)


def test_every_layer_of_mamba_nd_reads_its_own_route() -> None:
    model = visionssm.create_model("mamba_nd_nano")
    orders = [stage.blocks[0].mixer.paths.scan.routes((3, 5)) for stage in model.stages]
    wanted = create_scan("nd_2d").routes((3, 5))
    assert all(torch.equal(order[0], wanted[i % 4]) for i, order in enumerate(orders))
    assert [info["reduction"] for info in model.feature_info] == [8] * 3 + [16] * 5
