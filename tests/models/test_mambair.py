"""What is MambaIR's own, and the frame that all restoration networks share: heads, sizes, files, weights records."""

from pathlib import Path

import pytest
import timm
import torch

import visionssm
from tests import tolerances
from tests.parity.cases import load_cases
from tests.parity.families import HERE, torch_weights
from visionssm.checkpoints import CheckpointError
from visionssm.layers import pad_to_multiple
from visionssm.models import pretrained_cfg

NANO = ["mair_nano_x2", "mambair_nano_x2", "mambair_unet_nano", "mambairv2_nano_x2"]
RESTORATION = visionssm.list_models(task="restoration")
FAMILY_FILES = [p for f in ("mambair", "mambairv2", "mair") for p in sorted((HERE / f).glob("*.json"))]


def scale_of(model: torch.nn.Module) -> int:
    return getattr(model, "upscale", 1)


@pytest.mark.parametrize("path", FAMILY_FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_number_of_parameters(path: Path) -> None:
    case = load_cases(path)[0]
    with torch.device("meta"):
        model = visionssm.create_model(f"{case.family}_{case.variant}")
    assert sum(p.numel() for p in model.parameters()) == case.file["params"]


@pytest.mark.parametrize("name", NANO)
@pytest.mark.parametrize("size", [(1, 1), (7, 13), (16, 24)])
def test_any_size(name: str, size: tuple[int, int]) -> None:
    model = visionssm.create_model(name).eval()
    with torch.no_grad():
        y = model(torch.rand(2, 3, *size))
    assert y.shape == (2, 3, scale_of(model) * size[0], scale_of(model) * size[1])
    assert y.isfinite().all()
    assert model(torch.rand(0, 3, *size)).shape == (0, *y.shape[1:])


@pytest.mark.parametrize("name", NANO)
@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 1, 8, 8), (1, 3, 0, 8)])
def test_other_shapes_are_refused(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must be \(B, 3, H, W\)"):
        visionssm.create_model(name)(torch.rand(shape))


@pytest.mark.parametrize("name", NANO)
def test_other_channels(name: str) -> None:
    model = visionssm.create_model(name, in_chans=1).eval()
    assert model(torch.rand(1, 1, 8, 8)).shape[1] == 1


@pytest.mark.parametrize("name", NANO)
def test_checkpointed_gradients_are_the_same(name: str) -> None:
    model = visionssm.create_model(name).eval()
    x = torch.rand(1, 3, 9, 8)
    found = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(x).square().sum().backward()
        found.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NANO)
def test_autocast(name: str) -> None:
    model = visionssm.create_model(name).eval()
    x = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        wanted = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            got = model(x)
    assert got.isfinite().all()
    assert (got - wanted).abs().max() <= 5e-2 * wanted.abs().max()


