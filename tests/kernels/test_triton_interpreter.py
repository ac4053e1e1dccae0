"""The Triton kernels in Triton's interpreter, on a CPU: outputs and every gradient against a float64 loop.

The cases run in one process of their own, see `triton_cases.py`; its torch.empty is poisoned with NaN.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.kernels.triton_cases import CASES, label, limit
from tests.tolerances import TOLERANCES

pytest.importorskip("triton", reason="needs Triton, whose wheels are for Linux")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # one minute on an idle core
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def results() -> dict[str, dict[str, float]]:
    environment = os.environ | {
        "TRITON_INTERPRET": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "kernels"))),
    }
    command = [sys.executable, str(Path(__file__).with_name("triton_cases.py"))]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=840)
    assert done.returncode == 0, done.stderr[-4000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {line["name"]: line["errors"] for line in lines}


@pytest.mark.xdist_group("triton interpreter")  # one process for all of them, not one per worker
@pytest.mark.parametrize("case", CASES, ids=label)
def test_against_float64(results: dict[str, dict[str, float]], case: object) -> None:
    found = results[label(case)]
    assert found
    too_large = {name: error for name, error in found.items() if not error <= limit(case)}
    assert not too_large


@pytest.mark.xdist_group("triton interpreter")
def test_operators(results: dict[str, dict[str, float]]) -> None:
    assert max(results["operators"].values()) <= TOLERANCES[torch.float32]["atol"]


def test_reasons() -> None:
    from visionssm_kernels.triton import why_not

    assert "CUDA" in why_not(torch.device("cpu"), torch.float32, 16)
    if not torch.cuda.is_available():
        assert "CUDA" in why_not(torch.device("cuda"), torch.float32, 16)


def test_reasons_in_the_interpreter() -> None:
    code = (
        "import torch; from visionssm_kernels.triton import why_not; cpu = torch.device('cpu')\n"
        "for dtype, d_state in ((torch.bfloat16, 16), (torch.float64, 16), (torch.float32, 3)):\n"
        "    print(why_not(cpu, dtype, d_state))"
    )
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT / "kernels")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    runs, dtype, d_state = done.stdout.splitlines()
    assert runs == "None"
    assert "float64" in dtype
    assert d_state.endswith("not 3")
