"""What mixers allocate: nothing is permuted or copied that the routed scan can gather."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import visionssm_kernels
from visionssm.mixers import DirectionScan, GatedMerge, GroupScan, ImageScan, SequenceScan, StateFusion
from visionssm.scans import create_scan

B, H, W, C, D, K = 2, 12, 12, 24, 96, 4
MAP = B * H * W * D * 4  # bytes of a float32 feature map of the inner width
SIZES = {"d_inner": D, "dt_rank": 2}
CROSS, GROUP, WINDOW = (
    create_scan("cross"),
    create_scan("group"),
    create_scan("window", directions=["h", "v", "w2", "w7_flip"]),
)


class Tokens(nn.Module):
    """A sequence mixer as its blocks call it: tokens of an image, and the image."""

    def __init__(self, scan: str, **options: object) -> None:
        super().__init__()
        order = WINDOW if scan == "window" else create_scan(scan)
        self.mixer = SequenceScan(C, scan=order, d_state=1, **SIZES, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.mixer(x.flatten(1, 2), x)


# How many tensors of K maps there may be: dt where there are gradients (else the scan projects it as it goes), the input of
# routes whose convolution runs along them, and the outputs where a gate looks at each of them before they are added up.
MIXERS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "image": (lambda: ImageScan(C, scan=CROSS, d_state=1, **SIZES), ["dt"]),
    "image, no gate": (lambda: ImageScan(C, scan=CROSS, d_state=1, gate=False, **SIZES), ["dt"]),
    "image, gated routes": (
        lambda: ImageScan(C, scan=WINDOW, d_state=1, merge=GatedMerge(D), **SIZES),
        ["dt", "y"],
    ),
    "image, channel groups": (lambda: ImageScan(C, scan=GROUP, d_state=1, **SIZES), []),
    "sequence": (lambda: Tokens("cross", scale=0.5), ["u", "dt"]),
    "sequence, gated routes": (lambda: Tokens("window", merge=GatedMerge(D)), ["u", "dt", "y"]),
    "direction": (lambda: DirectionScan(C, scan=create_scan("continuous"), d_state=1, **SIZES), ["dt"]),
    "direction, exact": (
        lambda: DirectionScan(C, scan=create_scan("continuous"), d_state=1, align="exact", **SIZES),
        [],
    ),
    "state fusion": (lambda: StateFusion(C, scan=create_scan("raster"), **SIZES), []),
    "state fusion, four routes": (lambda: StateFusion(C, scan=CROSS, **SIZES), []),
    "groups": (lambda: GroupScan(C, scan=CROSS, groups=4, d_state=1, dt_rank=2, expand=4), []),
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Many threads on so small a map would share out the routes, and add up partial maps."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def allocations(run: Callable[[], object]) -> list[tuple[str, float]]:
    """What every operator that `run` calls allocates, also inside of the kernels' operators: its name, and feature maps."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        run()
    made = [(event.name, event.self_cpu_memory_usage / MAP) for event in profiler.events()]
    return [(name, round(maps, 2)) for name, maps in made if maps > 0]  # less than 0: what is freed


@pytest.mark.parametrize("name", MIXERS)
def test_nothing_is_copied_that_the_routed_scan_can_gather(name: str) -> None:
    """A projection gives two maps at most (the input and its gate), and the low-rank ones are smaller than one."""
    make, large = MIXERS[name]
    mixer = make().eval()
    x = torch.randn(B, H, W, C)
    with torch.no_grad(), visionssm_kernels.use_backend("numba"):
        mixer(x)
        made = allocations(lambda: mixer(x))
    assert sum(maps for _, maps in made) > 3, "nothing was recorded"
    large = [what for what in large if what != "dt"]
    assert [maps for _, maps in made if maps > 2] == [K] * len(large), [m for m in made if m[1] > 1]


@pytest.mark.parametrize("name", MIXERS)
def test_training_keeps_as_little(name: str) -> None:
    """With gradients: the gate of routes that are looked at one by one needs them before and after it."""
    make, large = MIXERS[name]
    mixer = make().train()
    x = torch.randn(B, H, W, C)
    with visionssm_kernels.use_backend("numba"):
        mixer(x)
        made = allocations(lambda: mixer(x))
    before = name == "sequence, gated routes"
    assert [maps for _, maps in made if maps > 2] == [K] * (len(large) + before), [m for m in made if m[1] > 1]


def test_a_copy_of_all_routes_is_seen() -> None:
    """The check itself: published code, which lays the map out once per route."""
    x = torch.randn(B, H * W, D)
    routes = CROSS.routes((H, W))
    made = allocations(lambda: x[:, routes])
    assert K in [maps for _, maps in made]
