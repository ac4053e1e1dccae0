"""Recipes are strict: what does not fit is an error that says what would."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import timm

from visionssm.engine.classification import ClassificationConfig
from visionssm.engine.config import ConfigError, build_config, config_changes, dump_config, load_config

RECIPES = sorted((Path(__file__).parents[2] / "configs" / "classification").glob("*.yaml"))


@dataclass(frozen=True, kw_only=True)
class Inner:
    lr: float = 0.1
    betas: tuple[float, float] | None = None
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True, kw_only=True)
class Outer:
    steps: int
    flag: bool = False
    inner: Inner = field(default_factory=Inner)
    names: list[str] = field(default_factory=list)


def test_values_take_their_types() -> None:
    config = build_config(Outer, {"steps": 3, "inner": {"lr": "1e-3", "betas": [0, 1]}, "names": ["x", 2]})
    assert config == Outer(steps=3, inner=Inner(lr=1e-3, betas=(0.0, 1.0)), names=["x", "2"])
    assert isinstance(config.inner.lr, float)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"steps": 1, "stepz": 2}, "unknown key stepz; did you mean steps"),
        ({"steps": 1, "inner": {"lrr": 2}}, r"unknown key inner\.lrr; did you mean lr"),
        ({"steps": 1, "inner": {"lr": "fast"}}, r"inner\.lr: expected a number, got 'fast'"),
        ({"steps": 1, "inner": {"betas": [1]}}, r"inner\.betas: expected 2 values"),
        ({"steps": 1, "inner": {"kind": "c"}}, r"inner\.kind: 'c' must be one of 'a', 'b'"),
        ({"steps": 1, "inner": 3}, "inner is a section"),
        ({"steps": 1.5}, "steps: expected a whole number, got 1.5"),
        ({"steps": True}, "steps: expected a whole number, got True"),
        ({"steps": 1, "flag": 1}, "flag: expected true or false"),
        ({"steps": 1, "names": "x"}, "names: expected a list"),
        ({}, "steps is not set"),
    ],
)
def test_misfits_are_named(tree: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_config(Outer, tree)


def test_a_recipe_builds_on_another_and_overrides_win(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("steps: 1\ninner: {lr: 0.5, kind: b}\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\ninner: {lr: 0.7}\n")
    config = load_config(Outer, tmp_path / "b.yaml", ["steps=9", "inner.betas=[0.1, 0.2]"])
    assert config == Outer(steps=9, inner=Inner(lr=0.7, kind="b", betas=(0.1, 0.2)))
    (tmp_path / "a.yaml").write_text("base: b.yaml\n")
    with pytest.raises(ConfigError, match="leads back to itself"):
        load_config(Outer, tmp_path / "b.yaml")


@pytest.mark.parametrize("override", ["steps", "=1", "steps=[", "steps.more=1", "inner.x=1"])
def test_bad_overrides_are_refused(override: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("steps: 1\n")
    with pytest.raises(ConfigError):
        load_config(Outer, tmp_path / "a.yaml", [override])


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such recipe: .*none\.yaml"):
        load_config(Outer, tmp_path / "none.yaml")


def test_changes_are_listed_by_dotted_key() -> None:
    old, new = dump_config(Outer(steps=1)), dump_config(Outer(steps=1, inner=Inner(lr=0.2)))
    assert config_changes(old, new) == {"inner.lr": (0.1, 0.2)}
    assert build_config(Outer, new) == Outer(steps=1, inner=Inner(lr=0.2))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_in_the_repository_is_valid(path: Path) -> None:
    config = load_config(ClassificationConfig, path)
    assert timm.is_model(config.model.name)
    if config.data.name == "folder":
        assert config.data.path is None
        assert Path(config.run.output).name == config.model.name
