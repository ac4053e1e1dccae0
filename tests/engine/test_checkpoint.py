"""Checkpoints are whole or refused."""

import os
from pathlib import Path

import pytest
import torch

from visionssm.engine import checkpoint
from visionssm.engine.checkpoint import CheckpointError, find_checkpoint, load_checkpoint, save_checkpoint


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoints" / "last.pt"
    save_checkpoint(path, {"x": torch.arange(1000.0), "epoch": 3})
    return path


def test_what_was_saved_comes_back(saved: Path) -> None:
    state = load_checkpoint(saved)
    assert torch.equal(state["x"], torch.arange(1000.0))
    assert state["epoch"] == 3
    assert [p.name for p in saved.parent.iterdir()] == ["last.pt"]


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_a_crash_while_saving_leaves_the_old_file(saved: Path, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*args: object) -> None:
        raise KeyboardInterrupt

    if step == "write":
        monkeypatch.setattr(checkpoint.torch, "save", crash)
    else:
        monkeypatch.setattr(checkpoint.os, step, crash)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(saved, {"epoch": 4})
    monkeypatch.undo()
    assert load_checkpoint(saved)["epoch"] == 3
    assert [p.name for p in saved.parent.iterdir()] == ["last.pt"]


@pytest.mark.parametrize("kept", [0, 100, 0.5, 0.99])
def test_a_cut_off_file_is_refused_by_name(saved: Path, kept: float) -> None:
    size = os.path.getsize(saved)
    os.truncate(saved, int(kept * size) if isinstance(kept, float) else kept)
    with pytest.raises(CheckpointError, match=r"last\.pt is cut off or damaged"):
        load_checkpoint(saved)


def test_a_flipped_bit_is_refused(saved: Path) -> None:
    data = bytearray(saved.read_bytes())
    place = bytes(data).index(torch.arange(500.0, 510.0).numpy().tobytes())
    data[place] ^= 1
    saved.write_bytes(data)
    with pytest.raises(CheckpointError, match="checksum"):
        load_checkpoint(saved)


class Payload:
    def __reduce__(self) -> tuple:
        return (os.mkdir, ("must-not-appear",))


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"format": 1, "x": Payload()}, "evil.pt")
    with pytest.raises(CheckpointError):
        load_checkpoint("evil.pt")
    assert not Path("must-not-appear").exists()


def test_other_files_are_refused(tmp_path: Path) -> None:
    torch.save({"model": {}}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="not a training checkpoint"):
        load_checkpoint(tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "none.pt")


def test_where_to_resume_from(saved: Path) -> None:
    assert find_checkpoint(saved.parent, "auto") == saved
    assert find_checkpoint(saved.parent, "never") is None
    assert find_checkpoint(saved.parent.parent, "auto") is None
    assert find_checkpoint(saved.parent.parent, str(saved)) == saved
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        find_checkpoint(saved.parent, "else.pt")
