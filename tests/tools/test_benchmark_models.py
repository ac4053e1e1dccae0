"""The model benchmark: names, modes, turns, what cannot run, and the files it writes."""

import csv
import io
import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import visionssm
from visionssm.analysis import speed, speed_report, zoo_speed
from visionssm.analysis.baselines import BASELINES, VOLUME_BASELINES, fitting_baselines
from visionssm.analysis.speed import Result, Setting, measure, resolve_models
from visionssm.analysis.zoo_speed import BESIDE, Part, family_of, measure_zoo, zoo_parts
from visionssm.models.reported import REPORTED

ROOT = Path(__file__).parents[2]
QUICK = Setting(batch=2, repetitions=2, warmup=1)


@pytest.fixture(scope="module")
def results() -> list[Result]:
    return measure(["vmamba_nano", "resnet10t"], [32], ["latency", "inference", "training", "loop"], QUICK)


def test_names() -> None:
    assert resolve_models(["vim_tiny", "swin_tiny", "vim_tiny"]) == ["vim_tiny", BASELINES["swin_tiny"]]
    assert resolve_models(["vmamba_v0_*"]) == ["vmamba_v0_base", "vmamba_v0_small", "vmamba_v0_tiny"]
    with pytest.raises(ValueError, match=r"unknown model 'vim_tinny': did you mean vim_tiny or (?!vim_tiny )"):
        resolve_models(["vim_tinny"])
    with pytest.raises(ValueError, match="no model of visionssm fits 'nothing_"):
        resolve_models(["nothing_*"])


def test_every_mode_is_measured(results: list[Result]) -> None:
    in_turn = [(mode, model) for mode in ("latency", "inference", "training") for model in ("vmamba_nano", "resnet10t")]
    assert [(r.mode, r.model) for r in results] == [*in_turn, ("loop", "vmamba_nano")]
    assert [r.batch for r in results] == [1, 1, 2, 2, 2, 2, 1]
    for result in results:
        assert not result.problem
        assert 0 < result.fastest <= result.seconds <= result.slowest
        assert result.parameters
        assert result.macs
        assert result.flops > result.macs
        assert result.throughput == result.batch / result.seconds
    [(model, resolution, ratio)] = speed_report.loop_ratios(results)
    assert (model, resolution) == ("vmamba_nano", 32)
    assert ratio == results[-1].seconds / results[0].seconds


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the memory of a process")
def test_memory_holds_the_weights(results: list[Result]) -> None:
    for result in results:
        assert result.peak_bytes >= 4 * result.parameters


def test_the_loop_runs_the_loop_and_models_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = speed._one_pass

    def spy(subject: object, image: torch.Tensor, mode: str, setting: Setting) -> None:
        seen.append((subject.result.model, mode))
        original(subject, image, mode, setting)

    monkeypatch.setattr(speed, "_one_pass", spy)
    measure(["vim_nano", "vmamba_nano"], [64], ["latency"], QUICK)
    first, then = [name for name, _ in seen[:6]], [name for name, _ in seen[6:]]
    assert first == ["vim_nano"] * 3 + ["vmamba_nano"] * 3  # a warm-up, one for the memory, the first that counts
    assert then == ["vim_nano", "vmamba_nano"]


def test_baselines_are_those_of_the_task() -> None:
    assert fitting_baselines([]) == fitting_baselines(["vim_tiny", "mambair_light_x2"]) == list(BASELINES)
    assert fitting_baselines(["segmamba_nano"]) == list(VOLUME_BASELINES)
    assert fitting_baselines(["mambair_light_x2"]) == []
    assert resolve_models(["segresnet"]) == ["segresnet"]


def test_volumes_beside_monai(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VOLUME_BASELINES, "segresnet", ("SegResNet", {"init_filters": 8}))
    setting = Setting(batch=1, repetitions=1, warmup=1)
    done = measure(["segmamba_nano", "segresnet"], [16], ["inference", "training", "checkpointed"], setting)
    assert [(r.model, r.mode, r.problem) for r in done] == [
        ("segmamba_nano", "inference", ""),
        ("segresnet", "inference", ""),
        ("segmamba_nano", "training", ""),
        ("segresnet", "training", ""),
        ("segmamba_nano", "checkpointed", ""),
    ]
    assert all(r.seconds and r.macs for r in done)


@pytest.mark.slow
def test_the_baselines_for_volumes_are_built_and_counted() -> None:
    for name in VOLUME_BASELINES:
        result = speed._build(name, 64, QUICK).result
        assert not result.problem
        assert 4e6 < result.parameters < 7e7
        assert 1e10 < result.macs < 1e12


