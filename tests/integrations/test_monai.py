"""MONAI's own style of tests over the networks and encoders: shape grid, ill arguments, script and save, consistency."""

import io

import pytest
import torch
from monai.inferers import SlidingWindowInferer
from monai.networks import eval_mode
from monai.networks.nets import FLEXUNET_BACKBONE, FlexibleUNet
from torch import nn

import visionssm
from tests.packaging.test_imports import HIDE_EXTRAS, run_python
from tests.tolerances import TOLERANCES
from visionssm.integrations.monai import BackboneEncoder, LightMUNet, ScanEncoder, SegMamba, UMamba, VMambaUNet

TOLERANCE = TOLERANCES[torch.float32]
PLAN = {"features": (4, 8), "strides": (1, 2), "kernel_size": (3, 3), "d_state": 2}
LIGHT = {"init_filters": 8, "blocks_down": (1, 1), "blocks_up": (1,), "d_state": 2}
SMALL = {"feature_size": (4, 8), "depths": (1, 1), "d_state": 2}

# (network, words, input, output)
SHAPES = [
    (
        network,
        {"spatial_dims": dims, "in_channels": chans, "out_channels": classes, **small},
        (2, chans, *size),
        classes,
    )
    for network, small in (
        (SegMamba, SMALL),
        (UMamba, PLAN),
        (UMamba, {**PLAN, "mamba": "encoder"}),
        (LightMUNet, LIGHT),
    )
    for dims, size in ((2, (16, 12)), (2, (9, 7)), (3, (8, 8, 12)), (3, (5, 7, 4)))
    for chans, classes in ((1, 2), (3, 4))
] + [
    (VMambaUNet, {"spatial_dims": dims, "in_channels": 2, "out_channels": 3, "encoder": encoder}, (1, 2, *size), 3)
    for dims, encoder, size in (
        (2, "vmamba_nd_nano", (33, 16)),
        (2, "vmamba_nano", (64, 40)),
        (3, "vmamba_nd_nano", (17, 16, 16)),
        (2, "resnet10", (40, 64)),
    )
]


@pytest.mark.parametrize(("network", "words", "shape", "classes"), SHAPES)
def test_shapes(network: type[nn.Module], words: dict, shape: tuple[int, ...], classes: int) -> None:
    net = network(**words)
    with eval_mode(net):
        assert net(torch.randn(shape)).shape == (shape[0], classes, *shape[2:])


@pytest.mark.parametrize("network", [LightMUNet, SegMamba, UMamba, VMambaUNet])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"spatial_dims": 1}, "spatial_dims must be 2 or 3, got 1"),
        ({"spatial_dims": 4}, "spatial_dims"),
        ({"in_channels": 0}, "in_channels must be a whole number"),
        ({"out_channels": 1.5}, "out_channels must be a whole number"),
    ],
)
def test_ill_arguments(network: type[nn.Module], words: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        network(**words)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SegMamba(3, 1, 2, slices="half"), "'published' or 'planes'"),
        (lambda: SegMamba(3, 1, 2, feature_size=(4,)), "one entry per stage"),
        (lambda: VMambaUNet(3, 1, 2, encoder="vmamba"), "unknown encoder 'vmamba': choose one of .*vmamba_nd_tiny"),
        (lambda: VMambaUNet(3, 1, 2, encoder="vmamba_nano"), "2D backbone; for volumes take one of vmamba_nd_nano"),
        (lambda: VMambaUNet(3, 1, 2, encoder="vmamba_nd_nano", pretrained=True), "no weights"),
        (lambda: ScanEncoder(3, 1, dims=(4, 8), depths=(1,)), "one entry per stage"),
    ],
)
def test_ill_choices(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_too_small_an_image_is_named() -> None:
    net = VMambaUNet(2, 1, 2, encoder="vmamba_nd_nano")
    with pytest.raises(ValueError, match=r"\(16, 16\) is too small.*larger than 16"):
        net(torch.zeros(1, 1, 16, 16))


@pytest.mark.parametrize(
    "net",
    [
        lambda: SegMamba(3, 1, 2, **SMALL),
        lambda: SegMamba(2, 1, 2, **SMALL),
        lambda: UMamba(2, 1, 2, **PLAN),
        lambda: LightMUNet(2, in_channels=1, **LIGHT),
        lambda: VMambaUNet(2, 1, 2, encoder="vmamba_nd_nano"),
    ],
)
def test_script_save(net) -> None:
    model = net().eval()
    x = torch.randn(1, 1, *(18,) * model.spatial_dims)
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(model), file)
    file.seek(0)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.load(file)(x), model(x), **TOLERANCE)