@pytest.mark.parametrize("name", ["mair_nano_x2", "mambair_nano_x2", "mambair_unet_nano"])
def test_any_scan_order(name: str) -> None:
    torch.manual_seed(0)
    hilbert = visionssm.create_model(name, scan="hilbert").eval()
    x = torch.rand(1, 3, 8, 8)
    assert hilbert(x).isfinite().all()
    assert any("hilbert" in repr(module) for module in hilbert.modules())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"upsampler": "bicubic"}, "upsampler must be one of"),
        ({"upscale": 5, "upsampler": "pixelshuffle"}, "by 3 or by a power of 2, got upscale=5"),
        ({"upscale": 2, "upsampler": "nearest+conv"}, "by 4, got upscale=2"),
        ({"upscale": 2, "upsampler": "none"}, "keeps the size, got upscale=2"),
    ],
)
def test_heads_that_do_not_fit(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        visionssm.create_model("mambair_nano_x2", **options)


@pytest.mark.parametrize(
    ("upsampler", "upscale"), [("nearest+conv", 4), ("pixelshuffle", 8), ("pixelshuffle", 3), ("none", 1)]
)
def test_heads(upsampler: str, upscale: int) -> None:
    model = visionssm.create_model("mambair_nano_x2", upsampler=upsampler, upscale=upscale).eval()
    assert model(torch.rand(1, 3, 5, 6)).shape == (1, 3, 5 * upscale, 6 * upscale)


def test_a_head_of_zeros_gives_the_mean_or_the_image() -> None:
    x = torch.rand(1, 3, 5, 6)
    for upsampler, upscale in (("pixelshuffle", 2), ("none", 1)):
        model = visionssm.create_model("mambair_nano_x2", upsampler=upsampler, upscale=upscale, img_range=255.0).eval()
        torch.nn.init.zeros_(model.head.conv_last.weight)
        torch.nn.init.zeros_(model.head.conv_last.bias)
        wanted = x if upsampler == "none" else model.mean.expand(1, 3, 10, 12)
        torch.testing.assert_close(model(x), wanted, **tolerances.TOLERANCES[torch.float32])


def test_padding_mirrors_with_the_edge_repeated() -> None:
    x = torch.arange(3.0).view(1, 1, 1, 3)
    assert pad_to_multiple(x, 8)[0, 0, 0].tolist() == [0, 1, 2, 2, 1, 0, 0, 1]
    assert pad_to_multiple(x, 8).shape == (1, 1, 8, 8)
    assert pad_to_multiple(x, 1) is x


def test_unet_pads_and_crops() -> None:
    model = visionssm.create_model("mambair_unet_nano").eval()
    x = torch.rand(1, 3, 11, 14)
    with torch.no_grad():
        torch.testing.assert_close(model(x), model(pad_to_multiple(x, 8))[..., :11, :14], rtol=0, atol=0)


@pytest.mark.parametrize(
    "path", [HERE / f / v for f, v in (("mambair", "light_x2.json"), ("mair", "tiny_light_x2.json"))]
)
@pytest.mark.parametrize("wrapper", ["params", "params_ema"])
def test_basicsr_files(path: Path, wrapper: str, tmp_path: Path) -> None:
    case = load_cases(path)[0]
    weights = torch_weights(case)
    wanted = visionssm.load_official(visionssm.create_model(f"{case.family}_{case.variant}"), weights).state_dict()
    file = tmp_path / "net_g.pth"
    torch.save({wrapper: {f"module.{name}": value for name, value in weights.items()}}, file)
    found = visionssm.load_official(visionssm.create_model(f"{case.family}_{case.variant}"), file).state_dict()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_params_come_before_their_average() -> None:
    weights = torch_weights(load_cases(HERE / "mambair" / "light_x2.json")[0])
    file = {"params_ema": {name: value + 1 for name, value in weights.items()}, "params": weights}
    model = visionssm.load_official(visionssm.create_model("mambair_light_x2"), file)
    assert torch.equal(model.norm.bias, weights["norm.bias"])


def test_old_light_weights_are_recognised() -> None:
    """Their convolution block was one depthwise convolution, then the attention."""
    weights = {}
    for name, value in torch_weights(load_cases(HERE / "mambair" / "light_x2.json")[0]).items():
        if ".cab.5." in name:
            weights[name.replace(".cab.5.", ".cab.1.")] = value
        elif ".cab." not in name:
            weights[name] = value
        elif ".cab.4." in name:
            weights[name.replace(".cab.4.", ".cab.0.")] = value
    with pytest.raises(CheckpointError, match="before 7 November 2024"):
        visionssm.load_official(visionssm.create_model("mambair_light_x2"), weights)


def test_initial_values() -> None:
    model = visionssm.create_model("mambair_nano_x2")
    block = model.groups[0].blocks[0]
    assert (block.scale1 == 1).all()
    assert (block.scale2 == 1).all()
    assert block.mixer.in_proj.weight.std().item() == pytest.approx(0.02, rel=0.1)
    unet = visionssm.create_model("mambair_unet_nano").encoder[3].blocks[0].mixer.in_proj.weight
    assert unet.abs().max().item() == pytest.approx(unet.shape[1] ** -0.5, rel=0.02)  # torch's own
    assert {name.rsplit(".", 1)[-1] for name in model.no_weight_decay()} == {"A_log", "D"}


# --- weights records --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RESTORATION)
def test_every_variant_has_a_record(name: str) -> None:
    cfg = pretrained_cfg(name)
    assert cfg.architecture == name
    assert cfg.tag == "untrained" or cfg.origin_url
    if "nano" not in name and cfg.has_weights:
        assert cfg.custom_load


def test_tags() -> None:
    assert pretrained_cfg("mambair_color_dn.sigma25").hf_hub_filename == "MambaIRv1_ckpt/ColorDN_MambaIR_level25.pth"
    assert visionssm.create_model("mambair_nano_x2.untrained").pretrained_cfg["tag"] == "untrained"
    with pytest.raises(ValueError, match="has the tags 'sigma15', 'sigma25', 'sigma50'"):
        pretrained_cfg("mambair_color_dn.sigma5")
    with pytest.raises(ValueError, match="has the tags 'untrained'"):
        visionssm.create_model("mambair_nano_x2.df2k")
    with pytest.raises(ValueError, match="unknown model"):
        pretrained_cfg("mambair_colour_dn")
    assert pretrained_cfg("vmamba_tiny_s1l8").architecture == "vmamba_tiny_s1l8"


@pytest.mark.parametrize("name", ["mambair_light_x2", "mair_tiny_light_x2"])
def test_no_direct_link(name: str) -> None:
    with pytest.raises(
        ValueError,
        match=rf"no direct link to weights of {name}\.div2k; fetch .* from https://github.com/.*load_official",
    ):
        visionssm.create_model(name, pretrained=True)


def test_pretrained_downloads_and_converts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = torch_weights(load_cases(HERE / "mambairv2" / "light_x2.json")[0])
    asked = []

    def download(url: str, **kwargs: object) -> str:
        asked.append(url)
        torch.save({"params": weights}, tmp_path / "file.pth")
        return str(tmp_path / "file.pth")

    monkeypatch.setattr(timm.models._builder, "download_cached_file", download)
    model = visionssm.create_model("mambairv2_light_x2", pretrained=True)
    assert asked == ["https://github.com/csguoh/MambaIR/releases/download/v1.0/mambairv2_lightSR_x2.pth"]
    assert torch.equal(model.norm.bias, weights["norm.bias"])
    with pytest.raises(CheckpointError, match=r"head\.upsample\.0\.weight"):  # the output's channels cannot be adapted
        visionssm.create_model("mambairv2_light_x2", pretrained=True, in_chans=1)
