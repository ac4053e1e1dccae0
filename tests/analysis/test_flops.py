"""Operations and parameters against counts by hand and against what is published."""

import pytest
import timm
import torch
from torch import nn

import visionssm
from visionssm.analysis import count_operations, count_parameters
from visionssm.mixers import ImageScan
from visionssm.models import pretrained_cfg
from visionssm.models.reported import REPORTED
from visionssm.scans import create_scan


def meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return visionssm.create_model(name)


def rounded(value: float, printed: str, *, cut: bool) -> str:
    """`value` as `printed` is written: the same unit, as many digits, rounded or cut off."""
    number, unit = printed[:-1], printed[-1]
    places = len(number.partition(".")[2])
    scaled = value / {"G": 1e9, "M": 1e6}[unit]
    if cut:
        scaled = int(scaled * 10**places) / 10**places
    return f"{scaled:.{places}f}{unit}"


def test_counts_by_hand() -> None:
    C, D, H, W, N, R, K = 8, 16, 5, 7, 3, 2, 4
    model = nn.Sequential(
        nn.Conv2d(3, C, 1),
        Permute(),
        ImageScan(C, scan=create_scan("cross"), d_inner=D, d_state=N, dt_rank=R),
    )
    L = H * W
    projections = (
        L * C * D * 2 + L * D * C + K * L * D * (R + 2 * N) + K * L * R * D
    )  # in_proj with a gate, out_proj, x_proj, dt_proj
    operations = count_operations(model, (3, H, W))
    assert operations.macs == L * 3 * C + projections + L * D * 9
    assert operations.scan == K * L * D * (9 * N + 1)
    assert operations.scan_short == K * L * D * (5 * N + 2)
    assert operations.norms == 5 * L * D
    assert operations.papers == operations.macs + operations.scan + operations.norms


class Permute(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(0, 2, 3, 1)


@pytest.mark.parametrize(
    ("name", "macs"),
    [("swin_tiny_patch4_window7_224", 4.5), ("convnext_tiny", 4.5), ("deit_small_patch16_224", 4.6)],
)
def test_the_baselines_count_is_the_published_one(name: str, macs: float) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    assert round(count_operations(model, (3, 224, 224)).macs / 1e9, 1) == macs


def test_counting_leaves_a_model_as_it_was() -> None:
    model = visionssm.create_model("vmamba_nano").train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    count_operations(model, (3, 64, 64))
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model(torch.randn(1, 3, 64, 64)).isfinite().all()  # no fake route table was kept


def test_a_size_that_a_model_does_not_take_is_named() -> None:
    with pytest.raises(ValueError, match=r"VMamba takes no \(4, 64, 64\)"):
        count_operations(meta("vmamba_nano"), (4, 64, 64))


CLASSIFIERS = visionssm.list_models(task="classification")


@pytest.mark.parametrize(
    "name",
    [
        name if name in CLASSIFIERS else pytest.param(name, marks=pytest.mark.slow)
        for name, reported in REPORTED.items()
        if reported.params
    ],
)
def test_parameters_are_the_published_ones(name: str) -> None:
    reported, model = REPORTED[name], meta(name)
    without_head = reported.params_counted == "backbone, cut off"
    parameters = count_parameters(model)
    if without_head:
        parameters -= count_parameters(model.get_submodule(pretrained_cfg(name).classifier))
    assert rounded(parameters, reported.params, cut=without_head) == reported.params


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, reported in REPORTED.items() if reported.flops])
def test_flops_are_the_published_ones(name: str) -> None:
    reported = REPORTED[name]
    operations = count_operations(meta(name), pretrained_cfg(name).input_size)
    ours = rounded(operations.by(reported.counted), reported.flops, cut=False)
    assert (ours == reported.flops) == (not reported.flops_differ)


def test_a_projection_inside_the_scan_is_counted_as_one_ahead_of_it():
    from torch.utils.flop_counter import FlopCounterMode

    from visionssm.analysis.flops import _Formulas

    u, low, weight = torch.randn(1, 6, 1, 4), torch.randn(1, 6, 2, 3), torch.randn(2, 4, 3)
    A, B = -torch.rand(2, 4, 2), torch.randn(1, 6, 2, 2)
    scan, options = torch.ops.visionssm.routed_scan, (None, None, None, True, "sum", False, False, "numba", 0, 0)
    found = []
    for ahead in (True, False):
        formulas = _Formulas()
        with FlopCounterMode(display=False, custom_mapping=formulas.mapping()) as counter:
            if ahead:
                scan(u, torch.einsum("blkr,kdr->blkd", low, weight), A, B, B, *options)
            else:
                scan(u, low, A, B, B, *options, weight)
        found.append((counter.get_total_flops(), formulas.scan, formulas.scan_short, formulas.saved))
    assert found[0] == found[1]
    assert found[0][:2] == (2 * 6 * 2 * 4 * 3, 9 * 6 * 2 * 4 * 2)
