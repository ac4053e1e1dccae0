"""SegMamba: which sizes are taken and what they mean, how it leaves Python, what it says without MONAI."""

import io
import warnings

import pytest
import torch
from torch.export import Dim

import visionssm
from tests.packaging.test_imports import HIDE_EXTRAS, run_python
from tests.tolerances import TOLERANCES
from visionssm.checkpoints import CheckpointError
from visionssm.engine.tiling import LiveBytes

TOLERANCE = TOLERANCES[torch.float32]
NANO = {"dims": (4, 8), "depths": (1, 1), "d_state": 4}
FOUR = {"dims": (4, 4, 4, 4), "depths": (1, 1, 1, 1), "d_state": 2}  # the published strides


def nano(**options: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return visionssm.create_model("segmamba_nano", **{**NANO, **options}).eval()


@pytest.mark.parametrize("size", [(32, 32, 32), (32, 48, 64), (64, 64, 32)])
def test_published_sizes(size: tuple[int, ...]) -> None:
    model = nano(**FOUR, slices="published")
    with torch.no_grad():
        assert model(torch.randn(1, 1, *size)).shape == (1, 2, *size)


@pytest.mark.parametrize("size", [16, 40, 48, 80, 112, 144])
def test_sizes_that_the_published_slices_cannot_cut(size: int) -> None:
    with pytest.raises(ValueError, match=rf"multiples of 16 with .* divisible by 8, got \({size}.*slices='planes'"):
        nano(**FOUR, slices="published")(torch.empty(1, 1, size, size, size, device="meta"))


def test_the_rule_of_sizes_is_the_chunks_of_every_stage() -> None:
    """Brute force over small sizes: refused exactly where a stage's positions do not divide into its chunks."""
    model = nano(**FOUR, slices="published")
    for d in range(16, 129, 16):
        for h in range(16, 129, 16):
            cut = [(d // s) * (h // s) * (16 // s) % (128 // s) == 0 for s in (2, 4, 8, 16)]
            if all(cut):
                model.check_input((1, 1, d, h, 16))
            else:
                with pytest.raises(ValueError, match="slices"):
                    model.check_input((1, 1, d, h, 16))


def test_planes_and_published_slices_are_the_same_where_chunks_are_planes() -> None:
    """At 128 voxels along the first axis, the published network's own size."""
    published, planes = nano(**FOUR, slices="published"), nano(**FOUR, slices="planes")
    x = torch.randn(1, 1, 128, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(published(x), planes(x), **TOLERANCE)
        other = torch.randn(1, 1, 64, 32, 16)
        assert (published(other) - planes(other)).abs().max() > 1e-3


@pytest.mark.parametrize("size", [(5, 4, 9), (13, 8, 8), (1, 30, 7)])
def test_planes_take_any_size(size: tuple[int, ...]) -> None:
    """A size that is no multiple is a padded volume, cropped."""
    model = nano()
    x = torch.randn(2, 1, *size)
    padded = torch.zeros(2, 1, *(side + -side % 4 for side in size))
    padded[:, :, : size[0], : size[1], : size[2]] = x
    with torch.no_grad():
        whole = model(padded)[:, :, : size[0], : size[1], : size[2]]
        torch.testing.assert_close(model(x), whole, **TOLERANCE)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 1, 4, 4, 4), "too small"),
        ((1, 3, 8, 8, 8), r"takes \(B, 1, D, H, W\), got \(1, 3, 8, 8, 8\)"),
        ((1, 8, 8, 8), "takes"),
    ],
)
def test_inputs_that_are_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nano()(torch.zeros(shape))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slices": "half"}, "'published' or 'planes', got 'half'"),
        ({"spatial_dims": 4}, "2 or 3, got 4"),
        ({"depths": (1,)}, "one entry per stage"),
        ({"scan": "cross_3d_typo"}, "cross_3d_typo"),
        ({"scan": "nd_2d"}, "rank"),
    ],
)
def test_arguments_that_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nano(**options)


