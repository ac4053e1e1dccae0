"""Every segmentation network: sizes, refusals, training, how it leaves Python; then what is U-Mamba's and LightM-UNet's own."""

import io
import math
import warnings

import pytest
import torch
from torch import nn
from torch.export import Dim

import visionssm
from tests.parity.cases import load_cases
from tests.parity.families import HERE, torch_weights
from tests.tolerances import TOLERANCES
from visionssm.analysis import count_operations
from visionssm.checkpoints import CheckpointError, convert
from visionssm.models import pretrained_cfg
from visionssm.models.mamba_nd import MambaNDVideo
from visionssm.models.u_mamba import ChannelMamba, PositionMamba

TOLERANCE = TOLERANCES[torch.float32]
NANO = visionssm.list_models("*_nano", "volume")
SMALL = {  # fewer channels and stages, to be quick
    "segmamba_nano": {"dims": (4, 8), "depths": (1, 1), "d_state": 2},
    "u_mamba_nano": {"dims": (4, 8, 8), "depth": 1, "d_state": 2},
    "light_m_unet_nano": {"dim": 8, "d_state": 2},
    "mamba_nd_3d_nano": {"dim": 8, "feature_size": 2, "img_size": 32, "taken": (0, 1, 2, 3), "d_state": 2},
}
IMAGES_TOO = [name for name in NANO if name != "mamba_nd_3d_nano"]
PARAMETERS = {
    "u_mamba_bot_2d": 2_816_629,
    "u_mamba_enc_2d": 2_443_893,
    "u_mamba_bot_3d": 7_325_802,
    "light_m_unet_2d": 5_011_765,
    "light_m_unet_3d": 5_015_766,
}


def small(name: str, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return visionssm.create_model(name, **{**SMALL[name], **options}).eval()


@pytest.mark.parametrize("name", PARAMETERS)
def test_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        model = visionssm.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


# --- every network ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size"), [(name, (5, 6, 9)) for name in NANO] + [(name, (7, 12)) for name in IMAGES_TOO]
)
def test_any_size_is_a_padded_one_that_is_cropped(name: str, size: tuple[int, ...]) -> None:
    rank = {"spatial_dims": len(size)} if name in IMAGES_TOO else {}
    model = small(name, **rank, in_chans=2, num_classes=3)
    x = torch.randn(2, 2, *size)
    inside = (..., *(slice(side) for side in size))
    padded = torch.zeros(2, 2, *(side + -side % s for side, s in zip(size, model.strides, strict=True)))
    padded[inside] = x
    with torch.no_grad():
        logits = model(x)
        assert logits.shape == (2, 3, *size)
        torch.testing.assert_close(logits, model(padded)[inside], **TOLERANCE)


@pytest.mark.parametrize("name", NANO)
def test_inputs_that_are_refused(name: str) -> None:
    for shape in ((1, 3, 8, 8, 8), (1, 8, 8), (1, 1, 8, 8)):
        with pytest.raises(ValueError, match=r"takes \(B, 1, D, H, W\), got"):
            small(name)(torch.zeros(shape))
    with pytest.raises(ValueError, match="rank"):
        small(name, scan="nd_2d")
    if name in IMAGES_TOO:
        with pytest.raises(ValueError, match="2 or 3, got 4"):
            small(name, spatial_dims=4)
    with pytest.raises(TypeError):
        small(name, dimensions=3)


@pytest.mark.parametrize("name", NANO)
def test_the_scan_matters_and_is_exchangeable(name: str) -> None:
    x = torch.randn(1, 1, *[8 if name in IMAGES_TOO else 32] * 3)
    default, other = small(name), small(name, scan={"name": "axes", "orders": ["hwd_flip"], "ndim": 3})
    with torch.no_grad():
        assert (default(x) - other(x)).abs().max() > 1e-4


@pytest.mark.parametrize("name", NANO)
def test_every_parameter_learns_and_checkpointing_changes_nothing(name: str) -> None:
    """All but the further heads, which are frozen until deep supervision reads them."""
    model, x = small(name).train(), torch.randn(1, 1, 8, 8, 16)
    gradients = []
    for enabled in (False, True):
        model.set_grad_checkpointing(enabled)
        model.zero_grad()
        model(x).square().mean().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    frozen = {n for n, _ in model.named_parameters()} - set(gradients[0])
    assert all(n.startswith("further_heads.") for n in frozen)
    for n, gradient in gradients[0].items():
        assert gradient is not None, n
        torch.testing.assert_close(gradients[1][n], gradient, **TOLERANCE)


