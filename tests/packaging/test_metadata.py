"""What the distribution says about itself."""

import importlib.metadata
import re
import subprocess
from pathlib import Path

import pytest

import visionssm

ROOT = Path(__file__).parents[2]
EXTRAS = {"train", "openmmlab", "medical", "export", "dev", "all"}


def test_version_has_one_source() -> None:
    """It is written down once, in visionssm/__init__.py; pyproject.toml reads it from there."""
    written = re.findall(r'^__version__ = "(.+)"$', (ROOT / "visionssm/__init__.py").read_text(), re.MULTILINE)
    assert written == [visionssm.__version__]
    assert importlib.metadata.version("visionssm") == visionssm.__version__, (
        "reinstall: the metadata is of another version"
    )
    assert not re.search(r"^version *[=:]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert not re.search(r"^version:", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)


def test_changelog_covers_this_version() -> None:
    sections = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert sections[0] == "Unreleased" or sections[0] == visionssm.__version__


def test_extras_and_licence() -> None:
    metadata = importlib.metadata.metadata("visionssm")
    assert set(metadata.get_all("Provides-Extra", [])) == EXTRAS
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["License-File"] == "LICENSE"
    assert "Version 2.0, January 2004" in (ROOT / "LICENSE").read_text()[:200]


def test_ci_runs_the_test_command_of_the_readme() -> None:
    assert re.search(r"^    make test +#", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert re.search(r"^make test ", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    assert "run: bash .ci/run\n" in (ROOT / ".github/workflows/ci.yml").read_text()


def test_constraints_pin_every_requirement() -> None:
    """Every requirement of every extra is pinned, so CI cannot change by itself."""
    pins = re.findall(r"^([a-z0-9.-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    required = {
        re.match(r"[A-Za-z0-9_.-]+", line)[0].lower() for line in importlib.metadata.requires("visionssm") or []
    }
    assert required - {"visionssm"} <= set(pins)


# In pieces, so that this file does not find itself.
FORBIDDEN = {
    "a sibling of the checkout": r"\.\./" + "shared",
    "a path of one machine": r"(?<![\w.:/-])/(work|root|opt|home/\w+|Users/\w+)/",
    "a package index": r"(?i)(index[-_]url|find[-_]links)[ =\"']+\S*[:/]|https?://\S*(/simp" + r"le\b|py" + r"pi\.)",
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_tracked_files_do_not_name(what: str) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: no list of tracked files")
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    found = []
    for name in listing.stdout.split("\0"):
        path = ROOT / name
        if not path.is_file():
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:  # an image or an archive
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if re.search(FORBIDDEN[what], line):
                found.append(f"{name}:{number}: {line.strip()[:120]}")
    assert not found, "\n".join(found)
