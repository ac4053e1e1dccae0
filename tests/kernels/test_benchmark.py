"""The benchmark's baseline computes what the kernels compute, and its report says what ran."""

import json
import runpy
from pathlib import Path

import pytest
import torch

from tests.tolerances import TOLERANCES
from visionssm_kernels import backends, benchmark, benchmark_gpu, routed_scan, selective_scan
from visionssm_kernels.backends import projects

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", list(benchmark.QUICK))
def test_the_baseline_computes_the_same_scan(name):
    shape = benchmark.QUICK[name]
    inputs = benchmark.make_inputs(shape, torch.float32, torch.device("cpu"))
    order = benchmark.make_routes(shape, torch.device("cpu"))
    y = routed_scan(*inputs, order=order, merge="none", backend="chunked")
    loop = benchmark.baseline(*benchmark._loop_inputs(inputs, order), shared=shape.input_routes == 1)
    for k in range(shape.routes):
        steps = y[:, order[k].long(), k].transpose(1, 2)
        torch.testing.assert_close(loop[:, k], steps, **TOLERANCES[torch.float32])


@pytest.mark.parametrize("name", [*benchmark.SHAPES, *benchmark.QUICK])
def test_every_route_visits_every_position_once(name):
    shape = {**benchmark.SHAPES, **benchmark.QUICK}[name]
    order = benchmark.make_routes(shape, torch.device("cpu"))
    assert order.shape == (shape.routes, shape.positions)
    assert torch.equal(order.sort(1).values, torch.arange(shape.positions).int().expand_as(order))


def test_quick_run_reports_every_implementation(tmp_path, capsys):
    path = tmp_path / "figures.json"
    assert benchmark.main(["--quick", "--json", str(path)]) == 0
    result, table = json.loads(path.read_text()), capsys.readouterr().out
    assert result["machine"]["threads"] == torch.get_num_threads()
    assert result["machine"]["copy_bytes_per_s"] > 0
    report = backends("cpu")
    projected = [
        f"{name}, dt {where}"
        for name in report
        if projects(name, 2) and not report[name]
        for where in ("ahead", "inside")
    ]
    assert {(row["shape"], row["backend"]) for row in result["timings"]} == {
        (shape, backend) for shape in benchmark.QUICK for backend in (benchmark.BASELINE, *report, *projected)
    }
    for row in result["timings"]:
        assert row["backend"] in table
        if row["backend"] in (benchmark.BASELINE, "chunked"):
            assert row["forward_s"] > 0
            assert row["both_s"] > 0
            assert row["backward_ratio"] > 0
        elif row["forward_s"] is None:
            assert row["note"].startswith("not run: ")
    assert report["triton"] in table


def test_a_step_is_timed_part_by_part(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: now[0])

    class Work(torch.autograd.Function):
        """Takes 3 seconds, 4 with gradients, and 9 back."""

        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            now[0] += 9
            return grad

    def work(x):
        now[0] += 4 if torch.is_grad_enabled() else 3
        return Work.apply(x)

    times = benchmark._time(work, [torch.ones(2, requires_grad=True)], CPU, 3, 3)
    assert (times.forward, times.step, times.both) == (3.0, (4.0, 9.0), 13.0)
    row = benchmark._timing("", "", "", times, benchmark._Times(6.0, (10.0, 16.0)))
    assert (row.forward_ratio, row.both_ratio, row.backward_ratio) == (2.0, 2.0, 2.25)


def test_long_sequences_do_not_run_the_quadratic_gradient(monkeypatch):
    monkeypatch.setattr(benchmark, "_LOOP_GRADIENT_ELEMENTS", 1)
    shapes = {"small": benchmark.QUICK["vm-small"]}
    rows = benchmark.run(shapes, repeats=1)["timings"]
    assert rows[0]["both_s"] is None
    assert "quadratic" in rows[0]["note"]
    assert all(row["both_ratio"] is None for row in rows)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--shapes", "nothing"],
        ["--quick", "--shapes", "vmT1"],
        ["--repeats", "0"],
        ["--keep-memory"],
        ["--without", "compiled"],
        ["--json", "no/such/folder.json"],
    ],
)
def test_bad_options_are_refused(arguments, monkeypatch):
    monkeypatch.setattr(benchmark, "keep_memory", lambda: False)  # as where the C library is another one
    with pytest.raises(SystemExit):
        benchmark.main(arguments)


