"""Exported files compute what the model computes, at open sizes, and say no where they cannot."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import visionssm
from tests.tolerances import TOLERANCES
from visionssm.integrations import export
from visionssm.integrations.export import ExportError, export_model
from visionssm.scans import RouteTable, create_scan
from visionssm_kernels import routed_scan

SMALL = {"dim": 16, "depths": (1,), "num_classes": 3}
SHAPE = (2, 3, 40, 64)


def small(name: str = "vmamba_nano", **options: object) -> torch.nn.Module:
    return visionssm.create_model(name, **{**SMALL, **options}).eval()


@pytest.mark.parametrize("steps", [1, 15, 16, 63])
@pytest.mark.parametrize("merge", ["sum", "none"])
def test_plain_scan_is_the_reference(steps: int, merge: str) -> None:
    def normal(*size: int) -> torch.Tensor:
        return torch.randn(size, dtype=torch.float64)

    B, K, D, N = 2, 3, 4, 2
    u, delta = normal(B, steps, 1, D), normal(B, steps, K, D)
    args = (
        u,
        delta,
        -normal(K, D, N).exp(),
        normal(B, steps, K, N),
        normal(B, steps, K, N),
        normal(K, D),
        normal(K, D),
    )
    order = torch.stack([torch.randperm(steps) for _ in range(K)]).int()
    order = F.pad(order, (0, 2), value=-1)
    wanted, states = routed_scan(*args, order=order, merge=merge, return_states=True, backend="reference")
    got, _, got_states = export._scan(*args, order, True, merge, False, True, "auto")
    torch.testing.assert_close(got, wanted, **TOLERANCES[torch.float64])
    torch.testing.assert_close(got_states, states, **TOLERANCES[torch.float64])


@pytest.mark.parametrize(("segment", "phase"), [(5, 0), (5, 3), (16, 7), (40, 39)])
def test_plain_scan_restarts(segment: int, phase: int) -> None:
    B, steps, K, D, N = 2, 39, 3, 4, 2
    u, delta, m = (torch.randn(B, steps, k, d, dtype=torch.float64) for k, d in ((1, D), (K, D), (K, N)))
    args = (u, delta, -torch.rand(K, D, N, dtype=torch.float64), m, m.flip(1), None, None)
    wanted = routed_scan(*args, segment=segment, phase=phase, backend="reference")
    got, _, _ = export._scan(*args, None, True, "sum", False, False, "auto", segment, phase)
    torch.testing.assert_close(got, wanted, **TOLERANCES[torch.float64])


@pytest.mark.parametrize("scan", ["cross", "snake", "cross_rotate"])
def test_routes_by_arithmetic_are_the_tables(scan: str) -> None:
    order = create_scan(scan)

    class Table(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return export._routes(order.key, x.shape[1:3], x.device)

    sides = ({1: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC},)
    table = torch.export.export(Table(), (torch.zeros(1, 4, 6),), dynamic_shapes=sides).module()
    for size in ((4, 6), (7, 5), (9, 12)):
        assert torch.equal(table(torch.zeros(1, *size)), order.routes(size).int())


class Gather(torch.nn.Module):
    def __init__(self, scan: str) -> None:
        super().__init__()
        self.table = RouteTable(create_scan(scan))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1, 2)[:, self.table(x)]


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # of torch.export itself
@pytest.mark.parametrize("scan", ["cross", "hilbert", "spiral"])
def test_routes_of_a_known_size_are_stored(scan: str) -> None:
    x = torch.randn(1, 5, 7, 2)
    program = export._plain_program(Gather(scan), x, open_size=False)
    assert "visionssm" not in str(program.graph)
    assert torch.equal(program.module()(x), Gather(scan)(x))


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # of torch.export itself
def test_an_order_that_needs_a_size_says_so() -> None:
    with pytest.raises(ExportError, match=r"order .*position by position.*open_size=False \(--fixed\)"):
        export._plain_program(Gather("hilbert"), torch.randn(2, 5, 7, 2), open_size=True)


class Fuse(torch.nn.Module):
    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return torch.ops.visionssm.fuse_states(h, torch.ones(2, h.shape[3], 3, 3), [1, 2], "numba")


class Wavefront(torch.nn.Module):
    def forward(self, u: torch.Tensor) -> torch.Tensor:
        two = torch.stack([u, u], 3)
        A = -torch.ones(2, u.shape[3], u.shape[3])
        return torch.ops.visionssm.wavefront_scan(u, two, A, two, u, None, None, False, "numba")


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # of torch.export itself
def test_kernels_are_written_out_or_named() -> None:
    h = torch.randn(1, 6, 5, 4)
    program = export._plain_program(Fuse(), h, open_size=False)
    assert "visionssm" not in str(program.graph)
    torch.testing.assert_close(program.module()(h), Fuse()(h), **TOLERANCES[torch.float32])
    with pytest.raises(ExportError, match=r"^visionssm\.wavefront_scan cannot be written in plain operations"):
        export._plain_program(Wavefront(), h, open_size=False)


@pytest.mark.parametrize("model", [Fuse(), Wavefront()])
def test_kernels_in_programs_choose_when_they_run(model: torch.nn.Module) -> None:
    (kernel,) = export._kernels(export._program(model, torch.randn(1, 6, 5, 4), open_size=False))
    assert kernel.args[-1] == "auto"


def test_one_image_leaves_the_batch_open() -> None:
    program = export._program(torch.nn.Flatten(2), torch.randn(1, 3, 8, 8), open_size=True).module()
    assert program(torch.zeros(3, 3, 9, 7)).shape == (3, 3, 63)


@pytest.mark.parametrize("open_size", [True, False])
def test_torchscript(tmp_path: Path, open_size: bool) -> None:
    report = export_model(small(), tmp_path / "model.pt", image_shape=SHAPE, open_size=open_size)
    assert len(report.shapes) == 1 + open_size
    assert report.difference is not None
    assert report.difference < 1e-5


@pytest.mark.slow
def test_program_with_kernels_takes_any_size(tmp_path: Path) -> None:
    model = small()
    report = export_model(model, tmp_path / "model.pt2", image_shape=SHAPE)
    assert report.open_size
    assert len(report.shapes) == 2
    assert report.difference is not None
    loaded = torch.export.load(report.path).module()
    x = torch.randn(1, 3, 72, 40)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), model(x), **TOLERANCES[torch.float32])


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # of torch.export itself
@pytest.mark.slow
@pytest.mark.parametrize("plain", [False, True])
def test_a_scan_that_starts_anew_is_exported(plain: bool, tmp_path: Path) -> None:
    report = export_model(small(local_scan=4), tmp_path / "model.pt2", image_shape=SHAPE, plain=plain)
    assert report.open_size
    assert report.difference is not None
    assert report.difference < 1e-5


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # of torch.export itself
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [("vmamba_nano", {**SMALL, "scan": "hilbert"}), ("vim_nano", {"dim": 16, "depth": 1, "num_classes": 3})],
)
def test_a_fixed_size_is_plain_in_any_order(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    model = visionssm.create_model(name, **options)
    report = export_model(model, tmp_path / "model.pt2", image_shape=SHAPE, open_size=False, plain=True)
    assert not report.open_size
    assert report.difference is not None
    assert report.difference < 1e-5


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # of torch.export itself
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning")  # torch's own, while it loads
def test_plain_program_needs_torch_alone(tmp_path: Path) -> None:
    # which must not leave its sizes behind
    export_model(small(), tmp_path / "fixed.pt2", image_shape=SHAPE, plain=True, open_size=False)
    export_model(small(), tmp_path / "model.pt2", image_shape=SHAPE, plain=True)
    code = (
        f"import sys, torch; m = torch.export.load({str(tmp_path / 'model.pt2')!r}).module(); "
        "assert m(torch.zeros(1, 3, 72, 40)).shape == (1, 3); assert 'visionssm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("onnxscript") is None, reason="needs the export extra")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of onnxscript on torch
@pytest.mark.parametrize("name", ["vmamba_nano"])
def test_onnx_takes_any_size(name: str, tmp_path: Path) -> None:
    options = SMALL if name == "vmamba_nano" else {"dim": 16, "depth": 1, "num_classes": 3}
    model = visionssm.create_model(name, **options)
    report = export_model(model, tmp_path / "model.onnx", image_shape=SHAPE)
    assert report.open_size
    if importlib.util.find_spec("onnxruntime") is not None:
        assert report.difference is not None
        assert report.difference < 1e-4


def test_a_file_that_is_off_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = torch.jit.load
    monkeypatch.setattr(torch.jit, "load", lambda path: lambda x: load(path)(x) + 0.1)
    path = tmp_path / "model.pt"
    path.write_text("what was there")
    with pytest.raises(ExportError, match="off by"):
        export_model(small(), path, image_shape=SHAPE)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == "what was there"


def test_errors_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end in \.pt2, \.onnx, \.pt"):
        export_model(small(), tmp_path / "model.bin")
    with pytest.raises(ValueError, match="'program', 'onnx', 'torchscript'"):
        export_model(small(), tmp_path / "model.bin", format="onx")
    with pytest.raises(ValueError, match=r"image_shape.*\(3, 64, 64\)"):
        export_model(small(), tmp_path / "model.pt", image_shape=(3, 64, 64))
    with pytest.raises(ValueError, match="opset"):
        export_model(small(), tmp_path / "model.onnx", opset=9)
    message = r"32 x 80 are too small.*at least 64.*image_shape \(--size 64 64\).*open_size=False \(--fixed\)"
    with pytest.raises(ExportError, match=message):
        export_model(visionssm.create_model("vmamba_nano"), tmp_path / "model.pt2", image_shape=(2, 3, 32, 80))
    with pytest.raises(ExportError, match=r"does not run on images of \(2, 4, 40, 64\)"):
        export_model(small(), tmp_path / "model.pt", image_shape=(2, 4, 40, 64))
    features = visionssm.create_model("vmamba_nano", features_only=True)
    with pytest.raises(ExportError, match="one tensor"):
        export_model(features, tmp_path / "model.pt", image_shape=SHAPE)


def test_onnx_without_its_packages_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    with pytest.raises(ExportError, match=r"onnxscript must be installed.*visionssm\[export\]"):
        export_model(small(), tmp_path / "model.onnx", image_shape=SHAPE)
