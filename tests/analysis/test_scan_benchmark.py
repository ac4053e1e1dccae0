"""The measurements of the scan benchmark, each against a slow or known answer."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.tolerances import TOLERANCES
from visionssm.analysis.scan_benchmark import cells as cells_module
from visionssm.analysis.scan_benchmark.cells import Cell, fingerprint, run_cells
from visionssm.analysis.scan_benchmark.config import (
    BenchmarkConfig,
    CostConfig,
    DenseConfig,
    GeometryConfig,
    LearningConfig,
    RecipeConfig,
    SeeingConfig,
)
from visionssm.analysis.scan_benchmark.cost import cost_cells, growth, peak_bytes
from visionssm.analysis.scan_benchmark.figures import path_entry
from visionssm.analysis.scan_benchmark.findings import _cost
from visionssm.analysis.scan_benchmark.geometry import (
    autocorrelation,
    geometry_cells,
    locality,
    neighbours_within,
    step_lengths,
)
from visionssm.analysis.scan_benchmark.images import user_photos
from visionssm.analysis.scan_benchmark.learning import compare, learning_cells
from visionssm.analysis.scan_benchmark.run import chosen_scans, label
from visionssm.analysis.scan_benchmark.seeing import _encode, decode, hidden_attention, receptive_field, seeing_cells
from visionssm.analysis.scan_benchmark.seeing import measure as look
from visionssm.analysis.scan_benchmark.tasks import open_task
from visionssm.data.errors import DataError, UserError
from visionssm.engine.config import ConfigError, build_config, load_config
from visionssm.scans import create_scan
from visionssm_kernels import routed_scan

ROOT = Path(__file__).parents[2]
SIZE = (5, 7)
SCANS = [
    "raster",
    "cross",
    "hilbert",
    "window",
    "skip",
]  # one route, several, a curve, padded, each its share


# Geometry


@pytest.mark.parametrize("name", SCANS)
def test_steps_and_neighbours_against_loops(name: str) -> None:
    scan = create_scan(name)
    routes = [[place for place in route if place >= 0] for route in scan.routes(SIZE).tolist()]
    wanted = [(a // 7 - b // 7) ** 2 + (a % 7 - b % 7) ** 2 for route in routes for a, b in pairwise(route)]
    assert step_lengths(scan.routes(SIZE), SIZE).tolist() == wanted
    padded = scan.routes(SIZE).tolist()
    pairs = [(p, p + 1) for p in range(35) if p % 7 < 6] + [(p, p + 7) for p in range(28)]
    for t in (1, 3, 9):
        near = [
            [a in route and b in route and abs(route.index(a) - route.index(b)) <= t for a, b in pairs]
            for route in padded
        ]
        mean, best = neighbours_within(scan.inverse(SIZE), SIZE, [t])
        assert mean == [pytest.approx(np.mean(near))]
        assert best == [pytest.approx(np.mean(np.any(near, axis=0)))]


@pytest.mark.parametrize("name", SCANS)
def test_autocorrelation_against_loops(name: str) -> None:
    photos = torch.rand(2, 35, generator=torch.Generator().manual_seed(0))
    routes = create_scan(name).routes(SIZE)
    waves = autocorrelation(routes, photos, 3)
    for lag in range(len(waves)):
        wanted = []
        for route in routes.tolist():
            path = [place for place in route if place >= 0]
            for photo in photos.double().numpy():
                read = photo[path]
                centred = read - read.mean()
                products = [centred[i] * centred[i + lag] for i in range(len(read) - lag)]
                wanted.append(np.mean(products) / read.var())
        assert waves[lag].item() == pytest.approx(np.mean(wanted), rel=1e-9)
    assert waves[0].item() == pytest.approx(1)


def test_locality_of_lines_and_columns() -> None:
    rows = torch.arange(64).view(8, 8)
    columns = rows.T
    padded = torch.cat([rows.flatten(), torch.full((5,), -1)])[None]
    # sectors of 32 bytes hold one row of eight 4-byte values
    assert locality(rows.reshape(1, -1), 4, 32, 4) == pytest.approx(1 / 8)
    assert locality(padded, 4, 32, 4) == pytest.approx(1 / 8)
    assert locality(columns.reshape(1, -1), 4, 32, 4) == 1  # forgotten before the next column comes by
    assert locality(columns.reshape(1, -1), 4, 32, 8) == pytest.approx(1 / 8)
    assert locality(rows.reshape(1, -1), 96, 32, 4) == 3  # a row of channels covers three sectors of its own


# Cost


def test_growth_finds_the_exponent() -> None:
    rows = [
        {"order": name, "device": "cpu", "dtype": "float32", "backend": "auto", "batch": 1, "tokens": n,
         "forward_s": 2e-6 * n**power, "both_s": 3e-6 * n, "peak_bytes": 8 * n}
        for name, power in (("raster", 1.0), ("slow", 2.0))
        for n in (100, 400, 1600)
    ]  # fmt: skip
    fits = {fit["order"]: fit for fit in growth(rows)}
    assert fits["raster"]["forward"] == pytest.approx(1)
    assert fits["slow"]["forward"] == pytest.approx(2)
    assert fits["slow"]["memory_factor"] == pytest.approx(8)
    assert fits["slow"]["forward_error"] == pytest.approx(0, abs=1e-9)
    assert growth(rows[:1]) == []
    assert growth(rows[:2])[0]["forward_error"] is None


def test_what_is_said_of_times_keeps_settings_apart() -> None:
    speeds = {("numba", 1): 1e-6, ("reference", 1): 1e-4, ("numba", 8): 1e-5}
    cost = [
        {"order": name, "device": "cpu", "dtype": "float32", "backend": backend, "batch": batch, "tokens": batch * n,
         "routes": slower**2, "forward_s": speed, "both_s": speed * n * slower, "peak_bytes": 8}
        for name, slower in (("raster", 1), ("slow", 2))
        for (backend, batch), speed in speeds.items()
        for n in (100, 400)
    ]  # fmt: skip
    figures = {"cost": cost, "growth": growth(cost)}
    assert [line.removeprefix("Forward and backward over ") for line in _cost(figures)[::2]] == [
        "400 tokens (numba, batch 1) take from 0.4 ms (raster, 1 route) to 0.8 ms (slow, 4 routes).",
        "400 tokens (reference, batch 1) take from 40.0 ms (raster, 1 route) to 80.0 ms (slow, 4 routes).",
        "3,200 tokens (numba, batch 8) take from 4.0 ms (raster, 1 route) to 8.0 ms (slow, 4 routes).",
    ]
    assert _cost(figures)[1] == "Time (numba, batch 1) grows as tokens to the power 1.00 to 1.00; 1 is linear."
    alone = [row for row in cost if row["backend"] == "reference"]
    assert _cost({"cost": alone, "growth": growth(alone)})[0].startswith(
        "Forward and backward over 400 tokens take from"
    )


@pytest.mark.parametrize(
    ("grid", "name"), [("scans_quick", "cross"), ("scans_quick", "slices"), ("scans_full", "slices")]
)
def test_the_backbone_of_the_grids_takes_orders_and_shows_its_attention(tmp_path: Path, grid: str, name: str) -> None:
    config = load_config(BenchmarkConfig, ROOT / "configs" / "benchmark" / f"{grid}.yaml", ["learning.on=false"])
    (cell,) = seeing_cells([create_scan(name)], SeeingConfig(photos=1, size=32), config.learning)
    seen = look(create_scan(name), cell.params, tmp_path)
    assert seen["attention_side"] == 8
    assert 0 < seen["attention_distance"] < 8
    assert learning_cells([create_scan(name)], config.learning)


def test_peak_memory_is_what_is_held_at_once() -> None:
    def run() -> torch.Tensor:
        first = torch.zeros(1000, 1000)
        del first
        return torch.zeros(500, 1000) + 1

    assert peak_bytes(run, torch.device("cpu")) == pytest.approx(4_000_000, rel=0.01)


def test_cost_refuses_what_cannot_run() -> None:
    with pytest.raises(UserError, match="triton on cpu in float32"):
        cost_cells([create_scan("raster")], CostConfig(backends=("triton",)), machine={})


# Learning


def test_comparison_with_the_baseline() -> None:
    rows = {
        row["order"]: row
        for row in compare(
            {"raster": [1.0, 2.0, 3.0], "a": [2.0, 2.5, 4.5], "b": [3.0, 4.0, 5.0], "c": [1.5, 1.5, 3.0]},
            "raster",
        )
    }
    assert (rows["raster"]["mean"], rows["raster"]["std"], rows["raster"]["p"]) == (2.0, 1.0, None)
    # a: differences 1, 0.5, 1.5: t = 1 / (0.5 / sqrt 3), two degrees of freedom
    t = 2 * math.sqrt(3)
    assert rows["a"]["p"] == pytest.approx(1 - t / math.sqrt(t * t + 2))
    assert rows["b"]["difference"] == 2.0
    assert rows["b"]["p"] is None  # the same difference every time: nothing to test
    assert rows["a"]["p_holm"] == pytest.approx(2 * rows["a"]["p"])
    assert rows["c"]["p_holm"] == pytest.approx(max(rows["c"]["p"], 2 * rows["a"]["p"]))


@pytest.mark.parametrize("name", ["segmentation", "restoration"])
def test_dense_tasks(name: str) -> None:
    task = open_task(name, DenseConfig(size=48))
    images, target = task.batch(0, 3, 2)
    assert images.shape == (2, 3, 48, 48)
    assert all(torch.equal(a, b) for a, b in zip((images, target), task.batch(0, 3, 2), strict=True))
    assert not torch.equal(images, task.batch(0, 4, 2)[0])
    assert not torch.equal(images, task.batch(1, 3, 2)[0])
    assert torch.equal(task.test(2)[0], open_task(name, DenseConfig(size=48)).test(2)[0])
    if name == "segmentation":
        right = torch.nn.functional.one_hot(target, 11).movedim(-1, 1).float()
        assert len(target.unique()) >= 3
        assert task.score(right, target) == 1
        assert task.score(right.roll(1, 1), target) == 0
    else:
        assert task.score(torch.full_like(target, 0.5), torch.full_like(target, 0.4)) == pytest.approx(20, abs=1e-4)
        assert (images - target).std().item() == pytest.approx(25 / 255, rel=0.05)


def test_photos_of_a_user(tmp_path: Path) -> None:
    from PIL import Image

    for index in range(4):
        Image.new("RGB", (60, 50), (index, 0, 0)).save(tmp_path / f"{index}.png")
    train, test = user_photos(str(tmp_path))
    assert [round(255 * photo[0, 0, 0].item()) for photo in (*train, *test)] == [0, 1, 2, 3]
    (tmp_path / "3.png").unlink()
    with pytest.raises(DataError, match="at least 4 images"):
        user_photos(str(tmp_path))


# Seeing


@pytest.mark.parametrize("name", SCANS)
def test_hidden_attention_is_the_scan(name: str) -> None:
    scan, generator = create_scan(name), torch.Generator().manual_seed(0)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    L, K, D, N = 35, scan.num_routes, 3, 2
    u, delta, B, C = normal(1, L, 1, D), normal(1, L, K, D), normal(1, L, K, N), normal(1, L, K, N)
    A, skip, bias = -normal(K, D, N).exp(), normal(K, D), normal(K, D)
    order = scan.routes(SIZE)
    y = routed_scan(u, delta, A, B, C, skip, bias, order=order, merge="none", backend="reference")[0]
    weights = hidden_attention(delta[0], A, B[0], C[0], bias, order)
    visited = torch.zeros(K, L, dtype=torch.float64)
    for k, route in enumerate(order):
        visited[k, route[route >= 0]] = 1
    got = torch.einsum("kdts,sd->tkd", weights, u[0, :, 0]) + skip * u[0] * visited.T[..., None]
    torch.testing.assert_close(got, y, **TOLERANCES[torch.float64])


@pytest.mark.parametrize("name", ["slices", "adaptive"])
def test_attention_of_orders_without_one_table(name: str, tmp_path: Path) -> None:
    model = {"task": "restoration", "model": "vmamba_nano", "kwargs": {"dim": 16, "depths": [1]}}
    params = {"photos": 1, "size": 32, "cell": None, "model": model}
    seen = look(create_scan(name), params, tmp_path)
    rows = torch.from_numpy(decode(seen["attention"], seen["attention_side"]).copy())
    side = seen["attention_side"]
    assert (side, rows.shape) == (8, (64, 64))
    assert rows.diagonal().gt(0).all()
    y, x = torch.arange(64) // side, torch.arange(64) % side
    lines = (y[:, None] == y) | (x[:, None] == x)
    if name == "slices":  # half of the channels read along rows, half along columns, and nothing from line to line
        assert not rows[~lines].any()
    else:
        assert rows[~lines].any()
        assert not torch.equal(rows > 0, torch.ones(64, 64).tril() > 0)  # not the raster


def test_orders_read_off_the_image_are_drawn_of_a_photo() -> None:
    entry = path_entry(create_scan("semantic"), 8)
    assert entry["content"]
    (path,) = entry["paths"]
    assert sorted(path) == list(range(64))
    assert path != list(range(64))
    assert path_entry(create_scan("semantic"), 8) == entry
    assert geometry_cells([create_scan("semantic")], GeometryConfig()) == []


def test_receptive_field_of_a_convolution() -> None:
    conv = torch.nn.Conv2d(3, 4, 3, padding=1)
    field = receptive_field(conv, torch.rand(2, 3, 16, 16))
    assert field.sum().item() == pytest.approx(1, rel=1e-5)
    seen = field > 0
    assert seen[5:11, 5:11].all()  # the central 4 x 4 outputs and a pixel around
    assert seen.sum() == 36


def test_maps_survive_the_report() -> None:
    values = torch.tensor([[0.0, 1.0], [4.0, 2.0]])
    assert decode(_encode(values), 2).tolist() == [[0, 128], [255, 180]]


# The grid


def test_orders_are_chosen_by_name_and_options() -> None:
    config = BenchmarkConfig(output="x", scans=("hilbert", {"name": "random", "seed": 3}))
    assert [label(scan) for scan in chosen_scans(config)] == ["raster", "hilbert", "random(seed=3)"]
    with pytest.raises(UserError, match="hilbert"):
        chosen_scans(BenchmarkConfig(output="x", scans=("hilbrt",)))
    with pytest.raises(UserError, match="named twice: hilbert"):
        chosen_scans(BenchmarkConfig(output="x", scans=("hilbert", "hilbert")))
    everything = chosen_scans(BenchmarkConfig(output="x"))
    assert everything[0].name == "raster"
    assert len(everything) > 20


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"output": "x", "learning": {"seeds": 1}}, "learning.seeds"),
        ({"output": "x", "geometri": {}}, "geometry"),
        ({"output": "x", "cost": {"dtypes": ["float8"]}}, "cost.dtypes"),
        ({"output": "x", "learning": {"dense": {"size": 8}}}, "learning.dense.size"),
    ],
)
def test_refuses_a_wrong_config(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_config(BenchmarkConfig, tree)


def test_refuses_a_wrong_recipe_before_anything_is_trained() -> None:
    with pytest.raises(ConfigError, match="epochs"):
        learning_cells([create_scan("raster")], LearningConfig(classification={"run": {"epoch": 3}}))


def test_recipes_of_a_user_are_tasks_of_their_own(tmp_path: Path) -> None:
    demo = Path(__file__).parents[2] / "configs" / "restoration" / "demo_mambair_nano_x2.yaml"
    own = (RecipeConfig(trainer="restoration", recipe=str(demo)),)
    cells = learning_cells(
        [create_scan("raster"), create_scan("hilbert")], LearningConfig(tasks=(), seeds=2, recipes=own)
    )
    assert [(cell.params["task"], cell.params["seed"]) for cell in cells] == [(demo.stem, s) for s in (0, 0, 1, 1)]
    wrong = RecipeConfig(trainer="classification", recipe=str(demo))
    with pytest.raises(ConfigError, match="unknown key"):
        learning_cells([create_scan("raster")], LearningConfig(tasks=(), recipes=(wrong,)))


def test_cells_are_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = geometry_cells([create_scan("raster"), create_scan("cross")], GeometryConfig(sizes=((6, 6),)))
    first = run_cells(grid, tmp_path, workers=0)
    assert [outcome.cell for outcome in first] == grid
    monkeypatch.setitem(cells_module.MEASURES, "geometry", "a module that must not be needed again")
    assert run_cells(grid, tmp_path, workers=0) == first
    other = Cell("geometry", grid[0].scan, {**grid[0].params, "lags": 3})
    assert other.digest != grid[0].digest


def test_a_cell_that_fails_is_reported_and_not_kept(tmp_path: Path) -> None:
    good, bad = geometry_cells([create_scan("raster")], GeometryConfig(sizes=((6, 6), (7, 7))))
    del bad.params["within"]
    outcomes = run_cells([bad, good], tmp_path, workers=0)
    assert (outcomes[0].result, outcomes[0].error) == (None, "KeyError: 'within'")
    assert outcomes[1].result is not None
    assert not (bad.folder(tmp_path) / "result.json").exists()


def test_fingerprint_follows_the_routes() -> None:
    assert fingerprint(create_scan("random", seed=1)) != fingerprint(create_scan("random", seed=2))
    assert fingerprint(create_scan("raster")) == fingerprint(create_scan("raster"))
