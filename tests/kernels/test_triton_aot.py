"""The Triton kernels compiled ahead of time, without a GPU, exactly as the launchers launch them: no spill,
registers under a cap.

What the interpreter runs need not compile, and what compiles need not be right: `test_triton_interpreter.py`
is the other half. `python tests/kernels/triton_compile.py` prints the table of resources.
"""

import os

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton, whose wheels are for Linux")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1 replaces the compiler", allow_module_level=True)

from tests.kernels.triton_compile import (
    CUOBJDUMP,
    Launch,
    compile_launch,
    conv_launches,
    duality_launches,
    fusion_launches,
    scan_launches,
    wave_launches,
)

pytestmark = pytest.mark.skipif(not CUOBJDUMP.exists(), reason="this Triton comes without NVIDIA's tools")

# Registers per thread of the two scan kernels: 65536 / (32 registers) warps fit on a multiprocessor. float32
# at N = 64 is the worst case.
FORWARD_CAP = {1: 96, 4: 128, 16: 192, 64: 216}
BACKWARD_CAP = {1: 96, 4: 192, 16: 248, 64: 255}
# And with dt's projection inside; N = 1 and 16 are what published models run.
PROJECTING_CAP = {
    (torch.bfloat16, 1): 168,
    (torch.float32, 1): 208,
    (torch.bfloat16, 16): 168,
    (torch.float32, 16): 248,
}
# VMamba's stages; SegMamba's, Vim-T and MambaIR, Vim-S.
RANKS = [*((1, rank) for rank in (6, 12, 24, 48)), *((16, rank) for rank in (3, 6, 12, 24))]
VARIANTS = {
    "no table": {"table": False},
    "states": {"states": True},
    "parallel chunks": {"parallel": True, "states": True},
    "marks": {"large": True, "states": True},
    "unaligned": {"aligned": False},
    "segments": {"segment": 8},
    "segments, parallel chunks": {"segment": 8, "parallel": True},
}


def check(launches: list[Launch], capability: int, cap: int) -> None:
    assert launches
    for launch in launches:
        found = compile_launch(launch, capability)
        print(f"{launch.kernel.__name__} sm_{capability} {found}")
        assert found.stack == 0, launch.kernel.__name__
        assert found.registers <= cap, launch.kernel.__name__


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("d_state", [1, 4, 16, 64])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_scan(backward: bool, dtype: torch.dtype, d_state: int, capability: int) -> None:
    cap = (BACKWARD_CAP if backward else FORWARD_CAP)[d_state]
    check(scan_launches(dtype, d_state, backward=backward), capability, cap)


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("d_state", "rank"), RANKS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_scan_that_projects(dtype: torch.dtype, d_state: int, rank: int, capability: int) -> None:
    launches = scan_launches(dtype, d_state, backward=False, rank=rank, parallel=rank in (12, 24))
    check(launches, capability, PROJECTING_CAP[dtype, d_state])


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_variants(backward: bool, variant: str) -> None:
    launches = scan_launches(torch.float16, 16, backward=backward, **VARIANTS[variant])
    assert len(launches) == {"parallel chunks": 3, "segments, parallel chunks": 3, "marks": 5 if backward else 4}.get(
        variant, 1
    )
    check(launches, 90, 255)


@pytest.mark.parametrize("taps", [3, 8])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_conv(backward: bool, taps: int) -> None:
    check(conv_launches(torch.bfloat16, taps, backward=backward), 80, 168)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_state_fusion(backward: bool) -> None:
    check(fusion_launches(torch.float32, backward=backward), 90, 168)


@pytest.mark.slow
@pytest.mark.parametrize("d_state", [1, 16, 64])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_wavefront(backward: bool, d_state: int) -> None:
    launches = wave_launches(torch.float32, d_state, backward=backward)
    assert len(launches) == (2 if backward else 1)
    check(launches, 90, 255)


@pytest.mark.slow
@pytest.mark.parametrize("size", [16, 64])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_duality(backward: bool, size: int) -> None:
    launches = duality_launches(torch.bfloat16, size, backward=backward)
    assert len(launches) == (4 if backward else 3)
    for capability in (80, 90):
        check(launches, capability, 255)


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("d_state", [1, 4, 16])
def test_instructions_are_those_of_the_plan(d_state: int, capability: int) -> None:
    """Per step and thread, which holds e = N BD / 32 states: an exponential each, and 2 for softplus (exp2, 1 / x); no other use
    of the special function unit. The backward computes states and softplus twice, and a sigmoid in place of one reciprocal."""
    (forward,) = scan_launches(torch.bfloat16, d_state, backward=False)
    held = d_state * forward.arguments["BD"] // 32
    found = compile_launch(forward, capability).instructions
    assert found["MUFU"] == held + 2
    assert found["STG"] == 1  # y
    assert found["LDG"] <= 5  # order, u, delta, B, C
    assert found["SHFL"] <= 2

    (backward,) = scan_launches(torch.bfloat16, d_state, backward=True)
    held = d_state * backward.arguments["BD"] // 32
    found = compile_launch(backward, capability).instructions
    assert found["MUFU"] == 2 * held + 5
    assert found["SHFL"] <= 2 * d_state + 8  # dB and dC over channels; one by one they would take 10 d_state
    assert found["LDG"] <= 14
    assert found["STG"] <= 4  # du, ddelta, dB and dC, a state parked every U steps


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("d_state", "rank"), RANKS)
def test_instructions_of_a_projection(d_state: int, rank: int, capability: int) -> None:
    """Tensor cores do it: 2048 multiply-adds an instruction, R padded to a power of two from 16 on and the steps of a group to 8;
    a thread loads its share of the (R, U) numbers and at most their positions, and no exponential is added."""
    (before,) = scan_launches(torch.bfloat16, d_state, backward=False)
    (launch,) = scan_launches(torch.bfloat16, d_state, backward=False, rank=rank)
    plain, projecting = (compile_launch(x, capability).instructions for x in (before, launch))
    block, group, padded = (launch.arguments[key] for key in ("BD", "U", "R"))
    assert projecting["HMMA"] == block * padded * max(group, 8) / 2048 / group
    assert projecting["MUFU"] == plain["MUFU"]
    assert projecting["STG"] == plain["STG"]
    assert projecting["LDG"] <= plain["LDG"] - 1 + padded / 32 + 1
    assert projecting["SHFL"] <= plain["SHFL"] + 1
    assert projecting["ALL"] <= 1.2 * plain["ALL"]


def test_every_state_size_has_a_configuration() -> None:
    from visionssm_kernels.triton import CHUNK, STATE_SIZES
    from visionssm_kernels.triton.tuning import TABLES

    assert {80, 90} <= set(TABLES)
    for table in TABLES.values():
        for configurations in (table.scan, table.scan_backward):
            assert tuple(configurations) == STATE_SIZES
            for block, group, _ in configurations.values():
                assert CHUNK % group == 0  # groups tile a chunk
                assert block in (8, 16, 32)  # one warp