@pytest.mark.parametrize("name", NANO)
def test_script_trace_save(name: str) -> None:
    model, x = small(name), torch.randn(1, 1, 7, 8, 9)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # sizes are fixed in a trace
        wanted = model(x)
        for made in (torch.jit.script(model), torch.jit.trace(model, x, check_trace=False)):
            file = io.BytesIO()
            torch.jit.save(made, file)
            file.seek(0)
            torch.testing.assert_close(torch.jit.load(file)(x), wanted, **TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("name", NANO)
def test_export_of_any_number_of_planes(name: str) -> None:
    model = small(name)
    side = max(4, model.strides[0])
    x, other = torch.randn(1, 1, 2 * side, 2 * side, 3 * side), torch.randn(1, 1, 4 * side, 2 * side, 3 * side)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own while exporting
        shapes = ({2: side * Dim("planes", min=2, max=16)},)
        program = torch.export.export(model, (x,), dynamic_shapes=shapes, strict=False)
        torch.testing.assert_close(program.module()(other), model(other), **TOLERANCE)


@pytest.mark.parametrize("name", NANO)
def test_weights_that_are_not_there_and_that_do_not_fit(name: str) -> None:
    with pytest.raises(ValueError, match=f"weights of {name}"):
        visionssm.create_model(name, pretrained=True)
    state = dict(small(name).state_dict())
    visionssm.load_official(small(name), state)
    state.pop("encoder.stages.0.0.conv1.weight", None)
    state.pop(next(iter(state)))
    with pytest.raises(CheckpointError, match="missing"):
        visionssm.load_official(small(name), state)


# --- U-Mamba ----------------------------------------------------------------------------------------------------


def mixers(model: nn.Module) -> list[int]:
    """Per stage: 0 for none, 1 for positions, the width of a token for channels."""
    kinds = {nn.Identity: lambda m: 0, PositionMamba: lambda m: 1, ChannelMamba: lambda m: m.norm.weight.numel()}
    return [kinds[type(mixer)](mixer) for mixer in model.encoder.mixers]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [1, 1, 1]),
        ({"mamba": "bottom"}, [0, 0, 1]),
        ({"mamba": "bottom", "img_size": 8}, [0, 0, 1]),  # roles are swapped along the encoder only
        ({"spatial_dims": 2}, [1, 0, 1]),
        ({"spatial_dims": 2, "dims": (4, 8, 8, 16), "strides": (1, 2, 2, 2), "kernel_sizes": (3,) * 4}, [0, 1, 0, 1]),
        ({"img_size": 8}, [1, 1, 8]),
        ({"img_size": (8, 8, 12)}, [1, 1, 1]),
        ({"spatial_dims": 2, "img_size": (8, 4)}, [1, 0, 2]),
    ],
)
def test_which_stages_scan_what(options: dict, expected: list[int]) -> None:
    assert mixers(small("u_mamba_nano", **options)) == expected


def test_channels_as_tokens_take_one_size_only() -> None:
    model = small("u_mamba_nano", img_size=(8, 4), spatial_dims=2)
    with torch.no_grad():
        assert model(torch.randn(2, 1, 8, 4)).shape == (2, 2, 8, 4)
    with pytest.raises(ValueError, match=r"img_size=\(8, 4\), got \(4, 8\); img_size=None takes any size"):
        model(torch.zeros(1, 1, 4, 8))
    state = small("u_mamba_nano", img_size=8).state_dict()
    with pytest.raises(CheckpointError, match=r"mixers\.2\.norm\.weight: file \(8,\), model \(1,\)"):
        visionssm.load_official(small("u_mamba_nano", img_size=4), state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mamba": "everywhere"}, "'bottom' or 'encoder', got 'everywhere'"),
        ({"strides": (2, 2, 2)}, "the first of strides must be 1"),
        ({"strides": (1, 2)}, "one entry per stage"),
        ({"strides": (1, (2, 2), 2)}, r"strides must be sides of at least 1, one or 3 of them, got \(2, 2\)"),
        ({"img_size": 10}, r"multiples of \(4, 4, 4\), got \(10, 10, 10\)"),
        ({"scan": ["raster"]}, "scan lists 1 orders, but the model has 3 layers"),
    ],
)
def test_plans_that_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small("u_mamba_nano", **options)


def test_too_small_for_an_instance_norm() -> None:
    model = small("u_mamba_nano", strides=(1, (1, 2, 2), 2))
    with pytest.raises(ValueError, match=r"too small.*\(2, 4, 4\) times smaller.*2 positions"):
        model(torch.zeros(1, 1, 2, 4, 4))
    with torch.no_grad():
        assert model(torch.zeros(1, 1, 3, 4, 4)).shape == (1, 2, 3, 4, 4)


