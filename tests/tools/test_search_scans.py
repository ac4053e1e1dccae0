"""The search for directions, from a recipe to an option of the model."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

import visionssm
from visionssm.data.errors import UserError
from visionssm.engine.scan_search import choose_routes

ROOT = Path(__file__).parents[2]
TINY = [
    "model.kwargs={dim: 8, depths: [1, 1]}",
    "data.image_size=16",
    "run.epochs=1",
    "run.tensorboard=false",
]
SHORT = ["run.batch_size=250", "schedule.warmup_epochs=0"]


def run_tool(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    recipe = str(ROOT / "configs" / "classification" / "digits_demo.yaml")
    monkeypatch.setattr(sys, "argv", ["search_scans.py", recipe, "--cpu", *arguments])
    try:
        runpy.run_path(str(ROOT / "tools" / "search_scans.py"), run_name="__main__")
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        PartialState._reset_state()


@pytest.mark.slow
def test_from_a_recipe_to_an_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = f"run.output={tmp_path / 'run'}"
    run_tool(monkeypatch, "model.name=local_vmamba_nano", out, *TINY, *SHORT, "--keep", "3")
    assert "w7_flip" in (tmp_path / "run" / "scan.json").read_text()
    result = json.loads((tmp_path / "run" / "scan.json").read_text())
    assert [layer["layer"] for layer in result["layers"]] == [
        "stages.0.blocks.0.mixer",
        "stages.1.blocks.0.mixer",
    ]
    for layer, scan in zip(result["layers"], result["scan"], strict=True):
        heaviest = sorted(layer["weights"], key=layer["weights"].__getitem__)[-3:]
        assert set(scan["directions"]) == set(heaviest) == set(layer["kept"])
        assert sum(layer["weights"].values()) == pytest.approx(1)
        assert len(set(layer["weights"].values())) == 8  # training moved them
    assert " ".join(result["layers"][0]["kept"]) in capsys.readouterr().out
    model = visionssm.create_model("local_vmamba_nano", dim=8, depths=(1, 1), scan=result["scan"])
    assert model.stages[0].blocks[0].mixer.A_log.shape[0] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.name=vmamba_nano"], "merge"),
        (["model.name=local_vmamba_nano", *TINY, "--keep", "9"], "keep=9 must be 1 to 8"),
    ],
    ids=["no supernet", "too many"],
)
def test_what_does_not_fit_ends_before_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit, match=message):
        run_tool(monkeypatch, f"run.output={tmp_path / 'run'}", *arguments)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("token", [False, True])
def test_the_heaviest_routes_are_kept_in_order(token: bool) -> None:
    model = visionssm.create_model(
        "local_vim_nano", depth=2, scan="window", merge="search", class_token=token, rope=not token
    )
    weights = torch.tensor([0.0, 2.0, -1.0, 3.0, 1.0, -2.0, 0.5, -3.0])
    model.blocks[1].mixer.merge.weights.data.copy_(weights)
    choice = choose_routes(model, keep=3)[1]
    assert choice.layer == "blocks.1.mixer"
    assert choice.scan == {"name": "window", "directions": ["h_flip", "v_flip", "w2"]}
    assert list(choice.weights.values()) == pytest.approx(weights.softmax(0).tolist())


def test_routes_of_any_order_can_be_searched() -> None:
    model = visionssm.create_model("local_vmamba_nano", depths=(1,), scan="cross", merge="search")
    model.stages[0].blocks[0].mixer.merge.weights.data.copy_(torch.tensor([0.0, 1.0, 2.0, -1.0]))
    (choice,) = choose_routes(model, keep=2)
    assert choice.kept == ["1", "2"]
    kept = visionssm.create_model("local_vmamba_nano", depths=(1,), scan=[choice.scan])
    routes = kept.stages[0].blocks[0].mixer.paths.scan.routes((3, 5))
    assert torch.equal(routes, visionssm.scans.create_scan("cross").routes((3, 5))[1:3])


def test_a_model_without_search_says_so() -> None:
    with pytest.raises(UserError, match="merge='search'"):
        choose_routes(visionssm.create_model("local_vmamba_nano", depths=(1,), scan="window"))
