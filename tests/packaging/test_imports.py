"""The core works with the core dependencies alone, and importing it changes nothing about the process."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Import names of what the extras bring, and of what nobody should need.
EXTRAS = [
    *(
        "accelerate",
        "albumentations",
        "cv2",
        "datasets",
        "imageio",
        "matplotlib",
        "rich",
        "scipy",
        "skimage",
        "sklearn",
        "tensorboard",
    ),
    *("torchmetrics", "mmcv", "mmdet", "mmengine", "mmseg", "monai", "nibabel", "pydicom", "einops", "fire", "ignite"),
    *("onnx", "onnxruntime", "onnxscript", "pandas", "transformers", "mamba_ssm", "causal_conv1d"),
]

HIDE_EXTRAS = f"""
import sys
ABSENT = set({EXTRAS!r})
class Hide:
    # A finder that does not find the absent packages, as if they were not installed.
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in ABSENT else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = [Hide(finder) for finder in sys.meta_path]
"""


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments, "-c", code], cwd=ROOT, capture_output=True, text=True)


def test_extras_are_hidden() -> None:
    run = run_python(HIDE_EXTRAS + "import torch, accelerate")
    assert run.returncode == 1
    assert "No module named 'accelerate'" in run.stderr


def test_core_imports_and_runs_without_extras() -> None:
    run = run_python(
        HIDE_EXTRAS
        + """
import torch, visionssm, visionssm_kernels
from visionssm import scans
size = (3, 5)
routes = scans.create_scan("cross").routes(size)
(K, L), D, N = routes.shape, 4, 2
u, delta, A = torch.randn(1, L, 1, D), torch.randn(1, L, K, D), -torch.rand(K, D, N)
B, C = torch.randn(2, 1, L, K, N)
y = visionssm_kernels.routed_scan(u, delta, A, B, C, order=routes)
assert y.shape == (1, L, D) and y.isfinite().all()
"""
    )
    assert run.returncode == 0, run.stderr


def test_every_classifier_is_built_without_extras() -> None:
    run = run_python(
        HIDE_EXTRAS
        + """
import torch, visionssm
names = visionssm.list_models(task="classification")
assert names
for name in names:
    with torch.device("meta"):
        visionssm.create_model(name)
"""
    )
    assert run.returncode == 0, run.stderr


def test_kernels_stand_alone() -> None:
    run = run_python("import sys, visionssm_kernels; assert 'visionssm' not in sys.modules")
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("package", ["visionssm", "visionssm_kernels"])
def test_import_is_quiet_and_free_of_side_effects(package: str) -> None:
    """No output or warning, no environment variable, no CUDA context, no change of torch's global state."""
    code = f"""
import os, torch, timm, numba, numpy, safetensors.torch
before = dict(os.environ), torch.get_num_threads(), torch.get_default_dtype(), torch.get_rng_state().tolist()
import {package}
after = dict(os.environ), torch.get_num_threads(), torch.get_default_dtype(), torch.get_rng_state().tolist()
assert before == after, "the import changed the process"
assert not torch.cuda.is_initialized()
"""
    run = run_python(code)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
