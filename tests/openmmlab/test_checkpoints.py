"""State dicts in the layouts of published detectors and segmentors, made of the published names and shapes."""

import json
import re
from pathlib import Path

import pytest
import torch
from mmengine.registry import init_default_scope
from mmengine.runner.checkpoint import load_state_dict
from torch import Tensor, nn

import visionssm
from tests.parity.fill import fill_state_dict
from visionssm.checkpoints import CheckpointError, convert
from visionssm.data.errors import UserError
from visionssm.engine.openmmlab import build_model, load_weights, open_config
from visionssm.integrations.openmmlab import VisionSSM
from visionssm.integrations.openmmlab_adapter import VisionSSMAdapter

ROOT = Path(__file__).parents[2]
HEAD = re.compile(r"^(classifier\.|head\.|norm\.|norm_f\.|ln1\.|backbone\.ln1\.|rope\.)")


def published(case: str) -> dict[str, Tensor]:
    """A classifier as published, with values that its names give."""
    file = json.loads((ROOT / "tests" / "parity" / f"{case}.json").read_text())
    return {name: torch.from_numpy(array) for name, array in fill_state_dict(file["state"]).items()}


def dense(case: str, norms: dict[str, int]) -> dict[str, Tensor]:
    """What the authors' detectors keep of it, with the norms that they add."""
    state = {key.removeprefix("backbone."): value for key, value in published(case).items() if not HEAD.match(key)}
    for name, width in norms.items():
        state |= {f"{name}.weight": torch.rand(width), f"{name}.bias": torch.rand(width)}
    return state


def outnorms(*dims: int) -> dict[str, int]:
    return {f"outnorm{i}": dim for i, dim in enumerate(dims)}


FAMILIES = {
    "vmamba_tiny_s1l8": ("vmamba/tiny_s1l8", outnorms(96, 192, 384, 768)),
    "vmamba_v0_tiny": ("vmamba/v0_tiny", outnorms(96, 192, 384, 768)),
    "local_vmamba_tiny": ("local_vmamba/tiny", outnorms(96, 192, 384, 768)),
    "spatial_mamba_tiny": ("spatial_mamba/tiny", outnorms(64, 128, 256, 512)),
    "msvmamba_tiny": ("msvmamba/tiny", outnorms(96, 192, 384, 768)),
    "efficient_vmamba_tiny": ("efficient_vmamba/tiny", outnorms(48, 96, 192, 384)),
    "vssd_micro": ("vssd/micro", outnorms(48, 96, 192, 384)),
    "mamba2d_nano": ("mamba2d/nano", {}),
    "mobile_mamba_b1": ("mobile_mamba/b1", {}),
}


def old_names(key: str) -> str:
    """VMamba's names before February 2024, as in the released files of the first generation."""
    rules = ((r"^patch_embed\.0\.", "patch_embed.proj."), (r"^patch_embed\.2\.", "patch_embed.norm."))
    rules += ((r"(blocks\.\d+)\.norm\.", r"\1.ln_1."), (r"\.op\.", ".self_attention."))
    for pattern, new in rules:
        key = re.sub(pattern, new, key)
    return key


@pytest.mark.parametrize("name", FAMILIES)
def test_hierarchical_detectors(name: str) -> None:
    """Through torch's and MMEngine's loading alike; every value is where the classifier's loading puts it."""
    case, norms = FAMILIES[name]
    state = dense(case, norms)
    if name == "vmamba_v0_tiny":
        state = {old_names(key): value for key, value in state.items()}
    wanted = convert(published(case), visionssm.create_model(name))
    for load in (nn.Module.load_state_dict, load_state_dict):
        detector = nn.ModuleDict({"backbone": VisionSSM(name, out_norm="layer" if norms else "none")})
        load(detector, {f"backbone.{key}": value for key, value in state.items()}, strict=True)
        backbone = detector["backbone"]
        loaded = {key: value for key, value in backbone.model.state_dict().items() if not key.endswith("_tracked")}
        assert all(torch.equal(value, wanted[key]) for key, value in loaded.items())
        for i in range(len(norms)):
            assert torch.equal(backbone.out_norms[i].weight, state[f"outnorm{i}.weight"])


