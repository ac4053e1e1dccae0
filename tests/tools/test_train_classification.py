"""The trainer from the command line: kill -9 and resume, two processes, one-line errors."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.tolerances import TOLERANCES
from tests.tools.test_evaluate import run
from visionssm.engine.checkpoint import load_checkpoint

ROOT = Path(__file__).parents[2]
TOOL = str(ROOT / "tools" / "train_classification.py")
DEMO = str(ROOT / "configs" / "classification" / "digits_demo.yaml")
SMALL = [
    "model.name=test_vit",
    "run.epochs=2",
    "schedule.warmup_epochs=1",
    "run.tensorboard=false",
    "run.batch_size=128",
    "--cpu",
]
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "kernels"))),
}


def train(*arguments: str, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    command = [sys.executable, *launcher, TOOL, DEMO, *arguments]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=600, check=False)


def weights(output: Path) -> dict[str, torch.Tensor]:
    state = load_checkpoint(output / "checkpoints" / "last.pt")
    return {**state["model"], **{f"ema.{key}": value for key, value in (state["ema"] or {}).items()}}


@pytest.mark.slow
def test_kill_dash_nine_and_resume_gives_the_same_bits(tmp_path: Path) -> None:
    options = [*SMALL, "run.checkpoint_every=2", "mix.mixup=0.8", "model.drop_path=0.1"]
    whole = train(*options, f"run.output={tmp_path / 'whole'}")
    assert whole.returncode == 0, whole.stderr
    assert "test accuracy: 0." in whole.stdout

    killed = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, TOOL, DEMO, *options, f"run.output={killed}"],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    last = killed / "checkpoints" / "last.pt"
    while not last.exists():  # the first checkpoint is at update 2 of 18
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = load_checkpoint(last)["state"]
    assert (done["epoch"], done["update"]) < (2, 0)
    resumed = train(*options, f"run.output={killed}", "--resume", "auto")
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed" in resumed.stdout
    one, two = weights(tmp_path / "whole"), weights(killed)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert (tmp_path / "whole" / "model.safetensors").read_bytes() == (killed / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_two_processes_give_the_result_of_one(tmp_path: Path) -> None:
    options = [
        *SMALL,
        "optimizer.name=sgd",
        "optimizer.lr=0.05",
        "mix.mixup=0.8",
        "mix.cutmix=1.0",
        "ema.warmup=false",
    ]
    single = train(*options, f"run.output={tmp_path / 'one'}")
    assert single.returncode == 0, single.stderr
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    double = train(*options, f"run.output={tmp_path / 'two'}", launcher=launcher)
    assert double.returncode == 0, double.stderr
    assert "2 x cpu" in double.stdout
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in one:
        torch.testing.assert_close(
            one[name], two[name], **TOLERANCES[torch.float32], msg=lambda text, name=name: name + text
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["optimizer.lrr=1"], "error: unknown key optimizer.lrr; did you mean lr?"),
        (["data.name=folder"], "error: data.path is not set"),
        (["--resume", "none.pt"], "error: --resume none.pt: no such checkpoint"),
    ],
)
def test_user_errors_are_one_line(
    tmp_path: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [option for option in SMALL if option != "--cpu"]  # `run` adds it
    with pytest.raises(SystemExit) as error:
        run("train_classification", monkeypatch, DEMO, *options, f"run.output={tmp_path}", *arguments)
    assert str(error.value).startswith(message)
    assert len(str(error.value).splitlines()) == 1