def test_what_is_said_of_targets() -> None:
    target = speed_report.Target(model="a", resolution=64, loop=8, beside="b", times=2, train=True)
    seconds = {("a", "latency"): 3.0, ("b", "latency"): 2.0, ("a", "loop"): 21.0, ("a", "training"): 9.0}
    results = [Result(model=m, mode=mode, resolution=64, batch=1, seconds=s) for (m, mode), s in seconds.items()]
    assert target.verdicts(results) == [
        "a at 64: 7.0 times as fast as with the per-step loop (target 8: MISSED)",
        "a at 64 beside b: 1.50 times its time (target at most 2: met)",
        "a at 64, a training step: 9.0 s",
    ]
    assert target.verdicts(results[1:]) == ["a at 64: not measured"]


def test_targets_of_some_models() -> None:
    chosen = speed_report.chosen_targets(["segmamba_brats2023", "vim_tiny"])
    assert [target.model for target in chosen] == ["vim_tiny", "segmamba_brats2023"]
    assert speed_report.chosen_targets([]) == speed_report.TARGETS
    with pytest.raises(ValueError, match=r"vim_small has no target: choose of vim_tiny, "):
        speed_report.chosen_targets(["vim_tiny", "vim_small"])


def test_what_cannot_run_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    original = speed._one_pass

    def hungry(subject: object, image: torch.Tensor, mode: str, setting: Setting) -> None:
        if subject.result.model == "vmamba_nano":
            raise torch.OutOfMemoryError("tried to allocate 20.00 GiB")
        original(subject, image, mode, setting)

    monkeypatch.setattr(speed, "_one_pass", hungry)
    done = measure(["vmamba_nano", "vim_nano"], [32, 64], ["latency"], QUICK)
    problems = {(r.model, r.resolution): r.problem for r in done}
    assert problems["vmamba_nano", 32] == "out of memory: tried to allocate 20.00 GiB"
    assert problems["vmamba_nano", 64] == "not tried: out of memory at 32"
    assert problems["vim_nano", 32] == problems["vim_nano", 64] == ""


def test_a_size_that_a_model_does_not_take_is_recorded() -> None:
    vim, vmamba = measure(["vim_nano", "vmamba_nano"], [4], ["latency"], QUICK)
    assert vim.seconds is None
    assert "4" in vim.problem
    assert vmamba.seconds