def test_stages_that_are_not_read_are_left_out() -> None:
    """The published SSDLite holds its backbone's last stage; what belongs to no stage is still an error."""
    state = {f"backbone.{key}": value for key, value in dense("mobile_mamba/b1", {}).items()}
    detector = nn.ModuleDict({"backbone": VisionSSM("mobile_mamba_b1", out_indices=(0, 1), out_norm="none")})
    assert any(key.startswith("backbone.blocks3.4.") for key in state)
    detector.load_state_dict(state)
    with pytest.raises(CheckpointError, match=r"1 unexpected: blocks4\.0\.weight"):
        detector.load_state_dict({**state, "backbone.blocks4.0.weight": torch.rand(1)})


def test_published_classifiers_to_start_from(tmp_path: Path) -> None:
    path = tmp_path / "classifier.ckpt"
    torch.save({"state_dict": published("mamba2d/nano"), "epoch": 300}, path)
    backbone = VisionSSM("mamba2d_nano", out_norm="none", init_cfg={"type": "Pretrained", "checkpoint": str(path)})
    backbone.init_weights()
    wanted = convert(published("mamba2d/nano"), visionssm.create_model("mamba2d_nano"))
    assert all(torch.equal(value, wanted[key]) for key, value in backbone.model.state_dict().items())


def test_a_whole_published_detector(tmp_path: Path) -> None:
    """Backbone in the authors' names, neck and heads in MMDetection's, in one training file."""
    config = open_config(ROOT / "configs/detection/ssdlite_mobile_mamba_b1_320.py", "detection")
    config.model.backbone.pop("init_cfg")
    heads = {k: v for k, v in build_model(config, "detection").state_dict().items() if not k.startswith("backbone.")}
    state = {f"backbone.{key}": value for key, value in dense("mobile_mamba/b1", {}).items()}
    path = tmp_path / "ssdlite.pth"
    torch.save({"meta": {"epoch": 120}, "state_dict": {**state, **heads}}, path)
    model = build_model(config, "detection")
    assert load_weights(model, path) == []
    init_default_scope("mmengine")
    loaded = model.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in heads.items())
    wanted = convert(published("mobile_mamba/b1"), visionssm.create_model("mobile_mamba_b1"))
    backbone = {k.removeprefix("backbone.model."): v for k, v in loaded.items() if k.startswith("backbone.model.")}
    assert all(torch.equal(value, wanted[key]) for key, value in backbone.items() if not key.endswith("_tracked"))


def test_plain_segmentors() -> None:
    """PlainMamba counts blocks and keeps its last norm; LocalVim counts outputs, and holds rotary tables of another size."""
    state = {key.removeprefix("backbone."): value for key, value in published("plain_mamba/plain_mamba_l1").items()}
    state = {key: value for key, value in state.items() if not key.startswith("head.")}
    state |= {f"norm_layer{i}.{part}": torch.rand(192) for i in (5, 11, 17) for part in ("weight", "bias")}
    segmentor = nn.ModuleDict({"backbone": VisionSSM("plain_mamba_l1", out_indices=(5, 11, 17, 23), out_norm="model")})
    segmentor.load_state_dict({f"backbone.{key}": value for key, value in state.items()})
    assert torch.equal(segmentor["backbone"].model.norm.weight, state["ln1.weight"])
    assert torch.equal(segmentor["backbone"].out_norms[1].bias, state["norm_layer11.bias"])

    state = dense("local_vim/local_vim_tiny", {f"outnorm_{i}": 192 for i in range(4)})
    state["pos_embed"] = torch.rand(1, 32 * 32, 192)
    segmentor = nn.ModuleDict({"backbone": VisionSSM("local_vim_tiny", out_indices=(4, 9, 14, 19), img_size=512)})
    segmentor.load_state_dict({f"backbone.{key}": value for key, value in state.items()})
    assert torch.equal(segmentor["backbone"].model.pos_embed, state["pos_embed"])
    assert torch.equal(segmentor["backbone"].out_norms[3].weight, state["outnorm_3.weight"])


