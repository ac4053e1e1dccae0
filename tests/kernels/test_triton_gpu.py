"""The Triton kernels on a GPU: the interpreter's cases, larger shapes, repeatability, CUDA graphs, a sanity check of the time."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton, whose wheels are for Linux")

from tests.kernels.triton_cases import (
    CASES,
    RUNS,
    Conv,
    Duality,
    Fusion,
    Scan,
    Wave,
    label,
    limit,
    run_operators,
    scan_inputs,
)
from tests.tolerances import TOLERANCES

pytestmark = pytest.mark.gpu

LARGE_SCANS = [
    Scan("VMamba stage 3", B=4, K=4, D=192, N=1, L=196, delta_mean=-4.0),
    Scan("Vim", B=2, K=2, Ku=2, D=384, N=16, L=197, table="permutation", delta_mean=-4.0),
    Scan("odd", B=3, K=3, D=97, N=8, L=1000, table="padded", per_image=True, delta_mean=-4.0),
    Scan("long", B=1, K=1, D=33, N=2, L=5003, delta_mean=-4.0),
    Scan("long, one after the other", B=1, K=1, D=33, N=2, L=1003, delta_mean=-4.0, split=False),
    Scan("marks", B=2, K=4, D=128, N=4, L=784, table="subset", states=True, delta_mean=-4.0),
    Scan("rank 24", B=4, K=4, D=192, N=1, L=196, R=24, dtype="bfloat16"),
    Scan("rank 12", B=2, K=2, Ku=2, D=384, N=16, L=197, R=12, dtype="float16"),
    Scan("rank 48, odd", B=3, K=3, D=97, N=4, L=1000, R=48, table="padded", per_image=True),
    *(Scan(f"half, state {n}", B=2, K=2, D=96, N=n, L=257, dtype="bfloat16", delta_mean=-4.0) for n in (1, 16, 64)),
]
LARGE_CONVS = [
    Conv("large", B=2, Kx=1, K=4, D=200, L=1000, W=4),
    Conv("large, own x", Kx=2, D=64, L=3137, W=3),
]
LARGE_OTHERS = [
    Fusion("Spatial-Mamba-T, stage 1", B=2, H=56, W=56, D=64),
    Duality("Mamba-2", B=2, L=1000, H=8, P=64, N=64, dtype="float16"),
    Duality("Mamba-2, groups", B=2, L=197, H=8, G=2, P=64, N=64, dtype="bfloat16"),
    Wave("Mamba2D", B=2, H=28, W=28, D=96, N=16),
    Wave("odd", B=1, H=33, W=65, D=97, N=4, dtype="bfloat16", reverse=True),
    Fusion("odd", B=1, H=33, W=65, D=97, dtype="bfloat16"),
]


@pytest.fixture(autouse=True)
def _poison(nan_poison: None) -> None:
    """Every output starts as NaN."""


def too_large(case: object) -> dict[str, float]:
    found = RUNS[type(case)](case, "cuda")
    return {name: error for name, error in found.items() if not error <= limit(case)}


@pytest.mark.parametrize("case", CASES, ids=label)
def test_tiny(case: object) -> None:
    assert not too_large(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", [*LARGE_SCANS, *LARGE_CONVS, *LARGE_OTHERS], ids=label)
def test_large(case: object) -> None:
    assert not too_large(case)


def test_operators() -> None:
    assert max(run_operators("cuda").values()) <= TOLERANCES[torch.float32]["atol"]


def inputs_on_gpu(case: Scan) -> tuple:
    values, order = scan_inputs(case, "cuda")
    return (*values.values(), order, case.softplus, case.merge)


@pytest.mark.parametrize("split", [False, True])
def test_same_bits_every_time(split: bool) -> None:
    from tests.kernels.triton_cases import changed, chunks_in_parallel
    from visionssm_kernels.triton import scan

    inputs = inputs_on_gpu(Scan("", B=2, K=4, D=96, N=8, L=300, dtype="bfloat16", delta_mean=-4.0))
    with changed(chunks_in_parallel(split)):
        runs = []
        for _ in range(3):
            y, checkpoints, _ = scan.routed_scan_forward(*inputs, True, False)
            runs.append((y, *scan.routed_scan_backward(y, None, *inputs, checkpoints)))
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], run, strict=True))


def test_in_a_cuda_graph() -> None:
    from visionssm_kernels.triton import scan

    inputs = inputs_on_gpu(Scan("", B=2, K=4, D=192, N=1, L=784, delta_mean=-4.0))
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # compile before the capture
        y, checkpoints, _ = scan.routed_scan_forward(*inputs, True, False)
        scan.routed_scan_backward(y, None, *inputs, checkpoints)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured, checkpoints, _ = scan.routed_scan_forward(*inputs, True, False)
        grads = scan.routed_scan_backward(captured, None, *inputs, checkpoints)
    inputs[0].neg_()
    graph.replay()
    torch.cuda.synchronize()
    y, checkpoints, _ = scan.routed_scan_forward(*inputs, True, False)
    assert torch.equal(captured, y)
    assert torch.equal(grads[0], scan.routed_scan_backward(y, None, *inputs, checkpoints)[0])


def milliseconds(function: object) -> float:
    for _ in range(3):
        function()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(10):
        function()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 10


@pytest.mark.slow
@pytest.mark.serial
@pytest.mark.parametrize(
    "case",
    [
        Scan("VMamba-T stage 1", B=32, K=4, D=192, N=1, L=3136, dtype="bfloat16", delta_mean=-4.0),
        Scan("Vim-T", B=32, K=2, Ku=2, D=384, N=16, L=197, dtype="bfloat16", delta_mean=-4.0),
    ],
    ids=lambda case: case.name,
)
def test_time(case: Scan) -> None:
    """Sanity, not a benchmark: faster than ten copies of everything it must read and write, and backward under six forwards."""
    from visionssm_kernels.triton import scan

    torch.use_deterministic_algorithms(False)  # poisoning costs time
    inputs = inputs_on_gpu(case)
    y, checkpoints, _ = scan.routed_scan_forward(*inputs, True, False)
    tensors = [x for x in inputs if isinstance(x, torch.Tensor)]
    copy = milliseconds(lambda: [x.clone() for x in (*tensors, y)])
    forward = milliseconds(lambda: scan.routed_scan_forward(*inputs, False, False))
    backward = milliseconds(lambda: scan.routed_scan_backward(y, None, *inputs, checkpoints))
    print(f"{case.name}: forward {forward:.3f} ms, backward {backward:.3f} ms, copy of inputs and output {copy:.3f} ms")
    assert forward < 10 * copy
    assert backward < 6 * forward


@pytest.mark.slow
def test_chunks_in_parallel_pay_off() -> None:
    from tests.kernels.triton_cases import changed, chunks_in_parallel
    from visionssm_kernels.triton import scan

    torch.use_deterministic_algorithms(False)
    inputs = inputs_on_gpu(replace(LARGE_SCANS[0], B=1, L=12544, dtype="bfloat16"))
    times = []
    for parallel in (False, True):
        with changed(chunks_in_parallel(parallel)):
            times.append(milliseconds(lambda: scan.routed_scan_forward(*inputs, False, False)))
    print(f"one after the other {times[0]:.3f} ms, in parallel {times[1]:.3f} ms")
    assert times[1] < times[0]
