"""The benchmark of scan orders from the command line, with a user's own order, and its report in a real browser."""

import csv
import json
import os
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "tests" / "analysis" / "example_order.py"
ORDERS = ["raster", "cross", "outside_in"]
GRID = """
output: {output}
workers: 1
geometry: {{sizes: [[8, 8], [16, 16]]}}
cost: {{sizes: [[8, 8], [16, 16]], channels: 16, repeats: 1}}
learning:
  seeds: 2
  kwargs: {{dim: 16, depths: [1]}}
  classification:
    run: {{epochs: 1, batch_size: 250, threads: 1}}
    data: {{name: digits, image_size: 32, crop_pct: 1.0, workers: 0, test_split: test}}
    augment: {{library: none}}
  dense: {{size: 48, steps: 2, batch_size: 2, test_images: 2}}
seeing: {{photos: 2, size: 32}}
"""
CHROMIUM_ARGUMENTS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--disable-dev-shm-usage",
]
LAUNCHES = 5

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("benchmark_scans"), pytest.mark.timeout(1200)]


def benchmark(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    command = [sys.executable, str(ROOT / "tools" / "benchmark_scans.py"), *arguments]
    environment = {**os.environ, "PYTHONPATH": paths}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; the user's module lies where the command is called."""
    work = tmp_path_factory.mktemp("scans")
    shutil.copy(EXAMPLE, work / "my_order.py")
    (work / "grid.yaml").write_text(GRID.format(output=work / "out"))
    run = benchmark(work, "--config", "grid.yaml", "--import", "my_order", "--scans", *ORDERS)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "report.html" in run.stdout
    return work


def test_every_figure_is_there(folder: Path) -> None:
    figures = json.loads((folder / "out" / "results.json").read_text())
    assert figures["failures"] == []
    assert [entry["order"] for entry in figures["orders"]] == ORDERS
    tasks = {"classification", "segmentation", "restoration"}
    assert {(row["order"], row["task"]) for row in figures["learning"]} == {(o, t) for o in ORDERS for t in tasks}
    assert len(figures["runs"]) == 2 * 3 * len(ORDERS)
    assert len(figures["geometry"]) == len(figures["cost"]) == 2 * len(ORDERS)
    assert all(row["peak_bytes"] > 0 and row["both_s"] > 0 for row in figures["cost"])
    assert [row["order"] for row in figures["growth"]] == ORDERS
    for name in ("geometry", "cost", "growth", "learning", "runs", "seeing"):
        with (folder / "out" / f"{name}.csv").open() as file:
            assert len(list(csv.DictReader(file))) == len(figures[name])
    for name in ("paths", "growth", "autocorrelation", "learning", "receptive_fields", "hidden_attention"):
        assert (folder / "out" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_resumed_without_work(folder: Path) -> None:
    def kept() -> dict[Path, int]:
        return {file: file.stat().st_mtime_ns for file in (folder / "out" / "cells").rglob("result.json")}

    before = kept()
    wanted = json.loads((folder / "out" / "results.json").read_text())
    run = benchmark(folder, "--config", "grid.yaml", "--import", "my_order", "--scans", *ORDERS)
    assert run.returncode == 0, run.stderr
    assert kept() == before
    figures = json.loads((folder / "out" / "results.json").read_text())
    assert {**figures, "about": None} == {**wanted, "about": None}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "none.yaml"], "no such recipe: none.yaml"),
        (["--quick", "--import", "no_such_module"], "--import no_such_module: ModuleNotFoundError"),
        (["--quick", "--scans", "hilbrt"], "did you mean"),
        (["--quick", "learning.seed=3"], "unknown key learning.seed; did you mean"),
    ],
)
def test_errors_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KINETO_LOG_LEVEL", "99")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", ["benchmark_scans.py", *arguments])
    main = runpy.run_path(str(ROOT / "tools" / "benchmark_scans.py"))["main"]
    with pytest.raises(SystemExit) as stopped:
        main()
    assert str(stopped.value).startswith("error: ")
    assert message in str(stopped.value)
    assert list(tmp_path.iterdir()) == []