def adapter_state(dim: int = 192, width: int = 64) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published adapter's own tensors."""
    shapes: dict[str, tuple[int, ...]] = {"level_embed": (3, dim), "up.weight": (dim, dim, 2, 2), "up.bias": (dim,)}

    def norm(name: str, size: int, *, batch: bool = False) -> None:
        shapes.update({f"{name}.weight": (size,), f"{name}.bias": (size,)})
        if batch:
            shapes.update(
                {f"{name}.running_mean": (size,), f"{name}.running_var": (size,), f"{name}.num_batches_tracked": ()}
            )

    def linear(name: str, size: int, out: int) -> None:
        shapes.update({f"{name}.weight": (out, size), f"{name}.bias": (out,)})

    stages = [(f"spm.stem.{3 * i}", 3 if i == 0 else width, width, f"spm.stem.{3 * i + 1}") for i in range(3)]
    stages += [("spm.conv2.0", width, 2 * width, "spm.conv2.1"), ("spm.conv3.0", 2 * width, 4 * width, "spm.conv3.1")]
    stages += [("spm.conv4.0", 4 * width, 4 * width, "spm.conv4.1")]
    for conv, size, out, after in stages:
        shapes[f"{conv}.weight"] = (out, size, 3, 3)
        norm(after, out, batch=True)
    for i, size in enumerate((width, 2 * width, 4 * width, 4 * width)):
        shapes.update({f"spm.fc{i + 1}.weight": (dim, size, 1, 1), f"spm.fc{i + 1}.bias": (dim,)})
        norm(f"ad_norm{i + 1}", dim, batch=True)
    for i in range(4):
        parts = [("injector", 3), ("extractor", 1)]
        parts += [(f"extra_extractors.{j}", 1) for j in range(2)] if i == 3 else []
        for part, levels in parts:
            name = f"interactions.{i}.{part}"
            norm(f"{name}.query_norm", dim)
            norm(f"{name}.feat_norm", dim)
            linear(f"{name}.attn.sampling_offsets", dim, 6 * levels * 4 * 2)
            linear(f"{name}.attn.attention_weights", dim, 6 * levels * 4)
            linear(f"{name}.attn.value_proj", dim, dim)
            linear(f"{name}.attn.output_proj", dim, dim)
            if part == "injector":
                shapes[f"{name}.gamma"] = (dim,)
                continue
            linear(f"{name}.ffn.fc1", dim, dim // 4)
            shapes.update(
                {f"{name}.ffn.dwconv.dwconv.weight": (dim // 4, 1, 3, 3), f"{name}.ffn.dwconv.dwconv.bias": (dim // 4,)}
            )
            linear(f"{name}.ffn.fc2", dim // 4, dim)
            norm(f"{name}.ffn_norm", dim)
    return shapes


def test_plain_detectors_in_an_adapter() -> None:
    own = {key: torch.rand(shape) for key, shape in adapter_state().items()}
    state = {**dense("plain_mamba/plain_mamba_l1", {}), **own}
    detector = nn.ModuleDict({"backbone": VisionSSMAdapter("plain_mamba_l1", interactions=(6, 6, 6, 6))})
    detector.load_state_dict({f"backbone.{key}": value for key, value in state.items()})
    loaded = detector["backbone"].state_dict()
    assert torch.equal(loaded["out_norms.3.running_var"], own["ad_norm4.running_var"])
    for key in ("spm.conv3.0.weight", "interactions.3.extra_extractors.1.ffn.dwconv.dwconv.weight", "level_embed"):
        assert torch.equal(loaded[key], own[key])
    ours = {key for key in loaded if not key.startswith("model.")}
    assert len(ours) == len(own)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("layers.0.blocks.0.op.Ds"), r"1 missing: stages\.0\.blocks\.0\.mixer\.D"),
        (
            lambda state: state.update({"layers.9.extra": torch.rand(1)}),
            r"unexpected: stages\.9\.extra|layers\.9\.extra",
        ),
        (lambda state: state.update({"patch_embed.0.bias": torch.rand(7)}), r"stem\.conv1\.bias: file \(7,\)"),
        (lambda state: state.pop("outnorm2.weight"), r"missing out_norms\.2\.weight"),
        (lambda state: state.update({"outnorm7.weight": torch.rand(1)}), r"unexpected outnorm7\.weight"),
    ],
)
def test_what_does_not_fit_is_named_even_where_strict_is_off(change, message: str) -> None:
    case, norms = FAMILIES["vmamba_tiny_s1l8"]
    state = dense(case, norms)
    change(state)
    detector = nn.ModuleDict({"backbone": VisionSSM("vmamba_tiny_s1l8")})
    with pytest.raises(CheckpointError, match=message):
        detector.load_state_dict({f"backbone.{key}": value for key, value in state.items()}, strict=False)


@pytest.fixture(scope="module")
def demo():
    config = open_config(ROOT / "configs/detection/demo_mask_rcnn_vmamba_nano.py", "detection")
    yield config, build_model(config, "detection")
    init_default_scope("mmengine")


def test_whole_detectors_are_loaded_strictly(demo, tmp_path: Path) -> None:
    config, model = demo
    path = tmp_path / "detector.pth"
    torch.save({"state_dict": model.state_dict(), "meta": {"epoch": 3}}, path)
    again = build_model(config, "detection")
    assert load_weights(again, path) == []
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("neck.lateral_convs.0.conv.bias"), "heads; 1 missing: neck.lateral_convs.0.conv.bias"),
        (lambda s: s.update({"neck.more": torch.rand(1)}), "heads; 1 unexpected: neck.more"),
        (lambda s: s.pop("backbone.model.stem.conv1.bias"), "backbone; 1 missing: backbone.model.stem.conv1.bias"),
        (
            lambda s: s.update({"roi_head.bbox_head.fc_cls.weight": torch.rand(81, 256)}),
            r"trained for other classes: roi_head.bbox_head.fc_cls.weight is \(81, 256\) there, \(11, 256\) here",
        ),
        (lambda s: [s.pop(key) for key in list(s) if key.startswith("backbone.")], "holds no detector or segmentor"),
    ],
)
def test_wrong_checkpoints_give_one_line(demo, change, message: str, tmp_path: Path) -> None:
    _, model = demo
    state = dict(model.state_dict())
    change(state)
    path = tmp_path / "wrong.pth"
    torch.save({"state_dict": state}, path)
    with pytest.raises(UserError, match=message) as caught:
        load_weights(model, path)
    assert "\n" not in str(caught.value)


def test_fine_tuning_leaves_out_other_classes(demo, tmp_path: Path) -> None:
    _, model = demo
    state = dict(model.state_dict())
    state["roi_head.bbox_head.fc_cls.weight"] = torch.rand(81, 256)
    path = tmp_path / "other.pth"
    torch.save({"state_dict": state}, path)
    assert load_weights(model, path, fine_tune=True) == ["roi_head.bbox_head.fc_cls.weight"]


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"])
def test_unreadable_checkpoints(demo, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"broken\.pth .*truncated or no checkpoint"):
        load_weights(demo[1], path)
    with pytest.raises(UserError, match="no checkpoint file at"):
        load_weights(demo[1], tmp_path / "nowhere.pth")
