"""Route tables on a device: cached, traced, compiled, exported, scripted."""

import threading

import pytest
import torch
from timm.models._features_fx import get_notrace_modules
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.export import Dim

from visionssm import scans
from visionssm.scans import registry, table

PLANAR = scans.list_scans(ndim=2)
TABLES = [name for name in scans.list_scans() if not scans.create_scan(name).content]


class Gather(nn.Module):
    """Reads an image along the first route; padding reads position 0."""

    def __init__(self, scan: scans.ScanOrder) -> None:
        super().__init__()
        self.route_table = scans.RouteTable(scan)

    def forward(self, x: Tensor) -> Tensor:
        order = self.route_table(x)
        return x.flatten(1, -2)[:, order[0].clamp(min=0)] * (order[0] >= 0)[:, None]


@pytest.fixture(autouse=True)
def _empty_cache():
    table._CACHE.clear()
    yield
    table._CACHE.clear()
    torch.compiler.reset()


def image(*size: int) -> Tensor:
    return torch.randn(2, *size, 3)


@pytest.mark.parametrize("name", TABLES)
def test_eager(name: str) -> None:
    scan = scans.create_scan(name)
    size = {1: (23,), 2: (5, 8), 3: (2, 3, 5)}[scan.ndim]
    found = scans.route_table(scan, size, "cpu")
    assert found.dtype == torch.int32
    assert torch.equal(found.long(), scan.routes(size))
    assert scans.route_table(scans.scan_from_key(scan.key), size, torch.device("cpu")) is found
    assert torch.equal(scans.RouteTable(scan)(image(*size)), found)


@pytest.mark.parametrize("name", TABLES)
def test_fake_has_the_shape_of_the_real(name: str) -> None:
    scan = scans.create_scan(name)
    size = {1: (23,), 2: (5, 8), 3: (2, 3, 5)}[scan.ndim]
    with FakeTensorMode():
        fake = scans.route_table(scan, size, "cpu")
    assert isinstance(fake, FakeTensor)
    assert (tuple(fake.shape), fake.dtype) == (tuple(scan.routes(size).shape), torch.int32)
    assert len(table._CACHE) == 0
    torch.library.opcheck(table._scan_routes, (scan.key, list(size), torch.device("cpu")))


