"""tools/evaluate.py on the embedded digits and on folders."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]


def run(name: str, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    """Runs a tool's main() as its command line would."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments), "--cpu"])
    tool.main()


def test_digits_give_the_figures_of_the_training(run_folder, tmp_path, monkeypatch, capsys) -> None:
    out, picture = tmp_path / "scores.json", tmp_path / "confusion.png"
    arguments = ("--data", "digits", "--split", "test", "--json", out, "--confusion", picture)
    run("evaluate", monkeypatch, run_folder, *arguments)
    scores = json.loads(out.read_text())
    trained = json.loads((run_folder / "metrics.json").read_text())
    assert scores["per_class"] == trained["per_class"]
    assert scores["top1"] == trained["scores"]["top1"] > 0.5
    assert scores["top5"] > scores["top1"]
    assert sum(map(sum, scores["confusion"])) == 364
    assert f"test accuracy: top-1 {scores['top1']:.4f}" in capsys.readouterr().out
    with Image.open(picture) as image:
        assert image.width > 300


def test_folders_may_lack_classes_but_not_have_others(run_folder, digit_folder, tmp_path, monkeypatch, capsys) -> None:
    data = tmp_path / "data"
    shutil.copytree(digit_folder / "test", data / "test")
    shutil.rmtree(data / "test" / "0")
    out = tmp_path / "scores.json"
    run("evaluate", monkeypatch, run_folder, "--data", data, "--split", "test", "--json", out)
    rows = json.loads(out.read_text())["per_class"]
    assert [row["class"] for row in rows] == list("0123456789")
    assert rows[0]["images"] == 0
    assert rows[0]["recall"] is None
    right = sum(row["images"] * (row["recall"] or 0) for row in rows)
    assert right / sum(row["images"] for row in rows) > 0.4  # chance if classes were shifted by one
    shutil.copytree(data / "test" / "1", data / "test" / "eleven")
    with pytest.raises(SystemExit, match=r"error: .*class 'eleven'"):
        run("evaluate", monkeypatch, run_folder, "--data", data, "--split", "test")


def test_corrupt_images_stop_unless_skipped(run_folder, digit_folder, tmp_path, monkeypatch, capsys) -> None:
    data = tmp_path / "data"
    shutil.copytree(digit_folder / "test", data / "test")
    bad = next((data / "test" / "3").iterdir())
    bad.write_bytes(b"broken")
    with pytest.raises(SystemExit, match=f"error: cannot read image .*{bad.name}"):
        run("evaluate", monkeypatch, run_folder, "--data", data, "--split", "test")
    run("evaluate", monkeypatch, run_folder, "--data", data, "--split", "test", "--skip-corrupt")
    told = capsys.readouterr().out
    assert f"3/{bad.name}" in told
    assert "39 images" in told
    assert "1 skipped" in told


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        ("nowhere", "digits", "neither a folder nor a model"),
        ("RUN", "nowhere", "nowhere: no such folder"),
        ("DATA", "digits", "not an exported model"),
        ("test_vit", "digits", "cannot load test_vit"),
    ],
)
def test_errors_are_one_line(run_folder, digit_folder, model, data, message, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model = {"RUN": run_folder, "DATA": digit_folder}.get(model, model)
    with pytest.raises(SystemExit, match=message) as error:
        run("evaluate", monkeypatch, model, "--data", data)
    assert len(str(error.value).splitlines()) == 1
