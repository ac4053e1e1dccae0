"""Where mixers leave dt's projection to the scan: in inference, in half precision on GPUs, float32 on CPUs; the same result."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from tests.tolerances import TOLERANCES
from visionssm.mixers import (
    AttentiveScan,
    DirectionScan,
    ImageScan,
    SequenceScan,
    StateFusion,
    attentive,
    core,
    direction_scan,
    functional,
    sequence_scan,
    state_fusion,
)
from visionssm.mixers.functional import projects_in_scan
from visionssm.mixers.schedule import layer_scans
from visionssm.scans import create_scan
from visionssm_kernels import routed_scan, use_backend

RANK = 3


def image_mixer(scan: str = "cross", **options: object) -> tuple[nn.Module, Tensor]:
    mixer = ImageScan(12, scan=layer_scans(scan, 1, ndim=2)[0], d_inner=24, d_state=2, dt_rank=RANK, **options)
    return mixer.eval(), torch.randn(2, 3, 5, 12)


class Tokens(nn.Module):
    """A sequence mixer without an image."""

    def __init__(self) -> None:
        super().__init__()
        self.mixer = SequenceScan(12, scan=None, d_inner=24, d_state=2, dt_rank=RANK)

    def forward(self, x_BLC: Tensor) -> Tensor:
        return self.mixer(x_BLC, None)


def sequence_mixer() -> tuple[nn.Module, Tensor]:
    return Tokens().eval(), torch.randn(2, 15, 12)


@pytest.fixture
def widths(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The last sizes of delta in the scans that run."""
    found: list[int] = []

    def recorded(u: Tensor, delta: Tensor, *args: object, **options: object) -> object:
        found.append(delta.shape[-1])
        return routed_scan(u, delta, *args, **options)

    monkeypatch.setattr(functional, "routed_scan", recorded)
    return found


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it, and every scan that may project does."""

    def set_it() -> None:
        for module in (attentive, core, direction_scan, sequence_scan, state_fusion):
            monkeypatch.setattr(module, "projects_in_scan", lambda *given: True)

    return set_it


def sorting_mixer(scan: str | None = None) -> tuple[nn.Module, Tensor]:
    order = None if scan is None else create_scan(scan)
    mixer = AttentiveScan(12, d_inner=24, d_state=2, dt_rank=RANK, categories=3, rank=2, sort="stable", scan=order)
    return mixer.eval(), torch.randn(2, 3, 5, 12)


def attentive_mixer_along_routes() -> tuple[nn.Module, Tensor]:
    return sorting_mixer("cross")


def direction_mixer() -> tuple[nn.Module, Tensor]:
    mixer = DirectionScan(12, scan=create_scan("continuous"), d_inner=24, d_state=2, dt_rank=RANK)
    return mixer.eval(), torch.randn(2, 3, 5, 12)


def fusion_mixer() -> tuple[nn.Module, Tensor]:
    return StateFusion(12, scan=create_scan("raster"), d_inner=24, dt_rank=RANK).eval(), torch.randn(2, 3, 5, 12)


MIXERS = [image_mixer, sequence_mixer, sorting_mixer, attentive_mixer_along_routes, direction_mixer, fusion_mixer]


@pytest.mark.parametrize("make", MIXERS)
@pytest.mark.parametrize("compiled", [False, True])
def test_the_scan_that_projects_gives_the_same(
    make: Callable[[], tuple[nn.Module, Tensor]], compiled: bool, always: Callable[[], None], widths: list[int]
) -> None:
    mixer, x = make()
    wanted = mixer(x)
    assert widths == [24]  # with gradients the product comes first
    always()
    run = torch.compile(mixer, fullgraph=True, backend="aot_eager") if compiled else mixer
    torch.testing.assert_close(run(x), wanted, **TOLERANCES[torch.float32])
    assert compiled or widths == [24, RANK]


@pytest.mark.parametrize("make", MIXERS)
def test_inference_on_a_cpu_makes_no_delta(make: Callable[[], tuple[nn.Module, Tensor]], widths: list[int]) -> None:
    mixer, x = make()
    wanted = mixer(x)
    with torch.no_grad():
        torch.testing.assert_close(mixer(x), wanted, **TOLERANCES[torch.float32])
        with use_backend("chunked"):
            mixer(x)
        with FlopCounterMode(display=False):
            mixer(x)
        mixer.double()(x.double())
    assert widths == [24, RANK, 24, 24, 24]


@pytest.mark.parametrize("options", [{"local_scan": 2}, {"low_rank": 1}, {"scan": "slices"}], ids=str)
def test_scans_that_need_delta_itself_get_it(options: dict[str, object], always: Callable[[], None]) -> None:
    mixer, x = image_mixer(**options)
    wanted = mixer(x)
    always()
    assert torch.equal(mixer(x), wanted)


def test_on_a_gpu_only_half_precision_inference_of_the_triton_kernels_projects(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*, device: str = "cuda", dtype: torch.dtype = torch.bfloat16, rank: int = 48) -> bool:
        with FakeTensorMode():
            u = torch.empty(1, 4, 1, 8, device=device, dtype=dtype)
            return projects_in_scan(u, u.new_empty(1, 4, 2, rank), 16)

    monkeypatch.setattr(functional, "resolve", lambda *given: "triton")
    assert not asked()  # gradients
    with torch.no_grad():
        assert asked()
        assert asked(dtype=torch.float16, rank=1)
        assert not asked(device="cpu")
        assert not asked(dtype=torch.float32)
        assert not asked(rank=1000)  # more than a warp holds
        with monkeypatch.context() as tracing:
            tracing.setattr(torch.jit, "is_tracing", lambda: True)
            assert not asked()
        monkeypatch.setattr(functional, "resolve", lambda *given: "chunked")
        assert not asked()