@pytest.mark.parametrize("name", PLANAR)
def test_compile(name: str) -> None:
    model = Gather(scans.create_scan(name, ndim=2))
    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=True)
    for size in ((6, 9), (7, 5), (8, 8)):
        x = image(*size)
        torch.testing.assert_close(compiled(x), model(x), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", PLANAR)
def test_trace_reads_the_size_when_it_runs(name: str) -> None:
    model = Gather(scans.create_scan(name, ndim=2))
    traced = torch.jit.trace(model, image(6, 9), check_trace=False)
    for size in ((6, 9), (7, 5), (8, 8)):
        x = image(*size)
        torch.testing.assert_close(traced(x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", ["cross", "hilbert", "nested_s", "sequence_reorder", "skip", "spiral", "window"])
def test_export_with_any_height_and_width(name: str, strict: bool) -> None:
    model = Gather(scans.create_scan(name, ndim=2))
    dims = {1: Dim("H", min=2, max=4096), 2: Dim("W", min=2, max=4096)}
    program = torch.export.export(model, (image(6, 9),), dynamic_shapes={"x": dims}, strict=strict)
    for size in ((6, 9), (11, 4), (16, 16)):
        x = image(*size)
        torch.testing.assert_close(program.module()(x), model(x), rtol=0, atol=0)


def test_export_of_a_volume_survives_saving(tmp_path) -> None:
    model = Gather(scans.create_scan("tri_orientated"))
    dims = {1: Dim("D", min=2, max=64), 2: Dim("H", min=2, max=64), 3: Dim("W", min=2, max=64)}
    torch.export.save(torch.export.export(model, (image(4, 6, 8),), dynamic_shapes={"x": dims}), tmp_path / "model.pt2")
    x = image(5, 3, 2)
    torch.testing.assert_close(torch.export.load(tmp_path / "model.pt2").module()(x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["cross", "window"])
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_script(name: str) -> None:
    model = Gather(scans.create_scan(name))
    scripted = torch.jit.script(model)
    for size in ((6, 9), (3, 2)):
        x = image(*size)
        torch.testing.assert_close(scripted(x), model(x), rtol=0, atol=0)


def test_leaf_of_fx_tracing() -> None:
    assert scans.RouteTable in get_notrace_modules()

    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, module: nn.Module, name: str) -> bool:
            return type(module) in get_notrace_modules() or super().is_leaf_module(module, name)

    model = Gather(scans.create_scan("window"))
    traced = torch.fx.GraphModule(model, Tracer().trace(model))
    for size in ((6, 9), (3, 2)):
        x = image(*size)
        torch.testing.assert_close(traced(x), model(x), rtol=0, atol=0)


def test_an_order_of_ones_own_in_a_graph() -> None:
    @scans.register_scan("every_other")
    class EveryOther(scans.ScanOrder):
        first: int = 0
        num_routes = 1

        def paths(self, size: tuple[int, ...]) -> list[Tensor]:
            cells = scans.grid(size).flatten().tolist()  # Python that no tracer could follow
            return [torch.tensor(cells[self.first :: 2] + cells[1 - self.first :: 2])]

    try:
        scan = scans.create_scan("every_other", first=1)
        compiled = torch.compile(scans.RouteTable(scan), fullgraph=True, backend="eager")
        assert compiled(image(2, 3)).tolist() == [[1, 3, 5, 0, 2, 4]]
    finally:
        del registry._SCANS["every_other"]


def test_a_graph_gets_its_own_copy() -> None:
    scan = scans.create_scan("cross")
    cached = scans.route_table(scan, (5, 8), "cpu")
    compiled = torch.compile(
        lambda x: scans.route_table(scan, x.shape[1:-1], x.device), backend="eager", fullgraph=True
    )
    own = compiled(image(5, 8))
    assert own.data_ptr() != cached.data_ptr()
    own.zero_()
    assert torch.equal(cached.long(), scan.routes((5, 8)))


def test_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "CACHE_BYTES", 1200)
    scan = scans.create_scan("raster")
    first = scans.route_table(scan, (10, 10), "cpu")  # 400 bytes each: room for three
    for size in ((4, 25), (5, 20), (20, 5), (25, 4)):
        scans.route_table(scan, size, "cpu")
        assert sum(kept.nbytes for kept in table._CACHE._tables.values()) == table._CACHE._bytes <= 1200
        assert scans.route_table(scan, (10, 10), "cpu") is first  # used again, so kept
    assert len(table._CACHE) == 3
    scans.route_table(scan, (10, 31), "cpu")  # larger than the whole cache: made, not kept
    assert len(table._CACHE) == 3
    for size in ((4, 25), (5, 20), (20, 5)):
        scans.route_table(scan, size, "cpu")
    assert scans.route_table(scan, (10, 10), "cpu") is not first


def test_a_table_from_inference_mode_serves_training() -> None:
    scan = scans.create_scan("raster")
    with torch.inference_mode():
        scans.route_table(scan, (4, 4), "cpu")
    x = torch.randn(16, requires_grad=True)
    x.index_select(0, scans.route_table(scan, (4, 4), "cpu")[0]).sum().backward()  # saves the table
    assert x.grad.eq(1).all()


def test_a_table_is_not_made_on_the_default_device() -> None:
    with torch.device("meta"):
        found = scans.route_table(scans.create_scan("hilbert"), (4, 6), "cpu")
    assert torch.equal(found.long(), scans.create_scan("hilbert").routes((4, 6)))


def test_threads_share_the_cache() -> None:
    scan, found = scans.create_scan("hilbert"), []
    work = [threading.Thread(target=lambda: found.append(scans.route_table(scan, (9, 9), "cpu"))) for _ in range(8)]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert len(found) == 8
    assert all(torch.equal(one, found[0]) for one in found)
    assert len(table._CACHE) == 1


def test_the_rank_must_fit() -> None:
    with pytest.raises(ValueError, match="2 dimensions"):
        scans.route_table(scans.create_scan("cross"), (4, 4, 4), "cpu")
    with pytest.raises(ValueError, match="sides of 1 or more"):
        scans.route_table(scans.create_scan("cross"), (0, 4), "cpu")


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    scan = scans.create_scan("window")
    found = scans.route_table(scan, (5, 8), "cuda")
    assert found.is_cuda
    assert torch.equal(found.cpu().long(), scan.routes((5, 8)))
