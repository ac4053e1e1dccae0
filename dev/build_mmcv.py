"""Install mmcv with its compiled operators: from the user's cache, or built once into it.

    python dev/build_mmcv.py             what `make test` calls; seconds when the wheel is in the cache
    python dev/build_mmcv.py --rebuild   compile again

No index has wheels of mmcv with its operators for current versions of torch, and MMDetection and MMSegmentation need them,
compiled against the torch that is installed: 78 C++ files, 5 to 20 minutes on two cores. The wheel is kept for each pair of
torch and Python in ${XDG_CACHE_HOME:-~/.cache}/visionssm/wheels. All it takes is a C++17 compiler. It is shown to work with torch
2.11; the headers of torch 2.13 and later ask for C++20, as which mmcv 2.3.6 does not compile.
With a GPU and nvcc at hand the CUDA operators are compiled too, which takes longer; with a GPU alone, those for CPUs only.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
PACKAGE = "onedl-mmcv"


def pinned() -> str:
    """The version that constraints.txt pins."""
    found = re.search(rf"^{PACKAGE}==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    if found is None:
        raise SystemExit(f"error: constraints.txt has no pin of {PACKAGE}")
    return found.group(1)


def folder(cuda: bool) -> Path:
    """Where the wheel for this torch and this Python is kept."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    kind = "" if cuda else "-cpu"
    return cache / "visionssm" / "wheels" / f"torch{torch.__version__}{kind}-{sys.implementation.cache_tag}"


# The extension alone: mmcv itself imports packages that are installed after it.
LOADS = """
import importlib.metadata, importlib.util, pathlib, sys, torch
found = importlib.metadata.distribution(sys.argv[1])
extension = next(pathlib.Path(found.locate_file("mmcv")).glob("_ext.*"))
importlib.util.module_from_spec(importlib.util.spec_from_file_location("_ext", extension))
raise SystemExit(found.version != sys.argv[2])
"""


def installed(version: str) -> bool:
    """Whether the pinned version is here and its operators load beside this torch."""
    return subprocess.run([sys.executable, "-c", LOADS, PACKAGE, version], capture_output=True).returncode == 0


def build(version: str, target: Path, *, cuda: bool) -> None:
    """Compiles the wheel into `target`, silently; what the compiler said is kept in a log where it fails."""
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        raise SystemExit(
            f"error: mmcv's operators need a C++ compiler, and there is no {compiler!r} (Debian: apt install g++)"
        )
    jobs = os.environ.get("MAX_JOBS") or str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2)
    print(
        f"compiling the operators of {PACKAGE} {version} for torch {torch.__version__} ({'CUDA and CPU' if cuda else 'CPU'}): "
        f"5 to 20 minutes on two cores, this once; the wheel is kept in {target}",
        flush=True,
    )
    # Python's own flags are -g -O3: half of the time for symbols that nobody reads
    flags = {name: f"{os.environ.get(name, '')} -g0 -O2".strip() for name in ("CFLAGS", "CXXFLAGS")}
    environment = {**os.environ, **flags, "MMCV_WITH_OPS": "1", "MAX_JOBS": jobs}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # for ninja
    if not cuda:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    pip = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--disable-pip-version-check",
        "--no-deps",
        "--no-build-isolation",
        "-v",
    ]
    target.mkdir(parents=True, exist_ok=True)
    log = target / "build.log"
    start = time.monotonic()
    with tempfile.TemporaryDirectory(dir=target) as scratch, log.open("w") as output:
        command = [*pip, "--no-cache-dir", "--wheel-dir", scratch, f"{PACKAGE}=={version}"]
        run = subprocess.run(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        wheels = list(Path(scratch).glob("*.whl"))
        if run.returncode or len(wheels) != 1:
            raise SystemExit(f"error: mmcv's operators did not compile; what the compiler said is in {log}")
        os.replace(wheels[0], target / wheels[0].name)  # whole or not at all
    log.unlink()
    print(f"compiled in {(time.monotonic() - start) / 60:.0f} minutes", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rebuild", action="store_true", help="compile again")
    args = parser.parse_args()
    version = pinned()
    if not args.rebuild and installed(version):
        return
    cuda = torch.cuda.is_available() and shutil.which("nvcc") is not None
    target = folder(cuda)
    pattern = f"{PACKAGE.replace('-', '_')}-{version}-*.whl"
    if args.rebuild or not list(target.glob(pattern)):
        build(version, target, cuda=cuda)
    wheel = next(target.glob(pattern))
    print(f"installing {wheel}", flush=True)
    uv = [str(Path(sys.executable).parent / "uv"), "pip", "install", "--quiet", "--python", sys.executable]
    subprocess.run([*uv, "--no-deps", "--reinstall", str(wheel)], check=True)
    if not installed(version):
        raise SystemExit(f"error: {wheel} does not load beside torch {torch.__version__}; run this with --rebuild")


if __name__ == "__main__":
    main()