def test_a_plan_of_the_paper() -> None:
    """Abdominal CT: six stages, the thin axis spared at first; residual blocks as the published class counts them."""
    with torch.device("meta"):
        model = visionssm.create_model(
            "u_mamba_bot_3d",
            dims=(32, 64, 128, 256, 320, 320),
            strides=(1, (1, 2, 2), 2, 2, 2, (1, 2, 2)),
            kernel_sizes=((1, 3, 3), 3, 3, 3, 3, 3),
        )
    assert model.strides == [8, 32, 32]
    assert [len(stage) for stage in model.encoder.stages] == [2, 2, 2, 1, 1, 1]
    assert [len(up.blocks) for up in model.decoder.ups] == [2, 2, 2, 1, 1]
    assert count_operations(model, (1, 40, 224, 192)).macs > 0


def test_upsampling_after_the_convolution_is_upsampling_before_it() -> None:
    up = small("u_mamba_nano").decoder.ups[0]
    x, skip = torch.randn(1, 8, 2, 3, 4), torch.randn(1, 8, 4, 6, 8)
    with torch.no_grad():
        published = up.blocks(torch.cat([up.conv(up.resize(x)), skip], 1))
        torch.testing.assert_close(up(x, skip), published, **TOLERANCE)


def test_an_nnunet_file_and_one_of_another_kind() -> None:
    case = next(case for case in load_cases(HERE / "u_mamba" / "bot_2d.json") if case.name == "grad")
    weights = torch_weights(case)
    model = visionssm.create_model("u_mamba_bot_2d")
    visionssm.load_official(model, {"network_weights": weights, "current_epoch": 3})
    assert torch.equal(model.head.weight, weights["decoder.seg_layers.2.weight"])
    assert torch.equal(model.further_heads[1].bias, weights["decoder.seg_layers.0.bias"])
    with pytest.raises(CheckpointError, match=r"encoder\.mixers\.1"):
        visionssm.load_official(visionssm.create_model("u_mamba_enc_2d"), weights)


# --- Mamba-ND ---------------------------------------------------------------------------------------------------


def test_mamba_nd_reads_a_volume_along_one_route_per_layer() -> None:
    model = small("mamba_nd_3d_nano", taken=(1, 3, 5, 6))
    tables = [layer.mixer.paths.scan.routes((2, 3, 4))[0] for layer in model.encoder.layers]
    volume = torch.arange(24).view(2, 3, 4)
    straight = [volume, volume.permute(0, 2, 1), volume.permute(2, 1, 0)]  # d h w, d w h, w h d
    cycle = [path for order in straight for path in (order.flatten(), order.flatten().flip(0))]
    assert all(torch.equal(one, other) for one, other in zip(tables, [*cycle, cycle[0]], strict=True))
    with torch.no_grad():
        maps = model.encoder(torch.randn(2, 1, 32, 48, 16))
    assert [m.shape for m in maps] == [(2, 8, 2, 3, 1)] * 4


