"""Model cards, the README's table, the registry and the reference cases say the same; to mend: python dev/update_cards.py."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import visionssm
from dev import update_cards
from tests.parity.families import FAMILIES
from visionssm.analysis import count_parameters
from visionssm.models import pretrained_cfg
from visionssm.models.reported import REPORTED

MEND = "run: python dev/update_cards.py"
NAMES = visionssm.list_models()


@pytest.fixture(scope="module")
def rendered() -> dict[Path, str]:
    return update_cards.render_all(update_cards.read_json(update_cards.OPERATIONS))


def test_every_variant_is_counted() -> None:
    assert list(update_cards.read_json(update_cards.OPERATIONS)) == NAMES, MEND


def test_one_card_per_variant() -> None:
    assert sorted(path.stem for path in update_cards.CARDS.glob("*.md")) == NAMES, MEND


@pytest.mark.parametrize("name", NAMES)
def test_card_is_current(rendered: dict[Path, str], name: str) -> None:
    path = update_cards.CARDS / f"{name}.md"
    assert path.read_text() == rendered[path], MEND


def test_readme_table_is_current(rendered: dict[Path, str]) -> None:
    assert update_cards.README.read_text() == rendered[update_cards.README], MEND


def test_readme_shows_the_measured_picture_once_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    counts, cases = update_cards.read_json(update_cards.OPERATIONS), update_cards.parity_cases()
    monkeypatch.setattr(update_cards, "PICTURE", update_cards.ROOT / "docs" / "none.png")
    assert "![" not in update_cards.render_table(counts, cases)
    monkeypatch.setattr(update_cards, "PICTURE", update_cards.ROOT / "docs" / "scan_orders.png")
    table = update_cards.render_table(counts, cases)
    assert "](docs/scan_orders.png)" in table
    assert update_cards.read_json(update_cards.MEASUREMENTS)["setting"]["command"] in table


def test_ratios_are_within_a_part() -> None:
    def row(model: str, part: str, seconds: float) -> dict[str, object]:
        return {"model": model, "mode": "latency", "resolution": 224, "batch": 1, "seconds": seconds, "part": part}

    swin = update_cards.BASELINES[0]
    rows = [row(swin, "a", 1.0), row(swin, "vim", 3.0), row("vim_tiny", "vim", 2.0)]
    setting = dict.fromkeys(("hardware", "versions", "arithmetic", "command"), "x")
    lines = update_cards._speed("vim_tiny", {"rows": rows, "setting": setting})
    assert lines[2] == "| latency | 224 | 1 | 1.50 | - | - |"


def test_readme_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="lacks the lines"):
        update_cards.put_table("# visionssm\n", "| table |")


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("_nano")])
def test_counts_are_current(name: str) -> None:
    assert update_cards.count(name) == update_cards.read_json(update_cards.OPERATIONS)[name], f"{MEND} {name}"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_current(name: str) -> None:
    with torch.device("meta"):
        parameters = count_parameters(visionssm.create_model(name))
    assert parameters == update_cards.read_json(update_cards.OPERATIONS)[name]["parameters"], f"{MEND} {name}"


def test_reported_figures_are_of_variants_and_complete() -> None:
    assert set(REPORTED) <= set(NAMES)
    classifiers = {name for name in visionssm.list_models(task="classification") if not update_cards.is_own(name)}
    assert classifiers <= set(REPORTED)
    assert all(REPORTED[name].top1 or REPORTED[name].note for name in classifiers)


@pytest.mark.parametrize("name", [name for name in NAMES if not update_cards.is_own(name)])
def test_a_published_variant_has_paper_and_origin(name: str) -> None:
    cfg = pretrained_cfg(name)
    assert cfg.paper_name
    assert cfg.paper_ids
    assert cfg.origin_url


def test_parity_status_is_that_of_the_suite() -> None:
    """Every case file belongs to a family that the suite runs, under the name that the table uses."""
    from_suite = set()
    for path in sorted(update_cards.CASES.glob("*/*.json")):
        if path.with_suffix(".npz").exists():
            content = json.loads(path.read_text())
            case = SimpleNamespace(family=content["family"], variant=content["variant"])
            assert case.family in FAMILIES, f"{path} is never run"
            from_suite.add(FAMILIES[case.family].model(case))
    assert set(update_cards.parity_cases()) == from_suite
    assert from_suite <= set(NAMES)