@pytest.mark.parametrize(
    ("backbone", "dims", "size"),
    [("vmamba_nd_nano", 2, (40, 38)), ("vmamba_nd_nano", 3, (32, 20, 18)), ("vmamba_nano", 2, (64, 96))],
)
def test_flexible_unet(backbone: str, dims: int, size: tuple[int, ...]) -> None:
    """Forward and backward; every parameter of the encoder learns."""
    net = FlexibleUNet(in_channels=2, out_channels=3, backbone=backbone, spatial_dims=dims, norm="instance")
    logits = net(torch.randn(1, 2, *size))
    assert logits.shape == (1, 3, *size)
    logits.square().mean().backward()
    for name, parameter in net.encoder.named_parameters():
        assert parameter.grad is not None, name


@pytest.mark.slow
@pytest.mark.parametrize("encoder", [ScanEncoder, BackboneEncoder])
def test_encoders_have_the_channels_that_they_are_registered_with(encoder) -> None:
    for words, channels in zip(encoder.get_encoder_parameters(), encoder.num_channels_per_output(), strict=True):
        with torch.device("meta"):
            assert encoder(**words).channels == channels, words


@pytest.mark.parametrize("encoder", [ScanEncoder, BackboneEncoder])
def test_encoders_say_what_they_give(encoder) -> None:
    """As registered, for every name; a map's size is half of the one before."""
    for name, channels, count in zip(
        encoder.get_encoder_names(), encoder.num_channels_per_output(), encoder.num_outputs(), strict=True
    ):
        assert FLEXUNET_BACKBONE.register_dict[name]["feature_channel"] == channels
        assert len(channels) == count
    smallest = encoder(**encoder.get_encoder_parameters()[0])
    rank = encoder.get_encoder_parameters()[0]["spatial_dims"]
    x = torch.randn(1, encoder.get_encoder_parameters()[0]["in_channels"], *(32,) * rank)
    shapes = [tuple(feature.shape) for feature in smallest(x)]
    assert shapes == [(1, c, *(32 >> i + 1,) * rank) for i, c in enumerate(smallest.channels)]


@pytest.mark.parametrize(
    ("name", "options", "network"),
    [
        ("segmamba_nano", {"dims": (4, 8), "depths": (1, 1)}, lambda: SegMamba(3, 1, 2, **SMALL)),
        (
            "u_mamba_nano",
            {"dims": (4, 8), "strides": (1, 2), "kernel_sizes": (3, 3), "img_size": 8},
            lambda: UMamba(3, 1, 2, mamba="encoder", img_size=8, **PLAN),
        ),
        ("light_m_unet_nano", {"dim": 8, "depths": (1, 1), "up_depths": (1,)}, lambda: LightMUNet(3, **LIGHT)),
    ],
)
def test_the_words_make_the_same_network_as_the_registry(name: str, options: dict, network) -> None:
    torch.manual_seed(0)
    ours = visionssm.create_model(name, **options, d_state=2).eval()
    words = network().eval()
    words.load_state_dict(ours.state_dict())
    x = torch.randn(1, 1, 8, 8, 8)
    with torch.no_grad():
        assert torch.equal(ours(x), words(x))


def test_consistency_of_sliding_windows() -> None:
    """A volume of one window's size is that window; larger ones are the same whatever the batch of windows."""
    net = SegMamba(3, 1, 2, **SMALL).eval()
    x = torch.randn(1, 1, 12, 12, 20)
    with torch.no_grad():
        one = SlidingWindowInferer((12, 12, 20), overlap=0.5, mode="gaussian")(x, net)
        torch.testing.assert_close(one, net(x), **TOLERANCE)
        inferers = [SlidingWindowInferer((8, 8, 8), batch, overlap=0.5, mode="gaussian") for batch in (1, 3)]
        torch.testing.assert_close(inferers[0](x, net), inferers[1](x, net), **TOLERANCE)


def test_without_monai_one_line_says_what_to_install() -> None:
    run = run_python(HIDE_EXTRAS + "import visionssm.integrations.monai")
    assert run.stderr.strip().splitlines()[-1] == (
        "ModuleNotFoundError: visionssm.integrations.monai needs MONAI: pip install 'visionssm[medical]'"
    )