def published_layer(dim: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a norm and the Mamba behind it, N = 16."""
    inner, rank = 2 * dim, -(-dim // 16)
    shapes: dict[str, tuple[int, ...]] = {"norm.weight": (dim,), "norm.bias": (dim,), "mixer.A_log": (inner, 16)}
    shapes |= {"mixer.D": (inner,), "mixer.in_proj.weight": (2 * inner, dim), "mixer.out_proj.weight": (dim, inner)}
    shapes |= {"mixer.conv1d.weight": (inner, 1, 4), "mixer.conv1d.bias": (inner,)}
    shapes |= {"mixer.x_proj.weight": (rank + 32, inner)}
    shapes |= {"mixer.dt_proj.weight": (inner, rank), "mixer.dt_proj.bias": (inner,)}
    return shapes


def published_for_btcv(dim: int, width: int, classes: int, side: int, layers: int) -> dict[str, torch.Tensor]:
    """The tensors of UNETR with Mamba-ND in ViT's place, in the published names and shapes, N = 16."""
    shapes: dict[str, tuple[int, ...]] = {
        "vit.patch_embed.projection.weight": (dim, 1, 16, 16, 16),
        "vit.patch_embed.projection.bias": (dim,),
        "vit.pos_embed": (1, side**3, dim),
        "out.conv.conv.weight": (classes, width, 1, 1, 1),
        "out.conv.conv.bias": (classes,),
    }
    for i in range(layers):
        shapes |= {f"vit.layers.{i}.{name}": shape for name, shape in published_layer(dim).items()}

    def residual(name: str, chans: int, dim: int) -> None:
        for conv, (inputs, kernel) in {"conv1": (chans, 3), "conv2": (dim, 3), "conv3": (chans, 1)}.items():
            if conv != "conv3" or chans != dim:
                shapes[f"{name}.{conv}.conv.weight"] = (dim, inputs, *[kernel] * 3)

    residual("encoder1.layer", 1, width)
    for level, more in ((2, 2), (3, 1), (4, 0)):
        skip = width << level - 1
        shapes[f"encoder{level}.transp_conv_init.conv.weight"] = (dim, skip, 2, 2, 2)
        for i in range(more):
            shapes[f"encoder{level}.blocks.{i}.0.conv.weight"] = (skip, skip, 2, 2, 2)
            residual(f"encoder{level}.blocks.{i}.1", skip, skip)
    for level, wider in ((5, dim), (4, 8 * width), (3, 4 * width), (2, 2 * width)):
        finer = width << level - 2
        shapes[f"decoder{level}.transp_conv.conv.weight"] = (wider, finer, 2, 2, 2)
        residual(f"decoder{level}.conv_block", 2 * finer, finer)
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def test_mamba_nd_reads_the_published_layout_for_volumes(tmp_path) -> None:
    """Strictly; the layer that nobody reads there is dropped, and tables of another grid are resized."""
    options = {"dim": 8, "feature_size": 2, "d_state": 16, "img_size": 48}
    published = published_for_btcv(8, 2, 2, side=3, layers=5)
    model = small("mamba_nd_3d_nano", **options)
    visionssm.load_official(model, {"epoch": 7, "best_acc": 0.8, "state_dict": published})
    table = published["vit.pos_embed"].view(3, 3, 3, 8)
    assert torch.equal(model.encoder.pos_embed[0, :, 2, 0, 1], table[2, 0, 1])
    layer = model.encoder.layers[3].mixer
    assert torch.equal(layer.conv_weight[0], published["vit.layers.3.mixer.conv1d.weight"].squeeze(1))
    assert torch.equal(layer.A_log[0], published["vit.layers.3.mixer.A_log"])
    names = {  # ours, theirs
        "decoder.skips.0.blocks.1.0.conv.weight": "encoder2.blocks.1.0.conv.weight",
        "decoder.ups.0.transp_conv.conv.weight": "decoder5.transp_conv.conv.weight",
        "decoder.ups.3.conv_block.conv3.conv.weight": "decoder2.conv_block.conv3.conv.weight",
        "head.weight": "out.conv.conv.weight",
    }
    assert all(torch.equal(model.get_parameter(ours), published[theirs]) for ours, theirs in names.items())

    less = {name: value for name, value in published.items() if name != "vit.layers.2.mixer.D"}
    with pytest.raises(CheckpointError, match=r"1 missing: encoder\.layers\.2\.mixer\.D"):
        visionssm.load_official(model, less)
    deeper = published_for_btcv(8, 2, 2, side=3, layers=6)
    with pytest.raises(CheckpointError, match=r"11 unexpected: encoder\.layers\.5\.norm\.weight"):
        visionssm.load_official(model, deeper)
    with pytest.raises(CheckpointError, match="26 patches are not those of a cube"):
        visionssm.load_official(model, {**published, "vit.pos_embed": published["vit.pos_embed"][:, 1:]})

    torch.save({"state_dict": published}, tmp_path / "small.pt")
    other = small("mamba_nd_3d_nano", **{**options, "img_size": (32, 64, 48)}, num_classes=5)
    other.load_pretrained(tmp_path / "small.pt")
    assert other.encoder.pos_embed.shape == (1, 8, 2, 4, 3)
    assert torch.equal(other.decoder.first.layer.conv1.conv.weight, published["encoder1.layer.conv1.conv.weight"])
    assert other.head.weight.shape == (5, 2, 1, 1, 1)


@pytest.mark.parametrize("variant", ["small", "small_plus", "base", "base_64"])
def test_mamba_nd_variants_have_the_published_shapes(variant: str) -> None:
    dim, width = {"small": (384, 32), "small_plus": (512, 32), "base": (768, 32), "base_64": (768, 64)}[variant]
    with torch.device("meta"):
        model = visionssm.create_model(f"mamba_nd_3d_{variant}")
        published = published_for_btcv(dim, width, 14, side=6, layers=24)
    converted = convert(published, model)
    ours = {name: value.shape for name, value in model.state_dict().items()}
    assert {name: value.shape for name, value in converted.items()} == ours
    assert pretrained_cfg(f"mamba_nd_3d_{variant}").hf_hub_filename.startswith("btcv/mamband-")


@pytest.mark.parametrize("source", ["action", "kinetics"])
def test_mamba_nd_reads_the_published_layouts_for_videos(source: str) -> None:
    prefix, wrapper = ("backbone.", "state_dict") if source == "action" else ("", "module")
    shapes: dict[str, tuple[int, ...]] = {"patch_embed.projection.weight": (8, 3, 2, 4, 4)}
    shapes |= {"patch_embed.projection.bias": (8,), "pos_embed": (1, 3 * 2 * 2, 8)}
    shapes |= {f"layers.{i}.{name}": shape for i in range(7) for name, shape in published_layer(8).items()}
    shapes = {prefix + name: shape for name, shape in shapes.items()}
    if source == "action":
        shapes |= {"cls_head.fc_cls.weight": (5, 8), "cls_head.fc_cls.bias": (5,)}
    else:
        shapes |= {"head.0.weight": (8,), "head.0.bias": (8,), "head.1.weight": (5, 8), "head.1.bias": (5,)}
    published = {name: 0.2 * torch.randn(shape) for name, shape in shapes.items()}

    def fresh(frames: int) -> MambaNDVideo:
        size, norm = (frames, 8, 8), source == "kinetics"
        return MambaNDVideo(img_size=size, patch_size=(2, 4, 4), num_classes=5, dim=8, depth=7, head_norm=norm).eval()

    model = fresh(6)
    visionssm.load_official(model, {wrapper: published, "epoch": 3})
    table = published[prefix + "pos_embed"].view(3, 2, 2, 8)
    assert torch.equal(model.encoder.pos_embed[0, :, 2, 0, 1], table[2, 0, 1])
    assert torch.equal(model.get_parameter("encoder.layers.6.mixer.D")[0], published[prefix + "layers.6.mixer.D"])
    with pytest.raises(CheckpointError, match=r"12 patches, but img_size and patch_size make \(2, 2, 2\)"):
        visionssm.load_official(fresh(4), published)

    with pytest.raises(ValueError, match=r"takes \(B, 3, T, H, W\), got \[2, 6, 3, 8, 8\]"):
        model(torch.zeros(2, 6, 3, 8, 8))
    x = torch.randn(2, 3, 6, 12, 9)  # any size: what does not fill a patch is not seen
    with torch.no_grad():
        logits = model(x)
        torch.testing.assert_close(model(x[..., :8]), logits, **TOLERANCE)
        torch.testing.assert_close(torch.jit.script(model)(x), logits, **TOLERANCE)
        vector = model.forward_features(x).mean((2, 3, 4))
        if source == "kinetics":
            vector = torch.nn.functional.layer_norm(vector, (8,), published["head.0.weight"], published["head.0.bias"])
        weight, bias = (published[name] for name in list(published)[-2:])
        torch.testing.assert_close(logits, vector @ weight.T + bias, **TOLERANCE)


def test_mamba_nd_for_videos_has_the_published_shapes() -> None:
    with torch.device("meta"):
        action, kinetics = MambaNDVideo(), MambaNDVideo(patch_size=(1, 16, 16), img_size=(16, 224, 224), head_norm=True)
    assert action.encoder.pos_embed.shape == kinetics.encoder.pos_embed.shape == (1, 384, 16, 14, 14)
    layers = 36 * sum(math.prod(shape) for shape in published_layer(384).values())
    rest = 384 * (16 * 14 * 14 + 1 + 400) + 400
    assert sum(p.numel() for p in action.parameters()) == layers + rest + 384 * 3 * 512
    assert sum(p.numel() for p in kinetics.parameters()) == layers + rest + 384 * 3 * 256 + 2 * 384


@pytest.mark.parametrize(
    ("options", "message"),
    [({"img_size": 40}, "multiple of 16"), ({"taken": (0, 2, 1, 3)}, "four layers in their order")],
)
def test_volume_forms_that_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small("mamba_nd_3d_nano", **options)


# --- LightM-UNet ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 12}, "multiple of 8, got 12"),
        ({"up_depths": (1,)}, "one entry less"),
        ({"depths": (1,), "up_depths": ()}, "two stages or more"),
        ({"scan": ["raster"] * 7}, "the model has 8 layers"),
    ],
)
def test_configurations_that_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small("light_m_unet_nano", **options)


def test_one_position_at_the_bottom_is_enough() -> None:
    with torch.no_grad():
        assert small("light_m_unet_nano")(torch.zeros(1, 1, 1, 4, 3)).shape == (1, 2, 1, 4, 3)
