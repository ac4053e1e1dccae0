"""What timm asks of a model, for every registered classifier.

The checks follow timm's own generic suite (tests/test_models.py of the release), so that its tools work on these models.
"""

import copy
from pathlib import Path

import pytest
import timm
import torch
from timm.models._features_fx import create_feature_extractor, get_graph_node_names
from torch import Tensor, nn

import visionssm
from tests.small import small_models

NAMES = visionssm.list_models(task="classification")
SMALL = small_models("classification")
ORDERLESS = ("vssd_nano", "efficient_vim_nano")  # their mixers see tokens as a set
EACH = [name if name in SMALL else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]


def build(name: str, **options: object) -> nn.Module:
    """A model at a small image size, where the size is an option."""
    size = default_size(name)
    if size != 64 and timm.get_pretrained_cfg_value(name, "fixed_input_size"):
        options.setdefault("img_size", 64)
    return timm.create_model(name, **options)


def default_size(name: str) -> int:
    return timm.get_pretrained_cfg_value(name, "input_size")[-1]


def image(batch: int = 1, channels: int = 3, height: int = 64, width: int = 64) -> Tensor:
    return torch.randn(batch, channels, height, width)


@pytest.fixture(scope="module", params=SMALL)
def small(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return build(request.param).eval()


def is_plain(model: nn.Module) -> bool:
    return model.output_fmt == "NLC"


@pytest.mark.parametrize("name", NAMES)
def test_default_cfg(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    cfg, state = model.default_cfg, model.state_dict()
    classifiers = [cfg["classifier"]] if isinstance(cfg["classifier"], str) else cfg["classifier"]  # two if distilled
    assert all(state[f"{classifier}.weight"].shape[0] == cfg["num_classes"] == 1000 for classifier in classifiers)
    assert cfg["first_conv"] + ".weight" in state
    assert state[cfg["first_conv"] + ".weight"].shape[1] == cfg["input_size"][0] == 3
    assert cfg["license"]
    assert cfg["crop_pct"] == 0.875
    assert cfg["origin_url"].startswith("https://")


@pytest.mark.parametrize("name", EACH)
def test_features_are_of_the_size_that_the_cfg_and_the_model_say(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name).eval()
    features = model.forward_features(torch.empty(1, *model.default_cfg["input_size"], device="meta"))
    pooled = model.forward_head(features, pre_logits=True)
    model.reset_classifier(0)
    without_classifier = model.forward_head(features)
    assert features.shape[-1] == model.num_features
    assert features.dim() == 3 if is_plain(model) else features.shape[1:3] == model.default_cfg["pool_size"]
    assert pooled.shape == without_classifier.shape == (1, model.head_hidden_size)


@pytest.mark.parametrize("name", EACH)
def test_forward_and_a_gradient_for_every_parameter(name: str) -> None:
    model = build(name, num_classes=42).train()
    logits = model(image(2))
    assert logits.shape == (2, 42)
    assert logits.isfinite().all()
    logits.mean().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not without


@pytest.mark.parametrize("name", EACH)
def test_features_only(name: str) -> None:
    with torch.device("meta"):
        stages = len(timm.create_model(name).feature_info)
    model = build(name, features_only=True, out_indices=tuple(range(min(stages, 4)))).eval()
    with torch.no_grad():
        maps = model(image(1, 3, 96, 64))
    info = model.feature_info
    assert len(maps) == min(stages, 4) >= 3
    for feature, channels, stride in zip(maps, info.channels(), info.reduction(), strict=True):
        assert feature.shape[:2] == (1, channels)
        assert feature.shape[2] in (96 // stride, (96 - 1) // stride + 1, 96 // stride - 1)
        assert feature.isfinite().all()


def test_defaults_of_features_only_are_four_strides_or_the_last_blocks() -> None:
    assert timm.create_model("vmamba_nano", features_only=True).feature_info.reduction() == [4, 8, 16, 32]
    assert timm.create_model("vim_nano", features_only=True).feature_info.reduction() == [8, 8, 8]
    assert timm.create_model("vim_nano", features_only=True, depth=2).feature_info.reduction() == [8, 8]


def test_head_can_be_reset(small: nn.Module) -> None:
    model = build(small.default_cfg["architecture"]).eval()
    x = image(2)
    features = model.forward_features(x)
    model.reset_classifier(0)
    assert model(x).shape == (2, model.head_hidden_size)
    torch.testing.assert_close(model(x), model.forward_head(features, pre_logits=True))
    model.reset_classifier(0, "")
    assert model(x).shape == features.shape
    model.reset_classifier(7, "avg")
    assert model(x).shape == (2, 7)
    assert model.get_classifier().out_features == 7 == model.num_classes


def test_forward_intermediates(small: nn.Module) -> None:
    x = image(2, 3, 64, 96)
    with torch.no_grad():
        last, maps = small.forward_intermediates(x)
        torch.testing.assert_close(last, small.forward_features(x))
        assert [m.shape[1] for m in maps] == [info["num_chs"] for info in small.feature_info]
        assert all(m.shape[3] > m.shape[2] for m in maps)
        only = small.forward_intermediates(x, indices=[1], intermediates_only=True, stop_early=True)
        torch.testing.assert_close(only[0], maps[1])
        channels_last = small.forward_intermediates(x, indices=[1], intermediates_only=True, output_fmt="NHWC")
        torch.testing.assert_close(channels_last[0].permute(0, 3, 1, 2), maps[1])
    with pytest.raises(AssertionError, match="Output format"):
        small.forward_intermediates(x, output_fmt="CHWN")


def test_pruning_keeps_the_first_features(small: nn.Module) -> None:
    model = build(small.default_cfg["architecture"]).eval()
    x = image()
    with torch.no_grad():
        wanted = model.forward_intermediates(x, indices=[1], intermediates_only=True)
        assert model.prune_intermediate_layers([1], prune_norm=True) == [1]
        got = model.forward_intermediates(x, indices=[1], intermediates_only=True)
    torch.testing.assert_close(got[0], wanted[0])
    assert model.num_classes == 0


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (72, 88), (104, 56)])
def test_any_size(small: nn.Module, size: tuple[int, int]) -> None:
    with torch.no_grad():
        assert small(image(1, 3, *size)).isfinite().all()


def test_weights_may_be_channels_last(small: nn.Module) -> None:
    x = image(2)
    converted = copy.deepcopy(small).to(memory_format=torch.channels_last)
    with torch.no_grad():
        torch.testing.assert_close(converted(x.contiguous(memory_format=torch.channels_last)), small(x))


def test_input_variants(small: nn.Module) -> None:
    x = image(2)
    with torch.no_grad():
        wanted = small(x)
        torch.testing.assert_close(small(x.contiguous(memory_format=torch.channels_last)), wanted)
        torch.testing.assert_close(small(x[:1]), wanted[:1])
        assert small(image(0)).shape == (0, 1000)
        grey = build(small.default_cfg["architecture"], in_chans=1).eval()
        assert grey(image(1, 1)).shape == (1, 1000)
    with pytest.raises((RuntimeError, ValueError), match="channels"):
        small(image(1, 4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_neither_breaks_nor_drifts(small: nn.Module, dtype: torch.dtype) -> None:
    x = image(2)
    with torch.no_grad():
        wanted = small(x)
        with torch.autocast("cpu", dtype):
            got = small(x)
    assert got.isfinite().all()
    # the rounding of each of some dozens of layers adds up to a few times that of one
    assert (got.float() - wanted).abs().max() <= 16 * torch.finfo(dtype).eps * wanted.abs().max()


def test_gradient_checkpointing_changes_no_gradient(small: nn.Module) -> None:
    model = build(small.default_cfg["architecture"]).train()
    x = image(2)

    def gradients() -> list[Tensor]:
        return list(torch.autograd.grad(model(x).square().mean(), list(model.parameters())))

    wanted = gradients()
    model.set_grad_checkpointing()
    for one, other in zip(gradients(), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_scripts(small: nn.Module) -> None:
    x = image(1, 3, 64, 96)
    scripted = torch.jit.script(small)
    with torch.no_grad():
        torch.testing.assert_close(scripted(x), small(x))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # what is computed from sizes is traced all the same
def test_traces_for_any_size(small: nn.Module) -> None:
    traced = torch.jit.trace(small, image(1, 3, 64, 96), check_trace=False)
    with torch.no_grad():
        for size in ((1, 64, 96), (2, 64, 64), (1, 96, 128)):
            x = image(size[0], 3, *size[1:])
            torch.testing.assert_close(traced(x), small(x))


def test_traces_symbolically(small: nn.Module) -> None:
    """With FX, as timm's feature extraction uses it; gradients flow through the graph."""
    _, names = get_graph_node_names(small)
    extractor = create_feature_extractor(small, [names[-1]])
    x = image(1, 3, 64, 96)
    (output,) = extractor(x).values()
    torch.testing.assert_close(output, small(x))
    output.mean().backward()


@pytest.mark.slow
def test_compiles_into_one_graph(small: nn.Module) -> None:
    x = image(1, 3, 64, 96)
    compiled = torch.compile(small, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), small(x))
    torch._dynamo.reset()


@pytest.mark.slow
def test_exports_with_open_height_and_width(small: nn.Module) -> None:
    open_size = ({2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC},)
    # torch.export takes a side of 1 for fixed: MSVMamba's coarse maps have that at 64 pixels, MobileMamba's wavelets at 128
    program = torch.export.export(small, (image(1, 3, 160, 160),), dynamic_shapes=open_size)
    x = image(1, 3, 224, 192)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), small(x))


def test_parameter_groups(small: nn.Module) -> None:
    from timm.optim import create_optimizer_v2, param_groups_layer_decay

    undecayed = small.no_weight_decay()
    names = dict(small.named_parameters())
    assert {name for name in undecayed if "." in name} <= set(names)  # tables such as cls_token may be absent
    assert {name for name in names if name.endswith(".D")} <= undecayed
    groups = param_groups_layer_decay(small, weight_decay=0.05, layer_decay=0.9)
    scales = {group["lr_scale"] for group in groups}
    assert len(scales) > 3
    assert max(scales) == 1.0
    assert sum(len(group["params"]) for group in groups) == len(names)
    create_optimizer_v2(small, opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.9)


def test_another_scan_order_by_name_or_options(small: nn.Module) -> None:
    x = image()
    torch.manual_seed(0)
    name = small.default_cfg["architecture"]
    if name in ORDERLESS:
        pytest.skip("has no order")
    outputs = []
    for scan in ("raster", "hilbert", {"name": "window", "directions": ["w2", "w4_flip"]}):
        torch.manual_seed(0)
        model = build(name, scan=scan).eval()
        with torch.no_grad():
            outputs.append(model(x))
    assert not torch.allclose(outputs[0], outputs[1])
    assert not torch.allclose(outputs[1], outputs[2])


def test_wrong_scan_names_the_close_ones() -> None:
    with pytest.raises(ValueError, match="hilbert"):
        visionssm.create_model("vmamba_nano", scan="hilbrt")


def test_unknown_model_names_the_close_ones() -> None:
    with pytest.raises(ValueError, match="vmamba_tiny_s1l8"):
        visionssm.create_model("vmamba_tiny_s1l9")


def test_unknown_weights_name_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"unknown weights 'vim_tiny\.in22k': 'vim_tiny' has the tags 'in1k'"):
        visionssm.create_model("vim_tiny.in22k")


