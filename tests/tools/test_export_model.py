"""tools/export_model.py: names, weight files and run folders; errors are one line and leave no file."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

import visionssm
from tests.tools.test_evaluate import ROOT
from visionssm.data.degradations import DegradationConfig
from visionssm.engine.models import ModelConfig, build_classifier, export_classifier, input_stats
from visionssm.engine.restorers import build_restorer, export_restorer

SMALL = {"dim": 16, "depths": (1, 1)}
SMALL_RESTORER = {"dim": 12, "depths": [1], "d_state": 1}


def export(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    spec = importlib.util.spec_from_file_location("export_model", ROOT / "tools" / "export_model.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.setattr(sys, "argv", ["export_model", *map(str, arguments)])
    tool.main()


def classifier_run(folder: Path) -> torch.nn.Module:
    folder.mkdir()
    model = build_classifier(ModelConfig(name="vmamba_nano", kwargs=SMALL), num_classes=3, image_size=None)
    stats = input_stats(model, img_size=16)
    export_classifier(model, model.state_dict(), folder, classes="abc", stats=stats)
    return model.eval()


def restorer_run(folder: Path) -> torch.nn.Module:
    folder.mkdir()
    config = ModelConfig(name="mambair_nano_x2", kwargs={**SMALL_RESTORER, "in_chans": 1})
    model = build_restorer(config)
    export_restorer(model, model.state_dict(), folder, config=config, degradation=DegradationConfig())
    return model.eval()


@pytest.mark.parametrize(("make", "channels"), [(classifier_run, 3), (restorer_run, 1)])
def test_run_folders(make, channels, tmp_path, monkeypatch, capsys) -> None:
    model = make(tmp_path / "run")
    export(monkeypatch, tmp_path / "run", "--out", tmp_path / "model.pt", "--size", 16, 24, "--batch", 1)
    assert f"compared on images of (1, {channels}, 16, 24)" in capsys.readouterr().out
    x = torch.randn(1, channels, 16, 24)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.load(tmp_path / "model.pt")(x), model(x))


@pytest.mark.parametrize("name", ["vmamba_nano", "mambair_nano_x2"])
def test_a_checkpoint_is_loaded(name, tmp_path, monkeypatch) -> None:
    model = visionssm.create_model(name).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    size = ("--size", 16, 16, "--batch", 1)
    export(monkeypatch, name, "--checkpoint", tmp_path / "weights.pth", "--out", tmp_path / "model.pt", *size)
    x = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.load(tmp_path / "model.pt")(x), model(x))


def test_errors_are_one_line_and_leave_no_file(tmp_path, monkeypatch) -> None:
    run, out = tmp_path / "run", tmp_path / "out" / "model.pt2"
    classifier_run(run)

    def message(*arguments: object) -> str:
        with pytest.raises(SystemExit) as stopped:
            export(monkeypatch, *arguments, "--out", out)
        return str(stopped.value)

    assert "32 x 32 are too small" in message("vmamba_nano", "--size", 32, 32)
    assert "no pretrained weights exist" in message("vmamba_nano", "--pretrained").lower()
    torch.save(visionssm.create_model("vmamba_nano", num_classes=7).state_dict(), tmp_path / "seven.pth")
    assert "head.fc.weight: file (7, " in message("vmamba_nano", "--checkpoint", tmp_path / "seven.pth")
    assert "no checkpoint file at" in message("vmamba_nano", "--checkpoint", tmp_path / "none.pth")
    assert "did you mean vmamba_nano" in message("vmamba_nan")
    assert "leave out --num-classes, --scan and --checkpoint" in message(run, "--scan", "hilbert")
    (run / "config.json").write_text(json.dumps({"task": "detection"}))
    assert "is for detection; this tool serves classification and restoration" in message(run)
    (run / "config.json").unlink()
    assert "it has no config.json" in message(run)
    assert not out.exists()
