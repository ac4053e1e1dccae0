"""The backbones as parts of MMEngine models: maps, norms, freezing, weights to start from, errors."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from safetensors.torch import save_file
from torch import Tensor, nn

import visionssm
from tests.tolerances import TOLERANCES
from visionssm.checkpoints import CheckpointError
from visionssm.integrations.openmmlab import VisionSSM
from visionssm.integrations.openmmlab_adapter import DeformableAttention, VisionSSMAdapter
from visionssm.integrations.openmmlab_necks import FinerFPN, SimplePyramid

SMALL = visionssm.list_models("*_nano", task="classification")
SIZE = (67, 93)  # odd, not square, no multiple of any stride
SMALL_ADAPTER = {"name": "plain_mamba_l1", "interactions": (1, 2), "heads": 3, "width": 8}
SMALL_PLAIN = {"dim": 24, "depth": 3, "img_size": 64}


def adapter(**options) -> VisionSSMAdapter:
    return VisionSSMAdapter(**{**SMALL_ADAPTER, "options": SMALL_PLAIN, **options})


@pytest.mark.parametrize("name", SMALL)
def test_every_family_gives_maps_and_trains_all_that_it_has(name: str) -> None:
    """No parameter without a gradient: distributed training would stop at one."""
    backbone = MODELS.build({"type": "VisionSSM", "name": name}).train()
    maps = backbone(torch.randn(2, 3, *SIZE))
    assert isinstance(maps, tuple)
    for feature, channels, stride in zip(maps, backbone.channels, backbone.strides, strict=True):
        assert feature.shape[:2] == (2, channels)
        assert feature.is_contiguous()
        assert all(abs(side - size / stride) <= 1 for side, size in zip(feature.shape[2:], SIZE, strict=True))
    sum(feature.square().sum() for feature in maps).backward()
    assert [key for key, p in backbone.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("name", ["vmamba_nano", "vim_nano", "mamba_nd_nano"])
def test_maps_are_timms(name: str) -> None:
    backbone = VisionSSM(name, out_indices=(1, -1), out_norm="none", scan="hilbert").eval()
    model = visionssm.create_model(name, scan="hilbert", features_only=True, out_indices=(1, -1)).eval()
    assert not model.model.load_state_dict(backbone.model.state_dict(), strict=False).unexpected_keys
    x = torch.randn(1, 3, 64, 96)
    for ours, theirs in zip(backbone(x), model(x), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ["vmamba_nano", "plain_mamba_nano"])
def test_norms(name: str) -> None:
    x = torch.randn(1, 3, 64, 64)
    layer = VisionSSM(name, out_indices=(-2, -1)).eval()
    none = VisionSSM(name, out_indices=(-2, -1), out_norm="none").eval()
    none.model.load_state_dict(layer.model.state_dict())
    for normed, feature in zip(layer(x), none(x), strict=True):
        wanted = F.layer_norm(feature.permute(0, 2, 3, 1), feature.shape[1:2]).permute(0, 3, 1, 2)
        torch.testing.assert_close(normed, wanted, **TOLERANCES[torch.float32])
    own = VisionSSM(name, out_indices=(-2, -1), out_norm="model").eval()
    nn.init.uniform_(own.model.norm.weight, 1, 2)
    last = own.model.forward_intermediates(x, indices=[own.out_indices[-1]], norm=True, intermediates_only=True)[0]
    assert torch.equal(own(x)[-1], last)


def test_frozen_stages_stay_as_they_are() -> None:
    backbone = VisionSSM("vmamba_nano", frozen_stages=2, norm_eval=True).train()
    frozen = {key for key, p in backbone.named_parameters() if not p.requires_grad}
    assert {key.split(".")[1] for key in frozen} == {"stem", "stages"}
    assert {key.split(".")[2] for key in frozen if "stages" in key} == {"0", "1"}
    assert not any(module.training for stage in backbone.model.stages[:2] for module in stage.modules())
    assert backbone.model.stages[2].training
    plain = VisionSSM("vim_nano", frozen_stages=0)
    still = {key for key, p in plain.named_parameters() if not p.requires_grad}
    assert still == {
        "model.pos_embed",
        "model.cls_token",
        "model.patch_embed.proj.weight",
        "model.patch_embed.proj.bias",
    }
    norms = VisionSSM("plain_mamba_nano", norm_eval=True).train()
    kinds = {module.training for module in norms.modules() if isinstance(module, nn.BatchNorm2d)}
    assert kinds == {False}


@pytest.mark.parametrize(
    "build",
    [lambda **o: VisionSSM("vmamba_nano", **o), lambda **o: VisionSSM("vim_nano", **o), adapter],
    ids=["hierarchical", "plain", "adapter"],
)
def test_recomputing_changes_no_gradient(build) -> None:
    torch.manual_seed(0)
    saving = build(with_cp=True).train()
    keeping = build().train()
    keeping.load_state_dict(saving.state_dict())
    x = torch.randn(1, 3, 64, 64)
    for backbone in (saving, keeping):
        sum(feature.square().mean() for feature in backbone(x)).backward()
    for (key, ours), (_, theirs) in zip(saving.named_parameters(), keeping.named_parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, **TOLERANCES[torch.float32], msg=key)


def test_weights_to_start_from(tmp_path: Path) -> None:
    model = visionssm.create_model("vmamba_nano", num_classes=10)
    path = tmp_path / "weights.safetensors"
    save_file(model.state_dict(), path)
    backbone = VisionSSM("vmamba_nano", out_indices=(0, 2), init_cfg={"type": "Pretrained", "checkpoint": str(path)})
    backbone.init_weights()
    weights = model.state_dict()
    loaded = backbone.model.state_dict()
    assert loaded
    assert not any(key.startswith(("stages.3", "norm", "head")) for key in loaded)
    assert all(torch.equal(tensor, weights[key]) for key, tensor in loaded.items())


def test_positions_of_another_size(tmp_path: Path) -> None:
    model = visionssm.create_model("vim_nano")
    path = tmp_path / "weights.safetensors"
    save_file(model.state_dict(), path)
    backbone = VisionSSM(
        "vim_nano",
        img_size=(96, 128),
        options={"class_token": False},
        init_cfg={"type": "Pretrained", "checkpoint": str(path)},
    )
    backbone.init_weights()
    assert backbone.model.pos_embed.shape[1] == 12 * 16
    grid = torch.cat([model.pos_embed[:, :32], model.pos_embed[:, 33:]], 1)  # the token's entry is in the middle
    grid = grid.detach().view(1, 8, 8, -1).permute(0, 3, 1, 2)
    wanted = F.interpolate(grid, (12, 16), mode="bicubic").flatten(2).transpose(1, 2)
    torch.testing.assert_close(backbone.model.pos_embed.detach(), wanted, **TOLERANCES[torch.float32])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"name": "vmamba_nanoo"}, ValueError, "did you mean vmamba_nano"),
        ({"name": "mambair_nano_x2"}, ValueError, "no backbone"),
        ({"name": "vmamba_nano", "out_indices": (0, 4)}, ValueError, r"within 0\.\.3 for vmamba_nano"),
        ({"name": "vmamba_nano", "out_indices": (2, 1)}, ValueError, "must ascend"),
        ({"name": "vmamba_nano", "out_norm": "batch"}, ValueError, "out_norm must be"),
        ({"name": "vmamba_nano", "frozen_stages": 5}, ValueError, r"-1\.\.4"),
        ({"name": "vmamba_nano", "scan": "hilbertt"}, ValueError, "hilbert"),
        ({"name": "vmamba_nano", "img_size": 64}, ValueError, "does not take these options: .*img_size"),
        ({"name": "vmamba_nano", "init_cfg": {"type": "Kaiming"}}, ValueError, "Pretrained"),
        ({"name": "vmamba_nano", "depth": 3}, TypeError, "depth"),
    ],
)
def test_errors_name_what_was_wrong(options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        VisionSSM(**options)


@pytest.mark.parametrize(
    ("checkpoint", "error", "message"),
    [
        ("nowhere.pth", ValueError, "neither a file nor an address nor weights of spatial_mamba_tiny"),
        ("vmamba_tiny_s1l8.in1k", ValueError, "weights of spatial_mamba_tiny such as 'spatial_mamba_tiny.in1k'"),
        ("spatial_mamba_tiny.in1k", RuntimeError, "Google Drive"),
    ],
)
def test_weights_that_cannot_be_had(checkpoint: str, error: type[Exception], message: str) -> None:
    backbone = VisionSSM(
        "spatial_mamba_tiny",
        options={"depths": (1, 1, 1, 1), "dim": 16},
        init_cfg={"type": "Pretrained", "checkpoint": checkpoint},
    )
    with pytest.raises(error, match=message):
        backbone.init_weights()


def test_weights_of_another_model(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(visionssm.create_model("spatial_mamba_nano").state_dict(), path)
    backbone = VisionSSM("vmamba_nano", init_cfg={"type": "Pretrained", "checkpoint": str(path)})
    with pytest.raises(CheckpointError, match=r"does not fit VMamba \(vmamba_nano\)\n.*missing: stem"):
        backbone.init_weights()


@pytest.mark.parametrize("outs", [4, 6])
def test_pyramid_neck(outs: int) -> None:
    backbone = VisionSSM("plain_mamba_nano")
    neck = MODELS.build({"type": "SimplePyramid", "in_channels": 96, "out_channels": 32, "num_outs": outs})
    x = torch.randn(1, 3, 256, 384)
    levels = neck(backbone(x))
    assert [tuple(level.shape[1:]) for level in levels] == [(32, 256 >> i, 384 >> i) for i in range(2, 2 + outs)]
    assert neck.channels == [32] * outs
    with pytest.raises(ValueError, match="num_outs must be at least"):
        SimplePyramid(96, num_outs=2)


@pytest.mark.parametrize(("coarser", "extra"), [("pool", False), ("conv", "on_input")])
def test_finer_neck_without_finer_levels_is_mmdetections(coarser: str, extra: bool | str) -> None:
    theirs = MODELS.build(
        {"type": "mmdet.FPN", "in_channels": [8, 12], "out_channels": 16, "num_outs": 4, "add_extra_convs": extra}
    )
    ours = FinerFPN([8, 12], 16, num_finer=0, num_outs=4, coarser=coarser)
    ours.load_state_dict(theirs.state_dict())
    maps = [torch.randn(1, 8, 9, 13), torch.randn(1, 12, 5, 7)]
    for level, wanted in zip(ours(maps), theirs(maps), strict=True):
        torch.testing.assert_close(level, wanted, **TOLERANCES[torch.float32])


def test_finer_neck_halves_the_stride_of_its_first_map() -> None:
    neck = FinerFPN([8, 12, 20], 16, num_finer=2, num_outs=6)
    maps = [torch.randn(1, width, 8 >> i, 12 >> i) for i, width in enumerate((8, 12, 20))]
    levels = neck(maps)
    assert [tuple(level.shape) for level in levels] == [(1, 16, 64 >> i, 96 >> i) for i in range(1, 4)] + [
        (1, 16, 4, 6), (1, 16, 2, 3), (1, 16, 1, 2)]  # fmt: skip
    first = neck.lateral_convs[0](maps[0]) + F.interpolate(
        neck.lateral_convs[1](maps[1]) + F.interpolate(neck.lateral_convs[2](maps[2]), scale_factor=2), scale_factor=2
    )
    middle = neck.extra_trans_convs[0]["conv"](first)
    wanted = neck.extra_fpn_convs[0](neck.extra_trans_convs[1]["conv"](middle)), neck.extra_fpn_convs[1](middle)
    for level, expected in zip(levels, wanted, strict=False):
        torch.testing.assert_close(level, expected, **TOLERANCES[torch.float32])
    with pytest.raises(ValueError, match=r"at least 3 maps \+ 2 finer, got 4"):
        FinerFPN([8, 12, 20], 16, num_finer=2, num_outs=4)
    with pytest.raises(ValueError, match="'pool' or 'conv', got 'max'"):
        FinerFPN([8], 16, num_finer=1, num_outs=2, coarser="max")


def test_adapter_gives_four_strides_and_trains_all_that_it_has() -> None:
    backbone = adapter().train()
    for exchange in backbone.interactions:
        nn.init.ones_(exchange.injector.gamma)
    maps = backbone(torch.randn(2, 3, *SIZE))
    assert [tuple(feature.shape) for feature in maps] == [(2, 24, 96 // s, 96 // s) for s in (4, 8, 16, 32)]
    sum((feature * torch.randn_like(feature)).sum() for feature in maps).backward()
    assert [key for key, p in backbone.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interactions": (1, 1)}, "add up to the 3 blocks"),
        ({"name": "local_vim_nano", "options": {}, "interactions": (8,)}, "stride 16"),
        ({"name": "vim_tiny", "options": {}, "interactions": (24,)}, "without class token"),
        ({"heads": 5}, "multiples of 5 heads"),
    ],
)
def test_adapter_refuses_what_it_cannot_go_around(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adapter(**options)


def test_deformable_attention_reads_where_it_says() -> None:
    """Against sums of bilinear samples, one by one, on maps of two sizes."""
    torch.manual_seed(0)
    attention = DeformableAttention(8, levels=2, heads=2, points=3, ratio=1.0)
    for projection in (attention.sampling_offsets, attention.attention_weights):
        nn.init.normal_(projection.weight, std=0.3)
    sizes, query = [(4, 6), (2, 3)], torch.randn(2, 5, 8)
    feature, places = torch.randn(2, 4 * 6 + 2 * 3, 8), torch.rand(5, 2)

    def sample(grid: Tensor, x: float, y: float) -> Tensor:
        at = torch.tensor([[[[2 * x - 1, 2 * y - 1]]]])
        return F.grid_sample(grid[None], at, align_corners=False)[0, :, 0, 0]

    offsets = attention.sampling_offsets(query).view(2, 5, 2, 2, 3, 2)
    weights = attention.attention_weights(query).view(2, 5, 2, 6).softmax(-1).view(2, 5, 2, 2, 3)
    values = attention.value_proj(feature).view(2, -1, 2, 4)
    read = torch.zeros(2, 5, 2, 4)
    with torch.no_grad():
        for b in range(2):
            for q in range(5):
                for head in range(2):
                    start = 0
                    for level, (height, width) in enumerate(sizes):
                        part = values[b, start : start + height * width, head].T.view(4, height, width)
                        start += height * width
                        for point in range(3):
                            dx, dy = offsets[b, q, head, level, point].tolist()
                            x, y = places[q].tolist()
                            value = sample(part, x + dx / width, y + dy / height)
                            read[b, q, head] += weights[b, q, head, level, point] * value
    wanted = attention.output_proj(read.flatten(2))
    torch.testing.assert_close(attention(query, places, feature, sizes), wanted, **TOLERANCES[torch.float32])


@pytest.mark.parametrize("absent", ["mmdet", "mmcv._ext"])
def test_without_the_extra_one_line_says_what_to_install(absent: str) -> None:
    code = f"""
import sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name == {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hide())
import visionssm.integrations.mmdet
"""
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    last = run.stderr.strip().splitlines()[-1]
    assert run.returncode == 1
    assert last.startswith("ImportError: visionssm.integrations.mmdet needs MMDetection with mmcv's compiled operators")
    assert "pip install 'visionssm[openmmlab]'" in last
    assert last.endswith(f"No module named '{absent}'")