# The report in Chromium


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("no Chromium on this machine (Debian: apt install chromium)")
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed (the extra dev brings it)"
    )
    with sync_api.sync_playwright() as playwright:
        for attempt in range(LAUNCHES):  # a busy machine may kill a browser that starts; every try has its own profile
            try:
                chromium = playwright.chromium.launch(executable_path=executable, args=CHROMIUM_ARGUMENTS)
                break
            except sync_api.Error as error:
                trouble = str(error).strip().splitlines()[0]
                time.sleep(2 * attempt)
        else:
            pytest.skip(f"{executable} did not start in {LAUNCHES} tries: {trouble}")
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any, folder: Path) -> Iterator[Any]:
    """The report, opened; afterwards nothing may have been complained about or asked of a network."""
    report = (folder / "out" / "report.html").as_uri()
    page = browser.new_page()
    troubles: list[str] = []
    page.on(
        "console",
        lambda message: troubles.append(message.text) if message.type in ("error", "warning") else None,
    )
    page.on("pageerror", lambda error: troubles.append(str(error)))
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(report)
    yield page
    page.close()
    assert troubles == []
    assert [url for url in requests if url != report and not url.startswith(("data:", "blob:"))] == []


def test_report_shows_every_order(page: Any) -> None:
    assert page.locator("#paths-grid h3").all_inner_texts() == ORDERS
    for name in (
        "Learning, classification",
        "Cost, cpu, float32, auto, batch 1",
        "Exponents",
        "Geometry, 16 × 16",
        "Seeing",
    ):
        rows = page.get_by_role("table", name=name, exact=True).locator("tbody th").all_inner_texts()
        assert set(rows) == set(ORDERS), name
    assert page.locator("canvas").count() == len(ORDERS)


def test_tables_sort_with_the_keyboard(page: Any) -> None:
    table = page.get_by_role("table", name="Exponents", exact=True)
    head = table.locator("thead th").nth(1)

    def figures() -> list[float]:
        return [float(text.split(" ")[0]) for text in table.locator("tbody tr td:nth-child(2)").all_inner_texts()]

    assert head.get_attribute("aria-sort") == "none"
    head.get_by_role("button").press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert figures() == sorted(figures())
    head.get_by_role("button").press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert figures() == sorted(figures(), reverse=True)


def test_animation_plays_and_stops(page: Any) -> None:
    image, play = page.locator("#paths-grid svg").first, page.locator("#play")
    assert image.get_attribute("data-step") == "63"
    play.click()
    page.wait_for_function(
        "() => [...document.querySelectorAll('#paths-grid svg')].every(n => n.dataset.step > 2 && n.dataset.step < 50)"
    )
    assert play.inner_text() == "Pause"
    lines = "[...document.querySelectorAll('#paths-grid svg')[0].querySelectorAll('line')]"
    shown = f"() => {lines}.filter(line => line.getAttribute('visibility') == 'visible').length"
    first = page.evaluate(shown)
    page.wait_for_function(f"() => ({shown})() > {first}")
    play.click()
    assert play.inner_text() == "Play"


def test_attention_follows_the_query(page: Any) -> None:
    canvas = page.locator("canvas").first
    pixels = "node => node.toDataURL()"
    field = canvas.evaluate(pixels)
    canvas.click(position={"x": 20, "y": 20})
    first = canvas.evaluate(pixels)
    assert "Hidden attention" in canvas.get_attribute("aria-label")
    canvas.press("ArrowRight")
    assert len({field, first, canvas.evaluate(pixels)}) == 3


def test_plots_follow_the_choice(page: Any) -> None:
    chip = page.locator("#cost ~ .chips .chip").last
    coloured = page.locator("#cost ~ .plot path[stroke]")
    before = coloured.count()
    chip.click()
    assert coloured.count() == before - 1
    chip.click()
    assert coloured.count() == before
    page.locator("#cost ~ .bar select").first.select_option(label="peak memory, MB")
    assert "peak memory, MB against tokens" in page.locator("#cost ~ .plot svg").get_attribute("aria-label")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_fits_the_screen_in_either_scheme(page: Any, width: int, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (sum(ground) > 600) == (scheme == "light")
    controls = "[...document.querySelectorAll('button, select, canvas, svg[role=img], input')]"
    named = "node.innerText || node.labels?.length || node.getAttribute('aria-label')"
    assert page.evaluate(f"{controls}.filter(node => !({named})).length") == 0
