"""The benchmark's baseline computes what the kernels compute, and its report says what ran."""

import json

import pytest
import torch

from tests.tolerances import TOLERANCES
from visionssm_kernels import backends, benchmark, routed_scan


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
    assert {(row["shape"], row["backend"]) for row in result["timings"]} == {
        (shape, backend) for shape in benchmark.QUICK for backend in (benchmark.BASELINE, *report)
    }
    for row in result["timings"]:
        assert row["backend"] in table
        if row["backend"] in (benchmark.BASELINE, "chunked"):
            assert row["forward_s"] > 0
            assert row["both_s"] > row["forward_s"]
        elif row["forward_s"] is None:
            assert row["note"].startswith("not run: ")
    assert report["triton"] in table


def test_long_sequences_do_not_run_the_quadratic_gradient(monkeypatch):
    monkeypatch.setattr(benchmark, "_LOOP_GRADIENT_ELEMENTS", 1)
    shapes = {"small": benchmark.QUICK["vm-small"]}
    rows = benchmark.run(shapes, repeats=1)["timings"]
    assert rows[0]["both_s"] is None
    assert "quadratic" in rows[0]["note"]
    assert all(row["both_ratio"] is None for row in rows)


@pytest.mark.parametrize("arguments", [["--shapes", "nothing"], ["--quick", "--shapes", "vmT1"], ["--repeats", "0"]])
def test_bad_options_are_refused(arguments):
    with pytest.raises(SystemExit):
        benchmark.main(arguments)
