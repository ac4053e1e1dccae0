"""The numba kernels against a float64 loop: outputs, states and every gradient, for all shapes of the contract."""

import contextlib
import multiprocessing
import threading

import pytest
import torch
import torch.nn.functional as F

from tests.tolerances import HALF_PRECISION_ERROR_RATIO, TOLERANCES

pytest.importorskip("numba")
cpu = pytest.importorskip("visionssm_kernels.cpu")

# Relative to the largest value: what float32 arithmetic leaves on these sizes.
FORWARD_ERROR, GRADIENT_ERROR = 5e-7, 2e-6


def scan_oracle(u, delta, A, B, C, D, bias, order, softplus, merge):
    """One step after the other in the dtype of the inputs: y and the states (B, L, K, D, N)."""
    batch, L, _, channels = u.shape
    K, _, N = A.shape
    outputs, kept = [], []
    for b in range(batch):
        for k in range(K):
            h, y, states = u.new_zeros(channels, N), {}, {}
            table = range(L) if order is None else (order[b, k] if order.dim() == 3 else order[k]).tolist()
            for p in table:
                raw = delta[b, p, k] if p >= 0 else torch.zeros_like(delta[b, 0, k])
                raw = raw if bias is None else raw + bias[k]
                dt = F.softplus(raw, threshold=60.0) if softplus else raw
                h = torch.exp(dt[:, None] * A[k]) * h
                if p < 0:
                    continue
                x = u[b, p, min(k, u.shape[2] - 1)]
                h = h + (dt * x)[:, None] * B[b, p, k]
                y[p] = h @ C[b, p, k] + (0 if D is None else D[k] * x)
                states[p] = h
            nothing, no_state = u.new_zeros(channels), u.new_zeros(channels, N)
            outputs.append(torch.stack([y.get(p, nothing) for p in range(L)]) if L else u.new_zeros(0, channels))
            kept.append(torch.stack([states.get(p, no_state) for p in range(L)]) if L else u.new_zeros(0, channels, N))
    shape = (batch, K, L, channels)
    y = (torch.stack(outputs) if outputs else u.new_zeros(0, L, channels)).view(shape).transpose(1, 2)
    states = (torch.stack(kept) if kept else u.new_zeros(0, L, channels, N)).view(*shape, N).transpose(1, 2)
    return (y.sum(2) if merge == "sum" else y), states


def conv_oracle(x, weight, bias, order, silu):
    """The sum over taps, route by route, in the dtype of the inputs."""
    batch, L, _, channels = x.shape
    K, _, taps = weight.shape
    images = []
    for b in range(batch):
        for k in range(K):
            table = list(range(L)) if order is None else (order[b, k] if order.dim() == 3 else order[k]).tolist()
            rows = [x[b, p, min(k, x.shape[2] - 1)] if p >= 0 else x.new_zeros(channels) for p in table]
            out = {}
            for t, p in enumerate(table):
                if p >= 0:
                    total = sum(weight[k, :, taps - 1 - j] * rows[t - j] for j in range(min(taps, t + 1)))
                    total = total if bias is None else total + bias[k]
                    out[p] = F.silu(total) if silu else total
            images.append(torch.stack([out.get(p, x.new_zeros(channels)) for p in range(L)]))
    return torch.stack(images).view(batch, K, L, channels).transpose(1, 2)


