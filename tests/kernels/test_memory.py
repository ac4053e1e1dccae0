"""Freed memory stays in the process: counted in page faults, in a process of its own, because nothing takes it back."""

import platform
import subprocess
import sys

from visionssm_kernels import keep_memory, memory

ROUNDS, MEGABYTES = 20, 64
SCRIPT = f"""
import resource, sys
import torch
from visionssm_kernels import keep_memory

if sys.argv[1] == "keep":
    assert keep_memory()
for _ in range({ROUNDS}):  # until the heap has grown
    torch.ones({MEGABYTES} << 18)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({ROUNDS}):
    torch.ones({MEGABYTES} << 18)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(word: str) -> int:
    done = subprocess.run([sys.executable, "-c", SCRIPT, word], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_freed_memory_is_used_again_without_page_faults():
    if platform.libc_ver()[0] == "glibc":
        assert faults("keep") < faults("leave") / 10
    else:
        assert not keep_memory()


def test_another_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(memory.platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(memory.ctypes, "CDLL", None)
    assert not keep_memory()