def test_the_third_route_matters_and_scans_are_exchangeable() -> None:
    x = torch.randn(1, 1, 8, 8, 8)
    default, raster, same = nano(), nano(scan="raster_3d"), nano(scan="tri_orientated")
    with torch.no_grad():
        assert torch.equal(default(x), same(x))
        assert (default(x) - raster(x)).abs().max() > 1e-3
        assert nano(scan={"name": "axes", "orders": ["dhw", "whd_flip"], "ndim": 3})(x).shape == (1, 2, 8, 8, 8)


def test_images_too() -> None:
    with torch.no_grad():
        assert nano(spatial_dims=2)(torch.randn(2, 1, 17, 8)).shape == (2, 2, 17, 8)


def test_every_parameter_learns_and_checkpointing_changes_nothing() -> None:
    model, x = nano().train(), torch.randn(1, 1, 8, 8, 8)
    gradients = []
    for enabled in (False, True):
        model.set_grad_checkpointing(enabled)
        model.zero_grad()
        model(x).square().mean().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        torch.testing.assert_close(gradients[1][name], gradient, **TOLERANCE)


def test_checkpointing_halves_the_activations() -> None:
    """The published proportions; what is held after the forward pass, and the peak of a training step."""
    model, x = nano(dims=(6, 12, 24, 48), depths=(2, 2, 2, 2), d_state=16).train(), torch.randn(1, 1, 32, 32, 32)
    model(x).square().mean().backward()  # tables and kernels are made once, and the gradients are there
    held, peak = [], []
    for enabled in (False, True):
        model.set_grad_checkpointing(enabled)
        known = [x, *model.parameters(), *(parameter.grad for parameter in model.parameters())]
        with LiveBytes(known) as memory:
            loss = model(x).square().mean()
            held.append(memory.live)
            loss.backward()
        peak.append(memory.peak)
    assert held[1] < held[0] / 3
    assert peak[1] < peak[0] / 2


def test_script_trace_save() -> None:
    model, x = nano(), torch.randn(1, 1, 8, 8, 12)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # sizes are fixed in a trace
        wanted = model(x)
        for made in (torch.jit.script(model), torch.jit.trace(model, x, check_trace=False)):
            file = io.BytesIO()
            torch.jit.save(made, file)
            file.seek(0)
            torch.testing.assert_close(torch.jit.load(file)(x), wanted, **TOLERANCE)


def test_export_of_any_number_of_planes() -> None:
    model, x = nano(), torch.randn(1, 1, 8, 8, 12)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own while exporting
        program = torch.export.export(
            model, (x,), dynamic_shapes=({2: 4 * Dim("planes", min=2, max=16)},), strict=False
        )
        other = torch.randn(1, 1, 16, 8, 12)
        torch.testing.assert_close(program.module()(other), model(other), **TOLERANCE)


def test_weights_of_another_network_are_named() -> None:
    state = dict(nano().state_dict())
    visionssm.load_official(nano(), {"module": state})
    state["out.conv.conv.bias"] = state.pop("head.bias")
    state.pop("head.weight")
    with pytest.raises(
        CheckpointError, match=r"2 missing: head\.weight, head\.bias\n  1 unexpected: out\.conv\.conv\.bias"
    ):
        visionssm.load_official(nano(), state)
    with pytest.raises(ValueError, match="no weights of segmamba_brats2023"):
        visionssm.create_model("segmamba_brats2023", pretrained=True)


def test_without_monai_one_line_says_what_to_install() -> None:
    run = run_python(HIDE_EXTRAS + "import visionssm; visionssm.create_model('segmamba_nano')")
    assert run.returncode == 1
    assert run.stderr.strip().splitlines()[-1] == (
        "ModuleNotFoundError: SegMamba's decoder is made of MONAI's blocks: pip install 'visionssm[medical]'"
    )
