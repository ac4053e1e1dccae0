"""tools/predict.py on files, folders and patterns."""

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.tools.test_evaluate import run


def test_table_json_and_sheet(run_folder, digit_folder, tmp_path, monkeypatch, capsys) -> None:
    ones, twos = digit_folder / "test" / "1", digit_folder / "test" / "2"
    single = next(ones.iterdir())
    out, sheet = tmp_path / "out.json", tmp_path / "sheet.png"
    run("predict", monkeypatch, run_folder, single, ones, f"{twos}/*.png", "--json", out, "--sheet", sheet)
    predictions = json.loads(out.read_text())["predictions"]
    files = [*ones.iterdir(), *twos.iterdir()]
    assert predictions[0]["image"] == str(single)
    assert sorted(p["image"] for p in predictions) == sorted(map(str, files))  # each once
    for prediction in predictions:
        assert prediction["probabilities"] == sorted(prediction["probabilities"], reverse=True)
        assert len(prediction["classes"]) == 3
    right = [p["classes"][0] == Path(p["image"]).parent.name for p in predictions]
    assert sum(right) / len(right) > 0.5
    table = capsys.readouterr().out
    assert all(str(path) in table for path in files)
    with Image.open(sheet) as image:
        assert image.height > 200


def test_corrupt_images_stop_unless_skipped(run_folder, digit_folder, tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "bad.png").write_bytes(b"broken")
    good = next((digit_folder / "test" / "4").iterdir())
    with pytest.raises(SystemExit, match=r"cannot read image .*bad\.png.*--skip-corrupt"):
        run("predict", monkeypatch, run_folder, tmp_path, good)
    run("predict", monkeypatch, run_folder, tmp_path, good, "--skip-corrupt", "--json", tmp_path / "out.json")
    assert "skipped: cannot read image" in capsys.readouterr().out
    result = json.loads((tmp_path / "out.json").read_text())
    assert len(result["predictions"]) == len(result["skipped"]) == 1


@pytest.mark.parametrize("option", [("--top", -1), ("--batch-size", 0), ("--batch-size", "-3"), ("--sheet-images", 0)])
def test_numbers_that_cannot_be_meant_are_refused(option, run_folder, digit_folder, monkeypatch, capsys) -> None:
    with pytest.raises(SystemExit):
        run("predict", monkeypatch, run_folder, digit_folder, *option)
    assert f"argument {option[0]}: '{option[1]}' must be a whole number of at least 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("entry", "message"),
    [("none.png", "no such image"), ("*.none", "matches no file"), ("EMPTY", "holds no images")],
)
def test_inputs_without_images_are_named(run_folder, tmp_path, entry, message, monkeypatch) -> None:
    entry = tmp_path if entry == "EMPTY" else entry
    with pytest.raises(SystemExit, match=message):
        run("predict", monkeypatch, run_folder, entry)