def test_files(results: list[Result], tmp_path: Path) -> None:
    content = json.loads(speed_report.to_json(results, QUICK, "python tools/benchmark_models.py"))
    assert [row["seconds"] for row in content["rows"]] == [r.seconds for r in results]
    assert content["setting"]["arithmetic"] == "float32, eager, contiguous"
    assert torch.__version__ in content["setting"]["versions"]
    rows = list(csv.DictReader(io.StringIO(speed_report.to_csv(results))))
    assert [row["model"] for row in rows] == [r.model for r in results]
    plots = speed_report.to_plots(results, QUICK, tmp_path)
    assert [path.name for path in plots] == ["latency.png", "inference.png", "training.png", "loop.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in plots)


PARTS = [Part(name=name, models=(name, "resnet10t"), resolution=32) for name in ("vmamba_nano", "vssd_nano")]


def test_the_zoo_is_every_published_classifier_once_beside_the_baselines() -> None:
    timm, *families = zoo_parts()
    assert timm.models == tuple(BASELINES.values())
    ours = [name for part in families for name in part.models if name not in BESIDE]
    classifiers = visionssm.list_models(task="classification")
    published = [name for name in classifiers if name in REPORTED and REPORTED[name].top1 is not None]
    assert sorted(ours) == published
    assert all(part.models[: len(BESIDE)] == BESIDE for part in families)
    at = {name: part.resolution for part in families for name in part.models}
    assert (at["mobile_mamba_b4"], at["vim_tiny"]) == (512, 224)
    assert len({part.name for part in families}) == len(families)
    assert [part.models for part in zoo_parts(["vim_tiny", "vim_nano"])[1:]] == [(*BESIDE, "vim_tiny")]


def test_a_run_that_was_cut_off_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file, measured = tmp_path / "zoo.json", []

    def spy(
        models: list[str], resolutions: list[int], modes: list[str], *args: object, **options: object
    ) -> list[Result]:
        measured.append((models[0], tuple(modes)))
        if fail := models[0] == "vssd_nano" and len(measured) == 2:
            raise KeyboardInterrupt(fail)
        return measure(models, resolutions, modes, *args, **options)

    monkeypatch.setattr(zoo_speed, "measure", spy)
    with pytest.raises(KeyboardInterrupt):
        measure_zoo(PARTS, ["inference"], QUICK, file=file)
    kept = json.loads(file.read_text())["rows"]
    assert [row["part"] for row in kept] == ["vmamba_nano"] * 2
    results = measure_zoo(PARTS, ["inference", "loop"], QUICK, file=file)
    assert measured[2:] == [("vmamba_nano", ("loop",)), ("vssd_nano", ("inference", "loop"))]
    assert [(r.part, r.model, r.mode) for r in results] == [
        (part, model, mode)
        for part in ("vmamba_nano", "vssd_nano")
        for model, mode in ((part, "inference"), ("resnet10t", "inference"), (part, "loop"))
    ]
    assert [r.seconds for r in results[:2]] == [row["seconds"] for row in kept]
    assert measure_zoo(PARTS, ["inference", "loop"], QUICK, file=file) == results
    assert len(measured) == 4
    assert len(speed_report.loop_ratios(measure_zoo(PARTS, ["latency", "loop"], QUICK, file=file))) == 2
    assert speed_report.to_table(results).count("resnet10t") == 2
    with pytest.raises(ValueError, match="measured with batch 2, this run is with 3"):
        measure_zoo(PARTS, ["loop"], replace(QUICK, batch=3), file=file)
    file.write_text("[]")
    with pytest.raises(ValueError, match="is no file of measurements"):
        measure_zoo(PARTS, ["loop"], QUICK, file=file)


def test_accuracy_against_throughput_is_drawn_by_family(tmp_path: Path) -> None:
    names = [*BASELINES.values(), "vim_tiny", "vim_small", "mobile_mamba_b4"]
    results = [
        Result(model=name, mode="inference", resolution=224, batch=4, seconds=0.1 * i, top1=70.0 + i)
        for i, name in enumerate(names, 1)
    ]
    assert [family_of(name) for name in names[4:]] == ["timm", "vim", "vim", "mobile_mamba"]
    speed_report.to_accuracy_plot(results, QUICK, tmp_path / "a" / "zoo.png", family_of)
    assert (tmp_path / "a" / "zoo.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="no model has both"):
        speed_report.to_accuracy_plot(results, QUICK, tmp_path / "zoo.png", family_of, mode="latency")


def run_tool(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    tool = str(ROOT / "tools" / "benchmark_models.py")
    monkeypatch.setattr(sys, "argv", [tool, *arguments])
    monkeypatch.setattr(speed, "limit_memory", lambda: None)  # it would hold for the tests that follow
    runpy.run_path(tool, run_name="__main__")


def test_the_tool_prints_table_conventions_and_ratio(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    sizes = ("--resolutions", "32", "--modes", "latency", "--repetitions", "1", "--warmup", "1")
    run_tool(monkeypatch, "vmamba_nano", "--no-baselines", "--loop", "--device", "cpu", *sizes)
    output = capsys.readouterr().out
    assert "float32, eager, contiguous; median of 1, models in turn" in output
    assert "9 B L D N" in output
    assert "vmamba_nano at 32: " in output
    assert "times as fast as with the per-step loop" in output


def test_the_tool_answers_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"^error: unknown model 'vmamba_tinny'"):
        run_tool(monkeypatch, "vmamba_tinny")


@pytest.mark.parametrize("name", ["segmamba_nano", "segmamba_nan*"])
def test_volumes_run_one_at_a_time_and_folders_are_made_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    def stop(names: list[str], resolutions: list[int], modes: list[str], setting: Setting, **report: object) -> None:
        assert (list(names), setting.batch) == (["segmamba_nano"], 1)
        assert (tmp_path / "new").is_dir()
        raise ValueError("measured")

    monkeypatch.setattr(speed, "measure", stop)
    with pytest.raises(SystemExit, match="measured"):
        run_tool(monkeypatch, name, "--no-baselines", "--json", str(tmp_path / "new" / "x.json"))
    with pytest.raises(SystemExit, match=r"^error: .* is a folder"):
        run_tool(monkeypatch, name, "--no-baselines", "--csv", str(tmp_path))


def test_the_tool_goes_through_the_zoo(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr(zoo_speed, "zoo_parts", lambda names: PARTS)
    sizes = ("--device", "cpu", "--modes", "inference", "--repetitions", "1", "--warmup", "1")
    files = ("--json", str(tmp_path / "zoo.json"), "--accuracy-plot", str(tmp_path / "zoo.png"))
    with pytest.raises(SystemExit, match=r"^error: no model has both an accuracy and a throughput"):
        run_tool(monkeypatch, "--zoo", *sizes, *files)
    assert "vssd_nano: inference, 32 pixels, batch 4" in capsys.readouterr().out
    (tmp_path / "zoo.json").unlink()
    monkeypatch.setitem(speed.REPORTED_BY_TIMM, "resnet10t", 66.0)
    run_tool(monkeypatch, "--zoo", *sizes, *files)
    assert (tmp_path / "zoo.png").exists()
    rows = json.loads((tmp_path / "zoo.json").read_text())["rows"]
    assert [(row["part"], row["top1"]) for row in rows] == [
        ("vmamba_nano", None),
        ("vmamba_nano", 66.0),
        ("vssd_nano", None),
        ("vssd_nano", 66.0),
    ]
    with pytest.raises(SystemExit):
        run_tool(monkeypatch, "--zoo", "--targets")
    assert "choose one of --zoo and --targets" in capsys.readouterr().err
