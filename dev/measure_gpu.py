"""Everything that a GPU must show, in one command: the kernels' tests, the tuned table, the benchmark, the README's table.

python dev/measure_gpu.py              # on the machine to be shown; --no-tune keeps the committed table

It needs a checkout with its environment (`make .venv/bin/.dev`, or `pip install -e '.[dev]'`).
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-tune", action="store_true", help="keep triton/tuning.json as it is")
    parser.add_argument("--without", nargs="+", default=[], help="peers to leave out: see the benchmark's option")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("this machine has no CUDA device")
    name = re.sub(r"[^a-z0-9]+", "_", torch.cuda.get_device_name().lower()).strip("_")
    path = ROOT / "kernels" / "results" / f"{name}.json"
    without = ["--without", *options.without] if options.without else []
    commands = [
        ["-m", "pytest", "-q", "tests/kernels/test_triton_gpu.py"],  # figures only from kernels that are right
        ["dev/tune_triton.py"],
        ["-m", "visionssm_kernels.benchmark", "--device", "cuda", "--json", str(path), *without],
        ["dev/update_kernel_table.py"],
    ]
    for command in commands:
        if options.no_tune and "dev/tune_triton.py" in command:
            continue
        done = subprocess.run([sys.executable, *command], cwd=ROOT, check=False)
        if done.returncode:
            return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
