"""Public names, signatures and state dicts change only on purpose: look at the change, `make snapshots`."""

import difflib
import json

import pytest

import visionssm
from dev import update_snapshots


def test_api_surface() -> None:
    was, now = update_snapshots.API.read_text(), update_snapshots.api_surface()
    difference = "\n".join(difflib.unified_diff(was.splitlines(), now.splitlines(), "snapshot", "now", lineterm=""))
    assert not difference, f"{difference}\nIf this is intended: make snapshots"


@pytest.fixture(scope="module")
def snapshot() -> dict[str, dict[str, int | str]]:
    return json.loads(update_snapshots.STATE_DICTS.read_text())


def test_no_variant_came_or_went(snapshot: dict[str, dict[str, int | str]]) -> None:
    assert list(snapshot) == visionssm.list_models(), "If this is intended: make snapshots"


@pytest.mark.parametrize("name", visionssm.list_models())
def test_state_dict(snapshot: dict[str, dict[str, int | str]], name: str) -> None:
    now = update_snapshots.summarize(update_snapshots.state_dict_keys(name))
    assert now == snapshot[name], (
        f"the state dict of {name} changed, so checkpoints of it no longer load; "
        f"see `python dev/update_snapshots.py --keys {name}` here and at the previous revision"
    )
