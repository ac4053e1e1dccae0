"""Published files become folders that timm loads; what fits nothing, or several variants, is refused by name."""

import hashlib
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file

import visionssm
from tests import tolerances
from tests.parity.cases import Case, load_cases
from visionssm.analysis.recognise import convert_file, recognise
from visionssm.checkpoints import CheckpointError

ROOT = Path(__file__).parents[2]
CASES = ROOT / "tests" / "parity"


@pytest.fixture(scope="module")
def case() -> Case:
    return load_cases(CASES / "vim" / "vim_tiny.json")[0]


@pytest.fixture(scope="module")
def published(case: Case) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value) for name, value in case.weights().items()}


@pytest.fixture(scope="module")
def file(published: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("published") / "vim_t.pth"
    torch.save({"model": published, "epoch": 300}, path)
    return path


@pytest.fixture(scope="module")
def folder(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("converted")
    convert_file(file, out, name="vim_tiny", origin="https://example.org/vim")
    return out


@pytest.mark.parametrize("create", [timm.create_model, visionssm.create_model])
def test_a_converted_file_gives_the_published_output(folder: Path, case: Case, create: object) -> None:
    model = create(f"local-dir:{folder}", pretrained=True).eval()
    assert type(model).__name__ == "Vim"
    with torch.no_grad():
        logits = model(torch.from_numpy(case.input())).numpy()
    assert np.abs(logits - case.expected["logits"]).max() <= tolerances.PUBLISHED_LOGITS


def test_the_origin_is_recorded(folder: Path, file: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    record = config["conversion"]
    assert config["architecture"] == record["architecture"] == "vim_tiny"
    assert record["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert record["source"] == config["pretrained_cfg"]["origin_url"] == "https://example.org/vim"
    assert record["licence"] == config["pretrained_cfg"]["license"] == "apache-2.0"
    assert record["layout"].startswith("hustvl/Vim@")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert set(load_file(folder / "model.safetensors")) == set(timm.create_model("vim_tiny").state_dict())


def test_the_variant_is_recognised(published: dict[str, torch.Tensor]) -> None:
    assert recognise({"model": published}).name == "vim_tiny"


def test_another_number_of_classes_is_no_other_model(published: dict[str, torch.Tensor], tmp_path: Path) -> None:
    tuned = {
        **published,
        "head.weight": published["head.weight"][:10],
        "head.bias": published["head.bias"][:10],
    }
    torch.save(tuned, tmp_path / "tuned.pth")
    convert_file(tmp_path / "tuned.pth", tmp_path, name="vim_tiny")
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert model.num_classes == 10
    assert torch.equal(model.head.weight, tuned["head.weight"])


def test_what_does_not_fit_is_named_with_the_closest_variant(published: dict[str, torch.Tensor]) -> None:
    broken = {key: value for key, value in published.items() if key != "norm_f.weight"}
    broken["extra"] = torch.zeros(3)
    with pytest.raises(CheckpointError, match=r"closest is vim_tiny, but norm.weight is missing; extra is unknown"):
        recognise(broken)


def test_a_forced_variant_is_checked_too(file: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not fit Vim"):
        convert_file(file, tmp_path / "out", name="vim_nano")
    assert not (tmp_path / "out").exists()


def test_files_of_other_kinds_are_refused() -> None:
    with pytest.raises(CheckpointError, match="no family has names like"):
        recognise(timm.create_model("resnet10t").state_dict())


def test_variants_alike_are_left_to_the_user() -> None:
    case = load_cases(CASES / "local_vim" / "local_vim_tiny.json")[0]
    # the two definitions of LocalVim-S differ in their scans alone; LocalVim-T is one of a kind
    assert recognise(case.weights()).name == "local_vim_tiny"
    small = visionssm.create_model("local_vim_small").state_dict()
    with pytest.raises(CheckpointError, match="local_vim_small, local_vim_small_searched alike"):
        recognise(small)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.pth"], "no checkpoint file at absent.pth"),
        (["{file}", "--model", "resnet50"], "is no classification variant"),
    ],
)
def test_the_tool_answers_in_one_line(
    file: Path, tmp_path: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = str(ROOT / "tools" / "convert_checkpoint.py")
    arguments = [argument.format(file=file) for argument in arguments]
    monkeypatch.setattr(sys, "argv", [tool, *arguments, "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match=f"^error: .*{message}") as stopped:
        runpy.run_path(tool, run_name="__main__")
    assert "\n" not in str(stopped.value)
