"""The sdist and the wheel built from it work outside the checkout."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# One worker builds for all of them.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("distribution")]

FORWARD = """
import sys, torch, visionssm, visionssm_kernels
for package in (visionssm, visionssm_kernels):
    assert package.__file__.startswith(sys.argv[1]), package.__file__
name = "vmamba_tiny_s1l8"
model = visionssm.create_model(name, num_classes=3).eval()
with torch.no_grad():
    y = model(torch.randn(1, 3, 64, 64))
assert y.shape == (1, 3) and y.isfinite().all()
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built from the sdist."""
    out = tmp_path_factory.mktemp("dist")
    run = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return out


def test_wheel_runs_outside_the_checkout(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    target = tmp_path / "site"
    install = [sys.executable, "-m", "uv", "pip", "install", "--no-deps", "--target", target, wheel]
    subprocess.run(install, check=True, capture_output=True, cwd=tmp_path)
    environment = os.environ | {"PYTHONPATH": str(target)}
    run = subprocess.run(
        [sys.executable, "-c", FORWARD, target], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


def test_wheel_holds_the_two_packages_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {
        "visionssm",
        "visionssm_kernels",
    }
    sources = {
        str(path.relative_to(parent))
        for parent, package in ((ROOT, "visionssm"), (ROOT / "kernels", "visionssm_kernels"))
        for path in (parent / package).rglob("*")
        if path.suffix in {".py", ".typed"}
    }
    assert sources <= names
    assert {"visionssm/py.typed", "visionssm_kernels/py.typed"} <= names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_sdist_can_be_tested(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {
        "LICENSE",
        "README.md",
        "CHANGELOG.md",
        "Makefile",
        "constraints.txt",
        "pyproject.toml",
        ".ci/run",
        ".github/CONTRIBUTING.md",
        ".github/workflows/ci.yml",
        "docs/scan_orders.png",
        "tests/conftest.py",
    }
    assert needed <= names
    junk = (".venv", "outputs", "dist", ".git", "__pycache__")
    assert not [name for name in names if set(name.split("/")) & set(junk)]
