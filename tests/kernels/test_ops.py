"""The public operators: every implementation against the loop, validation, and torch's own machinery around them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

import visionssm_kernels as vk
from tests.tolerances import TOLERANCES

RUNS_HERE = [name for name in vk.backends("cpu").available if name != "reference"]
CUSTOM_OPS = [name for name in RUNS_HERE if name not in ("chunked", "loop")]


def make(
    batch: int = 2,
    length: int = 17,
    routes: int = 3,
    channels: int = 5,
    d_state: int = 4,
    *,
    shared_u: bool = True,
    dtype: torch.dtype = torch.float32,
    grad: bool = True,
    rank: int = 0,
) -> dict[str, Tensor]:
    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=dtype)

    tensors = {
        "u": normal(batch, length, 1 if shared_u else routes, channels),
        "delta": normal(batch, length, routes, rank or channels),
        "A": -torch.rand(routes, channels, d_state, dtype=dtype) - 0.1,
        "B": normal(batch, length, routes, d_state),
        "C": normal(batch, length, routes, d_state),
        "D": normal(routes, channels),
        "bias": normal(routes, channels),
    }
    if rank:
        tensors["dt_weight"] = normal(routes, channels, rank) * rank**-0.5
    return {name: tensor.requires_grad_(grad) for name, tensor in tensors.items()}


def permutations(*shape: int, length: int) -> Tensor:
    return torch.rand(*shape, length).argsort(-1)


def outputs_and_gradients(backend: str, inputs: dict[str, Tensor], probe: Tensor, **options: object) -> list[Tensor]:
    y = vk.routed_scan(**inputs, backend=backend, **options)
    parts = y if isinstance(y, tuple) else (y,)
    loss = sum((part.double() * probe.flatten()[: part.numel()].reshape(part.shape)).sum() for part in parts)
    return [*parts, *torch.autograd.grad(loss, [t for t in inputs.values() if t is not None])]


def assert_like_reference(backend: str, inputs: dict[str, Tensor], **options: object) -> None:
    exact = {name: None if t is None else t.detach().double().requires_grad_() for name, t in inputs.items()}
    probe = torch.randn(1 << 16, dtype=torch.float64)
    wanted = outputs_and_gradients("reference", exact, probe, **options)
    got = outputs_and_gradients(backend, inputs, probe, **options)
    for one, other in zip(got, wanted, strict=True):
        scale = max(other.abs().max().item(), 1.0) if other.numel() else 1.0
        torch.testing.assert_close(one.double() / scale, other / scale, **TOLERANCES[torch.float32])


@pytest.mark.parametrize("backend", RUNS_HERE)
@settings(max_examples=20)
@given(st.data())
def test_any_shape_and_table(backend: str, data: st.DataObject) -> None:
    batch, routes = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4))
    length, channels = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 20))
    d_state = data.draw(st.sampled_from([1, 2, 4, 8, 16]))
    rank = data.draw(st.sampled_from([0, 0, 1, 3, 8, 17]))
    inputs = make(batch, length, routes, channels, d_state, shared_u=data.draw(st.booleans()), rank=rank)
    for name in ("D", "bias"):
        if data.draw(st.booleans()):
            inputs[name] = None
    order = None
    if data.draw(st.booleans()):
        shape = (batch, routes) if data.draw(st.booleans()) else (routes,)
        order = permutations(*shape, length=length)[..., : data.draw(st.integers(1, length))]
        order = torch.where(torch.rand(order.shape) < data.draw(st.sampled_from([0.0, 0.3])), -1, order)
    options = {
        "order": order,
        "merge": data.draw(st.sampled_from(["sum", "none"])),
        "softplus": data.draw(st.booleans()),
        "return_states": data.draw(st.booleans()),
        "segment": data.draw(st.sampled_from([0, 0, 1, 4, 7, 16])),
        "phase": data.draw(st.integers(0, 20)),
    }
    if not options["softplus"]:
        inputs["delta"] = inputs["delta"].detach().abs().mul(0.3).requires_grad_()
        inputs["bias"] = None
        if rank:
            inputs["dt_weight"] = inputs["dt_weight"].detach().abs().requires_grad_()
    assert_like_reference(backend, inputs, **options)


@pytest.mark.parametrize("backend", RUNS_HERE)
@pytest.mark.parametrize("length", [1, 63, 64, 65, 1000])
def test_lengths_around_chunk_borders(backend: str, length: int) -> None:
    assert_like_reference(backend, make(1, length, 2, 9, 4), order=permutations(2, length=length))


@pytest.mark.parametrize(("length", "segment", "phase"), [(100, 8, 0), (70, 32, 5), (65, 40, 0), (33, 1, 0)])
@pytest.mark.parametrize("backend", [*RUNS_HERE, "reference"])
def test_segments_are_scans_of_their_own(backend: str, length: int, segment: int, phase: int) -> None:
    inputs = make(1, length, 2, 9, 4)
    order = permutations(2, length=length)
    got = outputs_and_gradients(
        backend, inputs, probe := torch.randn(1 << 16), order=order, segment=segment, phase=phase
    )
    cuts = [t for t in range(length) if t and (t + phase) % segment == 0]
    pieces = [order[:, a:b] for a, b in zip([0, *cuts], [*cuts, length], strict=True)]
    y = sum(vk.routed_scan(**inputs, order=piece, backend="reference") for piece in pieces)
    wanted = torch.autograd.grad((y.double() * probe[: y.numel()].view_as(y)).sum(), list(inputs.values()))
    for one, other in zip(got, (y, *wanted), strict=True):
        scale = max(other.abs().max().item(), 1.0)
        torch.testing.assert_close(one / scale, other / scale, **TOLERANCES[torch.float32])


@pytest.mark.parametrize("backend", RUNS_HERE)
def test_non_contiguous_inputs(backend: str) -> None:
    inputs = make(2, 12, 2, 8, 4)
    strided = {
        name: t.detach().transpose(0, -1).contiguous().transpose(0, -1).requires_grad_() for name, t in inputs.items()
    }
    assert not strided["u"].is_contiguous()
    assert_like_reference(backend, strided, order=permutations(2, length=12))


@pytest.mark.parametrize("backend", RUNS_HERE)
@pytest.mark.parametrize("merge", ["sum", "none"])
def test_empty_batch(backend: str, merge: str) -> None:
    inputs = make(0, 7, 2, 3, 4)
    y, states = vk.routed_scan(**inputs, merge=merge, return_states=True, backend=backend)
    assert y.shape == ((0, 7, 3) if merge == "sum" else (0, 7, 2, 3))
    assert states.shape == (0, 7, 2, 3, 4)
    (y.sum() + states.sum()).backward()
    assert inputs["A"].grad is not None
    assert not inputs["A"].grad.any()


@pytest.mark.parametrize("backend", RUNS_HERE)
def test_positions_never_visited_are_zero_and_get_no_gradient(backend: str, nan_poison: None) -> None:
    inputs = make(2, 9, 2, 3, 4)
    order = torch.tensor([[0, 2, 4], [8, 6, -1]])
    y, states = vk.routed_scan(**inputs, order=order, merge="none", return_states=True, backend=backend)
    visited = torch.zeros(9, 2, dtype=torch.bool)
    visited[[0, 2, 4], 0] = True
    visited[[8, 6], 1] = True
    assert not y[:, ~visited].any()
    assert not states[:, ~visited].any()
    y.sum().backward()
    assert not inputs["delta"].grad[:, ~visited].any()
    assert inputs["delta"].grad[:, visited].all()


def test_reference_gradients_are_those_of_finite_differences() -> None:
    inputs = make(1, 5, 2, 2, 2, dtype=torch.float64)
    order = torch.tensor([[4, 0, -1, 2], [1, 3, 2, 0]])
    names = list(inputs)

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        return vk.routed_scan(
            **dict(zip(names, tensors, strict=True)), order=order, return_states=True, backend="reference"
        )

    torch.autograd.gradcheck(run, tuple(inputs.values()))


def test_chunked_is_differentiable_twice() -> None:
    inputs = make(1, 6, 1, 2, 2, dtype=torch.float64)
    names = list(inputs)
    torch.autograd.gradgradcheck(
        lambda *tensors: vk.routed_scan(**dict(zip(names, tensors, strict=True)), backend="chunked"),
        tuple(inputs.values()),
    )


def test_chunked_does_not_overflow_where_decays_vanish() -> None:
    inputs = make(1, 256, 1, 4, 4, grad=False)
    inputs["A"] = inputs["A"] * 100
    y = vk.routed_scan(**inputs, backend="chunked")
    wanted = vk.routed_scan(**{n: t.double() for n, t in inputs.items()}, backend="reference")
    torch.testing.assert_close(y.double(), wanted, **TOLERANCES[torch.float32])


@pytest.mark.parametrize("backend", RUNS_HERE)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_no_worse_than_rounding_its_inputs_and_output(backend: str, dtype: torch.dtype) -> None:
    inputs = make(2, 100, 2, 16, 8, grad=False)
    halves = {n: t.to(dtype) if n in ("u", "delta", "B", "C") else t for n, t in inputs.items()}
    exact = vk.routed_scan(**{n: t.double() for n, t in halves.items()}, backend="reference")
    got = vk.routed_scan(**halves, backend=backend)
    assert got.dtype == dtype
    rounding = (exact.to(dtype).double() - exact).abs().max()
    assert (got.double() - exact).abs().max() <= 2 * rounding


# --- route_conv ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", RUNS_HERE)
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("table", ["none", "permutation", "subset", "per image"])
def test_route_conv(backend: str, shared: bool, table: str) -> None:
    batch, length, routes, channels, width = 2, 21, 3, 6, 4
    order = {
        "none": None,
        "permutation": permutations(routes, length=length),
        "subset": permutations(routes, length=length)[:, :9].masked_fill(torch.rand(routes, 9) < 0.2, -1),
        "per image": permutations(batch, routes, length=length),
    }[table]
    x = torch.randn(batch, length, 1 if shared else routes, channels)
    weight, bias = torch.randn(routes, channels, width), torch.randn(routes, channels)
    tensors = [t.requires_grad_() for t in (x, weight, bias)]
    got = vk.route_conv(*tensors, order=order, backend=backend)
    exact = [t.detach().double().requires_grad_() for t in tensors]

    # the definition, step by step
    wanted = torch.zeros(batch, length, routes, channels, dtype=torch.float64)
    for b in range(batch):
        for k in range(routes):
            steps = torch.arange(length) if order is None else (order[b, k] if order.dim() == 3 else order[k])
            for t, position in enumerate(steps.tolist()):
                if position < 0:
                    continue
                total = exact[2][k].clone()
                for j in range(min(width, t + 1)):
                    if steps[t - j] >= 0:
                        total = total + exact[1][k, :, width - 1 - j] * exact[0][b, steps[t - j], 0 if shared else k]
                wanted[b, position, k] = torch.nn.functional.silu(total)
    torch.testing.assert_close(got.double(), wanted, **TOLERANCES[torch.float32])
    probe = torch.randn_like(wanted)
    ours = torch.autograd.grad((got * probe.float()).sum(), tensors)
    theirs = torch.autograd.grad((wanted * probe).sum(), exact)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.double(), other, **TOLERANCES[torch.float32])


# --- selective_scan -----------------------------------------------------------------------------------------------


def selective_scan_loop(u, delta, A, B, C, D, z, bias):  # (B, D, L) layouts, B and C (B, G, N, L)
    dt = torch.nn.functional.softplus(delta + bias[:, None])
    B, C = (m.repeat_interleave(u.shape[1] // m.shape[1], 1) for m in (B, C))
    h, ys = torch.zeros(*u.shape[:2], A.shape[1], dtype=u.dtype), []
    for t in range(u.shape[2]):
        h = torch.exp(dt[:, :, t, None] * A) * h + (dt * u)[:, :, t, None] * B[..., t]
        ys.append((h * C[..., t]).sum(-1))
    return (torch.stack(ys, 2) + D[:, None] * u) * torch.nn.functional.silu(z), h


@pytest.mark.parametrize("backend", RUNS_HERE)
@pytest.mark.parametrize("groups", [None, 1, 2, "per channel"])
def test_selective_scan_follows_mamba_ssm(backend: str, groups: int | str | None) -> None:
    batch, channels, d_state, length = 2, 6, 4, 33
    u, delta, z = (torch.randn(batch, channels, length) for _ in range(3))
    A, D, bias = -torch.rand(channels, d_state) - 0.1, torch.randn(channels), torch.randn(channels)
    if groups == "per channel":
        B, C = torch.randn(channels, d_state), torch.randn(channels, d_state)
        full = [m[None, :, :, None].expand(batch, channels, d_state, length) for m in (B, C)]
    else:
        shape = (batch, d_state, length) if groups is None else (batch, groups, d_state, length)
        B, C = torch.randn(shape), torch.randn(shape)
        full = [m[:, None] if groups is None else m for m in (B, C)]
    wanted, last = selective_scan_loop(*(t.double() for t in (u, delta, A, *full, D, z, bias)))
    y, state = vk.selective_scan(u, delta, A, B, C, D, z, bias, True, True, backend=backend)
    torch.testing.assert_close(y.double(), wanted, **TOLERANCES[torch.float32])
    torch.testing.assert_close(state.double(), last, **TOLERANCES[torch.float32])


# --- validation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"u": torch.randn(2, 17, 2, 5)}, ValueError, r"u must be \(B, L, 1 or 3, 5\)"),
        ({"delta": torch.randn(2, 17, 3, 4)}, ValueError, r"delta must be \(2, 17, 3, 5\)"),
        (
            {"delta": torch.randn(2, 17, 3, 5), "dt_weight": torch.randn(3, 5, 2)},
            ValueError,
            r"delta must be \(2, 17, 3, 2\)",
        ),
        (
            {"dt_weight": torch.randn(3, 4, 2)},
            ValueError,
            r"dt_weight must be \(3, 5, R\), R at least 1, got \(3, 4, 2\)",
        ),
        ({"dt_weight": torch.randn(3, 5, 0)}, ValueError, "R at least 1"),
        ({"dt_weight": torch.randn(3, 5)}, ValueError, r"dt_weight must be \(3, 5, R\)"),
        ({"dt_weight": torch.ones(3, 5, 2, dtype=torch.long)}, TypeError, "dt_weight must be floating point"),
        ({"dt_weight": torch.randn(3, 5, 2, device="meta")}, ValueError, "dt_weight is on meta but u is on cpu"),
        ({"B": torch.randn(2, 17, 3, 9)}, ValueError, r"B must be \(2, 17, 3, 4\)"),
        ({"A": torch.randn(3, 5)}, ValueError, r"A must be \(K, D, N\)"),
        ({"D": torch.randn(5)}, ValueError, r"D must be \(3, 5\)"),
        ({"order": torch.zeros(2, 17, dtype=torch.long)}, ValueError, r"order must be \(3, T\)"),
        ({"order": torch.full((3, 4), 17)}, ValueError, r"order holds 17..17, but u has positions 0..16"),
        ({"order": torch.full((3, 4), -2)}, ValueError, r"order holds -2"),
        ({"order": torch.zeros(3, 4)}, TypeError, "order must be an integer tensor"),
        ({"order": torch.tensor([[0, 1, 2], [3, -1, 3], [5, 4, 3]])}, ValueError, "visits a position more than once"),
        ({"A": -torch.ones(3, 5, 0)}, ValueError, r"A must be \(K, D, N\) with K and N at least 1"),
        ({"A": -torch.ones(0, 5, 4)}, ValueError, r"A must be \(K, D, N\) with K and N at least 1"),
        ({"u": torch.zeros(2, 17, 1, 5, dtype=torch.long)}, TypeError, "u must be floating point"),
        ({"merge": "mean"}, ValueError, "merge must be 'sum' or 'none', got 'mean'"),
        ({"backend": "cuda"}, ValueError, "unknown backend 'cuda'"),
        ({"segment": -1}, ValueError, "segment and phase must not be negative, got -1 and 0"),
        ({"delta": torch.randn(2, 17, 3, 5, device="meta")}, ValueError, "delta is on meta but u is on cpu"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        vk.routed_scan(**{**make(grad=False), **change})


# --- choosing -----------------------------------------------------------------------------------------------------


def test_a_table_made_in_inference_mode() -> None:
    inputs = make(1, 7, 2, 9, 4, grad=False)
    with torch.inference_mode():
        order = permutations(2, length=7)
        y = vk.routed_scan(**inputs, order=order)
    assert torch.equal(y, vk.routed_scan(**inputs, order=order.clone()))


@pytest.mark.parametrize("table", [None, (3, 1 << 17), (2, 3, 1 << 17)], ids=["none", "shared", "per image"])
def test_tensors_without_data(table: tuple[int, ...] | None) -> None:
    """Shapes pass through on the meta device, gradients included, and nobody is warned that a large scan would be slow."""
    with torch.device("meta"):
        inputs = make(length=1 << 17)
        order = None if table is None else torch.empty(table, dtype=torch.int64)
        y, states = vk.routed_scan(**inputs, order=order, merge="none", return_states=True)
        assert vk.route_conv(inputs["u"], torch.empty(3, 5, 4), order=order).shape == y.shape
    assert y.device.type == "meta"
    assert (y.shape, states.shape) == ((2, 1 << 17, 3, 5), (2, 1 << 17, 3, 5, 4))
    y.sum().backward()
    assert inputs["A"].grad.shape == inputs["A"].shape


@pytest.mark.parametrize("compiled", [False, True], ids=["traced", "compiled"])
def test_a_graph_checks_the_table_that_it_is_given(compiled: bool) -> None:
    def scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, order: Tensor) -> Tensor:
        y = vk.routed_scan(u, delta, A, B, C, order=order, merge="none")
        return y + vk.route_conv(u, A, order=order)

    args, order = scan_args(), permutations(2, length=12)
    graph = (
        torch.compile(scan, backend="aot_eager")
        if compiled
        else torch.jit.trace(scan, (*args, order), check_trace=False)
    )
    torch.testing.assert_close(graph(*args, order), scan(*args, order))  # of int64
    with pytest.raises((ValueError, RuntimeError), match=r"order holds [0-9]+\.\.13, but u has positions 0\.\.11"):
        graph(*args, order.clamp(min=2) + 2)
    with pytest.raises((ValueError, RuntimeError), match="visits a position more than once"):
        graph(*args, order.clamp(min=2))
    if not compiled:
        with pytest.raises(RuntimeError, match=r"order must be \(2, T\) or \(2, 2, T\), got \(1, 2, 12\)"):
            graph(*args, order[None])


@pytest.mark.parametrize("steps", [12, 40])
def test_a_table_that_changes_behind_torchs_back_leaves_no_memory_wrong(steps: int) -> None:
    inputs = make(2, 40, 2, 5, 4)
    cells = permutations(2, length=40)[:, :steps].int().numpy().copy()
    order = torch.from_numpy(cells)
    y = vk.routed_scan(**inputs, order=order, backend="numba")
    u = vk.route_conv(inputs["u"], torch.ones(2, 5, 3), order=order, backend="numba")
    cells[1, -1] = 1 << 30
    for run in (
        lambda: vk.routed_scan(**inputs, order=order, backend="numba"),
        lambda: vk.route_conv(inputs["u"], torch.ones(2, 5, 3), order=order, backend="numba"),
        y.sum().backward,
        u.sum().backward,
    ):
        with pytest.raises(ValueError, match="order holds positions that u or x does not have"):
            run()


def test_a_convolution_needs_a_tap() -> None:
    with pytest.raises(ValueError, match=r"weight must be \(K, D, W\) with K and W at least 1, got \(3, 5, 0\)"):
        vk.route_conv(torch.randn(2, 7, 1, 5), torch.randn(3, 5, 0))


def test_report_names_every_implementation_with_a_reason() -> None:
    report = vk.backends("cpu")
    assert set(report) == {"numba", "triton", "chunked", "reference", "loop"}
    assert report["chunked"] is None
    assert report["numba"] is None
    assert "CPU" in str(report)
    assert all(reason is None or len(reason) > 5 for reason in report.reasons.values())


def test_a_backend_that_cannot_run_raises_its_reason() -> None:
    reason = vk.backends("cpu")["triton"]
    if reason is None:
        pytest.skip("triton can run CPU tensors in this process (interpreter)")
    with pytest.raises(RuntimeError, match="backend 'triton' cannot run here"):
        vk.routed_scan(**make(grad=False), backend="triton")
    with vk.use_backend("triton"), pytest.raises(RuntimeError, match="cannot run here"):
        vk.routed_scan(**make(grad=False))
    with vk.use_backend("triton"):
        assert "triton is asked for and cannot run" in str(vk.backends("cpu"))
    with vk.use_backend("triton"), pytest.raises(RuntimeError, match="cannot run here"):
        vk.ssd_scan(*(torch.ones(1, 4, 2, n)[..., 0] if n == 1 else torch.ones(1, 4, 2, n) for n in (8, 1)),
                    -torch.ones(2), *torch.ones(2, 1, 4, 1, 8))  # fmt: skip
    vk.routed_scan(**make(grad=False))  # the choice ends with the block


def test_compiled_code_follows_the_choice() -> None:
    inputs = make(grad=False, dtype=torch.float64)  # which numba has no kernels for
    compiled = torch.compile(lambda: vk.routed_scan(**inputs), backend="aot_eager")
    compiled()
    with vk.use_backend("numba"), pytest.raises(Exception, match="backend 'numba' cannot run here"):
        compiled()
    torch.compiler.reset()


def test_float64_runs_in_float64() -> None:
    inputs = make(dtype=torch.float64, grad=False)
    wanted = vk.routed_scan(**inputs, backend="reference")
    torch.testing.assert_close(vk.routed_scan(**inputs), wanted, **TOLERANCES[torch.float64])


def test_plain_torch_on_a_large_input_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from visionssm_kernels import backends as _  # noqa: F401

    module = sys.modules["visionssm_kernels.backends"]
    monkeypatch.setattr(module, "_told", set())
    monkeypatch.setattr(module, "_SLOW_ELEMENTS", 10)
    inputs = make(dtype=torch.float64, grad=False)
    with pytest.warns(UserWarning, match="plain torch"):
        vk.routed_scan(**inputs)
    vk.routed_scan(**inputs)  # a second warning would be an error here


# --- torch's machinery --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["chunked", "reference"])
def test_the_operators_differentiate_plain_torch(backend: str) -> None:
    inputs = make(2, 7, 2, 3, 4, shared_u=False)
    tensors, order = list(inputs.values()), permutations(2, length=7)
    y, _, states = torch.ops.visionssm.routed_scan(*tensors, order, True, "none", False, True, backend)
    wanted, wanted_states = vk.routed_scan(**inputs, order=order, merge="none", return_states=True, backend=backend)
    conv = (inputs["u"], torch.randn(2, 3, 4, requires_grad=True), inputs["bias"])
    u, wanted_u = (
        torch.ops.visionssm.route_conv(*conv, order, True, backend),
        vk.route_conv(*conv, order=order, backend=backend),
    )
    for got, true, params in ((y + states.sum(-1), wanted + wanted_states.sum(-1), tensors), (u, wanted_u, conv)):
        torch.testing.assert_close(got, true)
        grads = (torch.autograd.grad(out.square().sum(), params) for out in (got, true))
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("backend", CUSTOM_OPS)
def test_opcheck(backend: str) -> None:
    inputs = make(2, 11, 2, 4, 4)
    order = permutations(2, length=11).int()
    for save_checkpoints in (False, True):
        args = (*inputs.values(), order, True, "sum", save_checkpoints, True, backend)
        torch.library.opcheck(torch.ops.visionssm.routed_scan.default, args)
        torch.library.opcheck(torch.ops.visionssm.routed_scan.default, (*args, 4, 1))
    conv = (inputs["u"], torch.randn(2, 4, 3, requires_grad=True), inputs["bias"], order, True, backend)
    torch.library.opcheck(torch.ops.visionssm.route_conv.default, conv)


class Scan(torch.nn.Module):
    def forward(self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        return vk.routed_scan(u * 2, delta, A, B, C) + 1


def scan_args(length: int = 12) -> tuple[Tensor, ...]:
    inputs = make(2, length, 2, 4, 4, grad=False)
    return tuple(inputs[name] for name in ("u", "delta", "A", "B", "C"))


def test_compiles_into_one_graph_with_gradients() -> None:
    args = tuple(t.requires_grad_() for t in scan_args())
    compiled = torch.compile(Scan(), fullgraph=True, backend="aot_eager")
    wanted = torch.autograd.grad(Scan()(*args).sum(), args)
    for one, other in zip(torch.autograd.grad(compiled(*args).sum(), args), wanted, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("backend", ["auto", "chunked"])
def test_compiles_for_several_states_and_lengths(backend: str, dynamic: bool | None) -> None:
    def scan(*args: Tensor) -> Tensor:
        return vk.routed_scan(*args, backend=backend)

    compiled = torch.compile(scan, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for length, d_state in ((9, 4), (20, 8), (33, 16)):
        args = make(2, length, 2, 4, d_state, grad=False).values()
        torch.testing.assert_close(compiled(*args), scan(*args))
    torch.compiler.reset()


def test_derivatives_of_other_kinds() -> None:
    """torch.func's and forward-mode ones, which are plain torch's, and second ones, which the kernels say they lack."""
    inputs = make(grad=False)
    u, others = inputs.pop("u"), inputs
    exact = {name: x.double() for name, x in others.items()}

    def loss(u: Tensor, **options: str) -> Tensor:
        return vk.routed_scan(u, **(exact if options else others), **options).square().sum()

    moved, close = torch.randn_like(u), {"rtol": 1e-4, "atol": 1e-4}
    wanted = torch.func.grad(lambda u: loss(u, backend="reference"))(u.double())
    torch.testing.assert_close(torch.func.grad(loss)(u), wanted.float(), **close)
    along = (wanted * moved).sum().float()
    torch.testing.assert_close(torch.func.jvp(loss, (u,), (moved,))[1], along, **close)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(u, moved)
        torch.testing.assert_close(forward_ad.unpack_dual(loss(dual)).tangent, along, **close)
        product = vk.linear(dual, torch.eye(5))
        torch.testing.assert_close(forward_ad.unpack_dual(product).tangent, moved)
        with pytest.raises(RuntimeError, match="'numba' has no derivatives in torch"):
            vk.routed_scan(dual, **others, backend="numba")
    u.requires_grad_()
    (first,) = torch.autograd.grad(loss(u), u, create_graph=True)
    with pytest.raises(RuntimeError, match="the kernels have no second derivatives: backend='chunked' has them"):
        first.sum().backward()


def test_exports_with_dynamic_batch_and_length() -> None:
    batch, length = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("length", min=2, max=4096)
    moving = {0: batch, 1: length}
    shapes = {"u": moving, "delta": moving, "A": None, "B": moving, "C": moving}
    program = torch.export.export(Scan(), scan_args(), dynamic_shapes=shapes)
    for size in (5, 40):
        args = scan_args(size)
        torch.testing.assert_close(program.module()(*args), Scan()(*args))


def test_is_a_leaf_of_jit_tracing() -> None:
    args = scan_args()
    traced = torch.jit.trace(Scan(), args, check_trace=False)
    torch.testing.assert_close(traced(*args), Scan()(*args))


def test_autocast_leaves_parameters_and_state_in_float32() -> None:
    inputs = make(2, 30, 2, 8, 4, grad=False)
    with torch.autocast("cpu", torch.bfloat16):
        y, states = vk.routed_scan(**inputs, return_states=True)
    assert y.dtype == torch.float32
    assert states.dtype == torch.float32
    torch.testing.assert_close(y, vk.routed_scan(**inputs))


def test_flops_follow_the_papers_convention() -> None:
    inputs = make(2, 30, 3, 8, 4)
    with FlopCounterMode(display=False) as counter:
        vk.routed_scan(**inputs, backend="numba").sum().backward()
    forward = 2 * 30 * 3 * 8 * (9 * 4 + 1)
    assert counter.get_total_flops() == 3 * forward


@pytest.mark.parametrize("backend", CUSTOM_OPS)
def test_same_bits_every_time(backend: str) -> None:
    inputs = make(2, 300, 3, 40, 4)
    probe = torch.randn(1 << 16, dtype=torch.float64)
    first = outputs_and_gradients(backend, inputs, probe)
    for again in range(3):
        for one, other in zip(outputs_and_gradients(backend, inputs, probe), first, strict=True):
            assert torch.equal(one, other), again
