"""The gates of `make lint`, as tests, so that one closing line tells whether everything holds."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
GATES = {
    "format": ["ruff", "format", "--check"],
    "lint": ["ruff", "check"],
    "layers": ["lint-imports", "--no-cache"],
    "types": ["pyright"],
}


@pytest.mark.slow
@pytest.mark.parametrize("gate", GATES)
def test_gate_passes(gate: str) -> None:
    command, *arguments = GATES[gate]
    run = subprocess.run([BIN / command, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, f"{command} {' '.join(arguments)}\n{run.stdout[-6000:]}{run.stderr[-2000:]}"


def test_make_lint_runs_the_same_gates() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for command in (" ".join(gate).removesuffix(" --no-cache") for gate in GATES.values()):
        assert f"\t$(BIN)/{command}\n" in makefile