def test_images_that_a_model_does_not_take_are_named(small: nn.Module) -> None:
    message = r"images must be \(B, 3, H, W\), got the shape \[{}\]; in_chans= builds a model for other channels"
    for wrong in (image(1, 1), image()[0]):
        with pytest.raises(ValueError, match=message.format(", ".join(map(str, wrong.shape)))):
            small(wrong)
        with pytest.raises(ValueError, match="images must be"):
            small.forward_intermediates(wrong)
    with pytest.raises(TypeError, match="images must be floating point"):
        small(image().byte())


def test_image_sizes_that_make_no_grid_are_named() -> None:
    with pytest.raises(ValueError, match=r"img_size must be one side or \(H, W\), got \(64,\)"):
        visionssm.create_model("vim_nano", img_size=(64,))


def test_unknown_option_is_an_error() -> None:
    with pytest.raises(TypeError, match="dept"):
        visionssm.create_model("vmamba_nano", dept=3)


def test_safetensors_roundtrip_through_timm(small: nn.Module, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    file = tmp_path / "model.safetensors"
    save_file(small.state_dict(), file)
    again = build(small.default_cfg["architecture"], checkpoint_path=str(file)).eval()
    x = image()
    with torch.no_grad():
        torch.testing.assert_close(again(x), small(x), rtol=0, atol=0)