@pytest.mark.parametrize("name", list(benchmark.QUICK))
def test_the_published_steps_compute_the_same(name):
    shape = benchmark.QUICK[name]
    inputs, order = benchmark.make_inputs(shape, torch.float32, CPU), benchmark.make_routes(shape, CPU)
    found = benchmark_gpu.published_steps(inputs[0], benchmark_gpu.route_order(inputs, order), order, selective_scan)
    wanted = benchmark_gpu.exact(inputs, order)
    torch.testing.assert_close(found[:1].double(), wanted, **TOLERANCES[torch.float32])


@pytest.mark.parametrize("name", list(benchmark.QUICK))
def test_a_projection_ahead_and_inside_compute_the_same(name):
    shape = benchmark.QUICK[name]
    inputs, order = benchmark.make_inputs(shape, torch.float32, CPU), benchmark.make_routes(shape, CPU)
    found, truth = benchmark_gpu.projecting(inputs, order, shape.rank, "chunked")
    wanted = benchmark_gpu.exact(truth, order)
    for function, leaves, note in found.values():
        y = function(*leaves)
        torch.testing.assert_close(y[:1].double(), wanted, **TOLERANCES[torch.float32])
        assert len(torch.autograd.grad(y.sum(), leaves)) == 8
        assert note == "R = 2"


def test_ranks_are_those_of_the_published_models():
    ranks = {name: shape.rank for name, shape in benchmark.GPU_SHAPES.items()}
    assert [ranks[f"vmT{i}"] for i in range(1, 5)] == [6, 12, 24, 48]
    assert (ranks["vimT"], ranks["vimS"], ranks["mambair"], ranks["seg64"]) == (12, 24, 12, 3)


def test_a_figure_of_a_gpu_run():
    shape = benchmark.QUICK["vm-small"]
    inputs, order = benchmark.make_inputs(shape, torch.float32, CPU), benchmark.make_routes(shape, CPU)
    function, leaves, note = benchmark_gpu.contenders(inputs, order)["published steps"]
    row = benchmark_gpu.Figure("vm-small", "published steps", "float32", note=note)
    times = iter((2.0, 6.0))
    wanted = benchmark_gpu.exact(inputs, order)
    benchmark_gpu.measure(row, function, leaves, wanted, (1.0, 2.0), lambda f: next(times), lambda f: 7)
    assert (row.forward_s, row.both_s, row.of_floor, row.of_floor_backward, row.peak_bytes) == (2.0, 6.0, 0.5, 0.5, 7)
    assert row.repeatable
    assert row.error < TOLERANCES[torch.float32]["rtol"]
    assert "50%" in benchmark_gpu.line(row)


def test_what_fails_on_a_gpu_is_told_in_its_row():
    def broken(*leaves):
        raise AssertionError("no such kernel\nand more")

    failed, left = (benchmark_gpu.Figure("vm-small", "triton", "float32") for _ in range(2))
    benchmark_gpu.fill(failed, (broken, [], "a note"), None, (1.0, 2.0), None, None)
    benchmark_gpu.fill(left, "left out")
    assert (failed.failed, failed.note) == (True, "failed: AssertionError: no such kernel")
    assert (left.failed, left.note) == (False, "not run: left out")
    assert benchmark_gpu.line(failed).endswith(failed.note)


def test_a_gpu_that_is_not_there_is_an_error(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(SystemExit):
        benchmark.main(["--device", "cuda"])
    assert "no CUDA device" in capsys.readouterr().err


def test_the_fastest_configuration_is_kept():
    pytest.importorskip("triton", reason="needs Triton, whose wheels are for Linux")
    tune = runpy.run_path(str(Path(__file__).parents[2] / "dev" / "tune_triton.py"))
    from visionssm_kernels.triton import tuning

    def timer(kind, d_state):  # as if few channels and many steps were best
        block, group, _ = getattr(tuning.TABLES[90], kind)[d_state]
        return block / group

    before = tuning.TABLES
    table = tune["tuned"](90, "a GPU", timer)
    assert tuning.TABLES is before
    assert table.scan[1] == (8, 8, 255)
    assert table.scan_backward[64] == (8, 2, 255)
    assert table.measured == "a GPU"
    path = Path(tune["tuning"].PATH)
    assert tuning.read(path) == before
    assert json.loads(tune["written"]({90: table}))["90"]["scan"]["1"] == [8, 8, 255]