def make_order(kind, batch, K, L):
    if kind == "none":
        return None
    tables = torch.stack([torch.randperm(L) for _ in range(batch * K)]).view(batch, K, L).int()
    if kind == "shared":
        return tables[0]
    if kind == "subset":
        return tables[0, :, : (2 * L) // 3]
    if kind == "padded":
        longer = torch.full((batch, K, L + 5), -1, dtype=torch.int32)
        longer[..., 2 : 2 + L // 2] = tables[..., : L // 2]
        longer[..., 4 + L // 2 :][..., : L - L // 2] = tables[..., L // 2 :]
        return longer
    assert kind == "per image"
    return tables


def make_scan(batch, K, Ku, D, N, L, *, order="shared", skip=True, bias=True, dtype=torch.float32):
    """Inputs in the layouts that a model makes: delta from a batched product, B and C as slices of one projection."""
    u = torch.randn(batch, L, Ku, D)
    delta = (torch.randn(K, batch * L, D) * 0.5).view(K, batch, L, D).permute(1, 2, 0, 3)
    projection = torch.randn(batch, L, K, 3 + 2 * N)
    A = -torch.rand(K, D, N) * N - 0.2
    tensors = [
        u.to(dtype),
        delta.to(dtype),
        A,
        projection[..., 3 : 3 + N].to(dtype),
        projection[..., 3 + N :].to(dtype),
    ]
    tensors += [torch.randn(K, D) if skip else None, torch.rand(K, D) * 4 - 4 if bias else None]
    return tensors, make_order(order, batch, K, L)


def relative_error(got, wanted):
    assert got.shape == wanted.shape
    if wanted.numel() == 0:
        return 0.0
    return ((got.double() - wanted).abs().max() / wanted.abs().max().clamp_min(1e-6)).item()


def double(tensors):
    return [None if t is None else t.detach().double().requires_grad_() for t in tensors]


def check_scan(tensors, order, *, merge="sum", softplus=True, with_states=False):
    y, checkpoints, states = cpu.routed_scan_forward(*tensors, order, softplus, merge, True, with_states)
    exact = double(tensors)
    wanted, wanted_states = scan_oracle(*exact, order, softplus, merge)
    assert relative_error(y, wanted) < FORWARD_ERROR
    assert states.numel() == 0 or with_states
    grad = torch.randn(y.shape)
    grad_states = torch.randn(states.shape) if with_states else None
    loss = (wanted * grad.double()).sum()
    if with_states:
        assert relative_error(states, wanted_states) < FORWARD_ERROR
        loss = loss + (wanted_states * grad_states.double()).sum()
    present = [t for t in exact if t is not None]
    wanted_grads = iter(torch.autograd.grad(loss, present, allow_unused=True, materialize_grads=True))
    grads = cpu.routed_scan_backward(grad, grad_states, *tensors, order, softplus, merge, checkpoints)
    names = ("u", "delta", "A", "B", "C", "D", "bias")
    for name, tensor, got in zip(names, tensors, grads, strict=True):
        if tensor is None:
            assert got is None, name
        else:
            assert got.dtype == tensor.dtype, name
            assert relative_error(got, next(wanted_grads)) < GRADIENT_ERROR, name


@pytest.mark.parametrize("N", [1, 2, 3, 16])
@pytest.mark.parametrize("D", [1, 5, 24, 96, 360])
def test_scan_of_any_channel_and_state_count(D, N):
    check_scan(*make_scan(1, 2, 1, D, N, 37))


@pytest.mark.parametrize("T", [1, 31, 32, 63, 64, 1000])
def test_scan_of_any_length(T):
    check_scan(*make_scan(1, 1, 1, 3, 2, T, order="none"))


@pytest.mark.parametrize("merge", ["sum", "none"])
@pytest.mark.parametrize("order", ["none", "shared", "per image", "subset", "padded"])
@pytest.mark.parametrize("Ku", [1, 3])
def test_scan_along_any_routes(Ku, order, merge):
    check_scan(*make_scan(2, 3, Ku, 20, 4, 40, order=order), merge=merge)


@pytest.mark.parametrize("order", ["none", "subset", "padded"])
@pytest.mark.parametrize("N", [1, 7])
def test_states_and_their_gradients(N, order):
    check_scan(*make_scan(2, 2, 1, 21, N, 40, order=order), with_states=True)


@pytest.mark.parametrize("softplus", [True, False])
@pytest.mark.parametrize(("skip", "bias"), [(False, False), (True, False), (False, True)])
def test_optional_parameters(skip, bias, softplus):
    tensors, order = make_scan(2, 2, 2, 20, 4, 40, skip=skip, bias=bias)
    if not softplus:
        tensors[1] = tensors[1].abs() * 0.3
        tensors[6] = None if tensors[6] is None else tensors[6].abs() * 0.1
    check_scan(tensors, order, softplus=softplus)


def test_states_beyond_one_vector():
    check_scan(*make_scan(1, 1, 1, 3, 75, 40))


def test_inputs_of_any_stride():
    tensors, order = make_scan(2, 2, 2, 20, 4, 40)
    wide = [torch.randn(*t.shape[:-1], 2 * t.shape[-1]) for t in tensors]
    strided = [w[..., ::2].copy_(t) for w, t in zip(wide, tensors, strict=True)]
    assert not any(t.is_contiguous() for t in strided)
    wide_order = torch.zeros(2, 80, dtype=torch.int32)
    wide_order[:, ::2] = order
    check_scan(strided, wide_order[:, ::2])
    check_scan(
        [t.transpose(0, 1).contiguous().transpose(0, 1) for t in tensors], order.t().contiguous().t(), merge="none"
    )


@pytest.mark.parametrize(("batch", "L", "D"), [(0, 8, 5), (2, 0, 5), (2, 8, 0)])
def test_empty_inputs(batch, L, D):
    tensors, _ = make_scan(batch, 2, 1, D, 4, L, order="none")
    y, checkpoints, states = cpu.routed_scan_forward(*tensors, None, True, "sum", True, True)
    assert y.shape == (batch, L, D)
    assert states.shape == (batch, L, 2, D, 4)
    grads = cpu.routed_scan_backward(y, states, *tensors, None, True, "sum", checkpoints)
    for tensor, grad in zip(tensors, grads, strict=True):
        assert grad.shape == tensor.shape
        assert not grad.any()


def test_routes_without_steps():
    tensors, _ = make_scan(2, 2, 1, 5, 4, 8, order="none")
    order = torch.empty(2, 0, dtype=torch.int32)
    y, checkpoints, _ = cpu.routed_scan_forward(*tensors, order, True, "sum", True, False)
    grads = cpu.routed_scan_backward(torch.ones_like(y), None, *tensors, order, True, "sum", checkpoints)
    assert not y.any()
    assert not any(grad.any() for grad in grads)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("merge", ["sum", "none"])
@pytest.mark.parametrize("N", [1, 4, 16])
def test_half_precision_is_as_exact_as_eager_torch(N, merge, dtype):
    tensors, order = make_scan(1, 2, 1, 40, N, 50, dtype=dtype)
    exact, eager = double(tensors), [t.detach().clone().requires_grad_() for t in tensors]
    eager_half = [t.to(dtype) for t in eager]
    wanted, _ = scan_oracle(*exact, order, True, merge)
    rough, _ = scan_oracle(*eager_half, order, True, merge)
    grad = torch.randn(wanted.shape).to(dtype)
    wanted_grads = torch.autograd.grad(wanted, exact, grad.double())
    rough_grads = torch.autograd.grad(rough, eager, grad)
    y, checkpoints, _ = cpu.routed_scan_forward(*tensors, order, True, merge, True, False)
    grads = cpu.routed_scan_backward(grad, None, *tensors, order, True, merge, checkpoints)
    for got, rough_one, right in zip((y, *grads), (rough, *rough_grads), (wanted, *wanted_grads), strict=True):
        assert got.dtype == rough_one.dtype
        floor = 0.51 * torch.finfo(got.dtype).eps  # nothing can be nearer than its own rounding
        assert relative_error(got, right) <= max(HALF_PRECISION_ERROR_RATIO * relative_error(rough_one, right), floor)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_as_torch_does(dtype):
    special = [0.0, -0.0, 1.0, float("inf"), float("-inf"), 1 + torch.finfo(dtype).eps / 2, 6e4, 7e4, 3e-5]
    x = (
        torch.cat([torch.tensor(special), torch.randn(991) * 100])[:, None, None, None]
        .expand(-1, 1, 1, 33)
        .contiguous()
    )
    weight = torch.ones(1, 33, 1)
    out = cpu.route_conv_forward(x.to(dtype), weight, None, None, False)  # one tap of 1: a copy
    assert torch.equal(out, x.to(dtype))
    out = cpu.route_conv_forward(x.to(dtype), weight * 1.001, None, None, False)
    assert torch.equal(out, (x.to(dtype).float() * 1.001).to(dtype))
    nan = cpu.route_conv_forward(torch.full_like(x, float("nan"), dtype=dtype), weight, None, None, False)
    assert nan.isnan().all()


def test_extreme_time_steps():
    tensors, order = make_scan(1, 1, 1, 20, 4, 60, bias=False)
    tensors[1] = torch.linspace(-120, 120, 60)[None, :, None, None].expand(1, 60, 1, 20).contiguous()
    check_scan(tensors, order)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", [0, 1, 3, 4])
def test_what_is_not_finite_is_not_hidden(which, bad):
    tensors, _ = make_scan(1, 1, 1, 20, 4, 60, order="none")
    tensors[which][0, 40, 0, 3] = bad
    y, checkpoints, _ = cpu.routed_scan_forward(*tensors, None, True, "sum", True, False)
    wanted, _ = scan_oracle(*double(tensors), None, True, "sum")
    assert not wanted.isfinite().all()
    torch.testing.assert_close(y.isfinite(), wanted.isfinite())
    grads = cpu.routed_scan_backward(torch.ones_like(y), None, *tensors, None, True, "sum", checkpoints)
    assert not all(grad.isfinite().all() for grad in grads)


CONVS = [(1, "shared", True, 4), (3, "padded", True, 4), (1, "subset", False, 3), (3, "per image", True, 1),
         (1, "none", True, 40)]  # fmt: skip


@pytest.mark.parametrize(("Kx", "order", "silu", "taps"), CONVS)
@pytest.mark.parametrize("D", [5, 40])
def test_conv_and_its_gradients(D, Kx, order, silu, taps):
    order = make_order(order, 2, 3, 70)
    bias = torch.randn(3, D) if silu else None
    tensors = [torch.randn(2, 70, Kx, 2 * D)[..., ::2], torch.randn(3, D, taps), bias]
    exact = double(tensors)
    wanted = conv_oracle(*exact, order, silu)
    got = cpu.route_conv_forward(*tensors, order, silu)
    assert relative_error(got, wanted) < FORWARD_ERROR
    grad = torch.randn(got.shape)
    wanted_grads = torch.autograd.grad(wanted, [t for t in exact if t is not None], grad.double())
    grads = cpu.route_conv_backward(grad, *tensors, order, silu)
    assert (grads[2] is None) == (bias is None)
    for got_one, right in zip(grads, wanted_grads, strict=False):
        assert relative_error(got_one, right) < GRADIENT_ERROR


def run_everything():
    torch.manual_seed(1)
    results = []
    for batch, K, Ku, D, L in ((1, 4, 1, 100, 300), (3, 2, 2, 50, 64), (1, 3, 1, 10, 300), (64, 1, 1, 400, 9)):
        tensors, order = make_scan(batch, K, Ku, D, 4, L)
        y, checkpoints, _ = cpu.routed_scan_forward(*tensors, order, True, "sum", True, False)
        grads = cpu.routed_scan_backward(torch.sin(y), None, *tensors, order, True, "sum", checkpoints)
        weight, bias = torch.randn(K, D, 4), torch.randn(K, D)
        u = cpu.route_conv_forward(tensors[0], weight, bias, order, True)
        results += [y, *grads, u, *cpu.route_conv_backward(u, tensors[0], weight, bias, order, True)]
    return results


@pytest.mark.parametrize("vectors", [1, 2, 3, 4, 6, 7])
@pytest.mark.parametrize(("K", "N"), [(1, 1), (3, 1), (2, 5)])
def test_whole_vectors_from_rows_to_rows(vectors, K, N):
    tensors, order = make_scan(2, K, 1, vectors * cpu.LANES, N, 45)
    check_scan(tensors, order)
    check_scan(tensors, order, merge="none")
    tensors, order = make_scan(1, K, K, vectors * cpu.LANES, N, 45, order="subset", skip=False, bias=False)
    check_scan(tensors, order)


@pytest.mark.parametrize("vectors", [8, 12, 23, 24, 47])
def test_wide_tasks_of_several_states(vectors):
    tensors, order = make_scan(64, 1, 1, vectors * cpu.LANES - 3, 3, 5)
    for fixed in (True, False):
        assert cpu._plan_scan(64, 5, tensors[2], adding=False, whole=True, fixed=fixed).width > max(cpu.WIDTHS)
    check_scan(tensors, order)
    check_scan(tensors, order, with_states=True)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("order", ["none", "shared", "subset", "padded", "per image"])
@pytest.mark.parametrize(("K", "D", "N"), [(1, 5, 16), (1, 16, 1), (2, 16, 1), (2, 3, 5)])
def test_pieces_of_a_route_side_by_side(threads, monkeypatch, K, D, N, order):
    threads(7)
    L = 150
    tensors, table = make_scan(1, K, 1, D, N, L, order=order)
    tensors[2] *= 0.1  # states that reach from piece to piece
    whole = cpu.routed_scan_forward(*tensors, table, True, "sum", True, False)
    monkeypatch.setattr(cpu, "_PIECE_WORK", 1)
    cut = cpu.routed_scan_forward(*tensors, table, True, "sum", True, False)
    assert not torch.equal(cut[1], whole[1])  # it was cut: rounded otherwise
    for merge in ("sum", "none"):
        check_scan(tensors, table, merge=merge)


@pytest.mark.parametrize("order", ["none", "shared", "subset", "padded", "per image"])
@pytest.mark.parametrize(("D", "N"), [(37, 1), (96, 1), (40, 16), (96, 3)])
@pytest.mark.parametrize("rank", [1, 16, 24, 64])
def test_dt_projected_by_the_scan(threads, monkeypatch, D, N, rank, order):
    threads(1)
    (u, _, *rest), table = make_scan(2, 3, 1, D, N, 45, order=order)
    low, weight = torch.randn(2, 45, 3, rank + 2)[..., 1:-1], torch.randn(3, D, rank) / rank
    delta = torch.einsum("blkr,kdr->blkd", low, weight)
    for segment, phase in ((0, 0), (7, 3)):
        options = (table, True, "sum", True, False, segment, phase)
        with monkeypatch.context() as alone:
            alone.setattr(cpu, "project", None)  # the kernel does it
            got = cpu.routed_scan_forward(u, low, *rest, *options, weight)
        for one, right in zip(got, cpu.routed_scan_forward(u, delta, *rest, *options), strict=True):
            assert relative_error(one, right.double()) < FORWARD_ERROR


def test_pieces_of_a_route_whose_dt_is_projected(threads, monkeypatch):
    threads(7)
    monkeypatch.setattr(cpu, "_PIECE_WORK", 1)
    (u, _, *rest), table = make_scan(1, 1, 1, 16, 4, 150)
    low, weight = torch.randn(1, 150, 1, 3), torch.randn(1, 16, 3)
    got = cpu.routed_scan_forward(u, low, *rest, table, True, "sum", False, False, dt_weight=weight)[0]
    delta = torch.einsum("blkr,kdr->blkd", low, weight)
    assert (
        relative_error(got, cpu.routed_scan_forward(u, delta, *rest, table, True, "sum", False, False)[0].double())
        < FORWARD_ERROR
    )


@pytest.mark.parametrize("openmp", [True, False])
@pytest.mark.parametrize("count", [2, 7])
def test_the_number_of_threads_changes_nothing(threads, monkeypatch, count, openmp):
    if not openmp:
        monkeypatch.setattr(cpu.threads, "_openmp", None)
    threads(1)
    alone = run_everything()
    threads(count)
    for one, many in zip(alone, run_everything(), strict=True):
        assert torch.equal(one, many)


def test_callers_from_many_threads(threads):
    threads(2)
    wanted, wrong = run_everything(), []

    def call():
        tensors, order = make_scan(1, 2, 1, 40, 4, 80)
        try:
            check_scan(tensors, order)
        except BaseException as error:
            wrong.append(error)

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong
    assert all(torch.equal(a, b) for a, b in zip(wanted, run_everything(), strict=True))


def _in_child(queue, count):
    torch.set_num_threads(count)
    tensors, order = make_scan(2, 2, 1, 40, 4, 80)
    y, checkpoints, _ = cpu.routed_scan_forward(*tensors, order, True, "sum", True, False)
    grads = cpu.routed_scan_backward(y, None, *tensors, order, True, "sum", checkpoints)
    queue.put(bool(y.isfinite().all() and all(grad.isfinite().all() for grad in grads)))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("count", [1, 2])
def test_a_forked_child_does_not_hang(threads, count):
    threads(2)
    run_everything()  # the pool exists, and the child will not have its threads
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(queue, count), daemon=True)
    child.start()
    child.join(60)
    hung = child.is_alive()
    if hung:
        child.kill()
    assert not hung
    assert queue.get(timeout=5)


def test_it_says_what_it_cannot_run():
    assert cpu.why_not(torch.device("cpu"), torch.float32, 16) is None
    assert "cuda" in cpu.why_not(torch.device("cuda"), torch.float32, 16)
    assert "float64" in cpu.why_not(torch.device("cpu"), torch.float64, 16)


def test_it_says_once_that_nothing_can_be_cached(monkeypatch):
    from numba.core.caching import CacheImpl

    from visionssm_kernels.cpu import rows

    def double_of(x):
        return 2 * x

    monkeypatch.setattr(CacheImpl, "_locator_classes", [])  # as where no folder can be written
    rows._warn_of_no_cache.cache_clear()
    with pytest.warns(Warning, match="NUMBA_CACHE_DIR"):
        first = rows.compiled(double_of)
    second = rows.compiled(double_of)  # a second warning would be an error
    assert (first(2), second(3)) == (4, 6)


def test_through_the_operators():
    from visionssm_kernels import routed_scan

    tensors, order = make_scan(2, 2, 1, 20, 4, 40)
    leaves = [t.clone().requires_grad_() for t in tensors]
    results = []
    for backend in ("numba", "reference"):
        y = routed_scan(*leaves, order=order, backend=backend)
        results.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, **TOLERANCES[torch.float32])


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def outputs_and_gradients(values):
    """Of every kernel, and its compilation ahead of use."""
    import visionssm_kernels as vk

    u, delta, A, B, C, D, bias, order, z, weight, maps, fusion, wave = values
    inputs = [x.detach().requires_grad_() for x in (u, delta, A, B, C, D, bias)]
    y, states = vk.routed_scan(*inputs, order=order, return_states=True, merge="none")
    results = [y, states, *torch.autograd.grad(y.sum() + states.sum(), inputs)]
    leaves = [x.detach().requires_grad_() for x in (u, weight, bias)]
    conv = vk.route_conv(*leaves, order=order)
    results += [conv, *torch.autograd.grad(conv.sum(), leaves)]
    leaves = [x.detach().requires_grad_() for x in wave]
    waves = vk.wavefront_scan(*leaves)
    results += [waves, *torch.autograd.grad(waves.sum(), leaves)]
    with torch.no_grad():
        results += [vk.routed_scan(u, delta, A, B, C, D, bias, order=order), vk.norm_gate(z, z, D[0], D[1])]
        results += [vk.instance_norm(z, D[0], D[1]), vk.fuse_states(maps, fusion, [1, 3])]
    cpu.warmup()
    return [x.detach() for x in results]


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16, torch.float16, torch.device("meta")], ids=str)
def test_kernels_do_not_depend_on_torchs_defaults(default):
    K, D, N = 2, 21, 4
    torch.manual_seed(0)
    values = [torch.randn(2, 40, 1, D), torch.randn(2, 40, K, D), -torch.rand(K, D, N), *torch.randn(2, 2, 40, K, N)]
    values += [*torch.randn(2, K, D), torch.rand(K, 40).argsort(-1), torch.randn(2, 40, D), torch.randn(K, D, 4)]
    values += [torch.randn(2, 5, 8, D), torch.randn(2, D, 3, 3)]
    values += [[torch.randn(1, 5, 8, D), torch.randn(1, 5, 8, 2, D), -torch.rand(2, D, N), torch.randn(1, 5, 8, 2, N),
                torch.randn(1, 5, 8, N)]]  # fmt: skip
    wanted = outputs_and_gradients(values)
    with default if isinstance(default, torch.device) else default_dtype(default):
        found = outputs_and_gradients(values)
    for got, expected in zip(found, wanted, strict=True):
        assert got.device.type == "cpu"
        assert got.dtype == expected.dtype
        assert torch.equal(got, expected)
