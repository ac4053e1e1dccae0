"""Options that families share: locally bi-directional scans, layer-wise shuffle, low-rank SS2D, global residuals."""

import itertools

import pytest
import timm
import torch
from timm.models._features_fx import create_feature_extractor, get_graph_node_names
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import visionssm
from tests.tolerances import TOLERANCES
from visionssm.mixers import ImageScan
from visionssm.scans import create_scan

SMALL = visionssm.list_models("*_nano", task="classification")
SCANNING = ["efficient_vmamba_nano", "group_mamba_nano", "local_vim_nano", "local_vmamba_nano", "mamba_nd_nano",
            "mobile_mamba_nano", "msvmamba_nano", "msvmamba_v3_nano", "plain_mamba_nano", "vim_nano", "vmamba_nano"]  # fmt: skip
TAKES = {
    "local_scan": set(SCANNING),
    "shuffle_rate": {*SCANNING, "spatial_mamba_nano"},
    "global_residual": set(SMALL) - {"vim_nano", "local_vim_nano", "plain_mamba_nano", "mamba_nd_nano"},
    "low_rank": {"efficient_vmamba_nano", "local_vmamba_nano", "vmamba_nano"},
}
ON = {"local_scan": 4, "shuffle_rate": 1.0, "global_residual": True, "low_rank": 1}
PAIRS = [(name, option) for option, names in TAKES.items() for name in sorted(names)]


def build(name: str, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=10, **options)


def image(batch: int = 2, height: int = 64, width: int = 64) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("name", "option"), PAIRS)
def test_trains_and_changes_the_result_where_it_should(name: str, option: str) -> None:
    plain, model = build(name), build(name, **{option: ON[option]})
    if option != "low_rank":  # which has other parameters, drawn alike where d_state is 1
        for parameter in plain.parameters():
            if not parameter.any():  # branches that start at zero
                nn.init.normal_(parameter, std=0.1)
        model.load_state_dict({**model.state_dict(), **plain.state_dict()})
    x = image()
    with torch.no_grad():
        same = torch.equal(plain.eval()(x), model.eval()(x))
    assert same == (option == "shuffle_rate" or (option == "low_rank" and name == "vmamba_nano"))  # its state size is 1
    model.train()(x).square().mean().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]


@pytest.mark.parametrize(("name", "option"), [(n, o) for o in TAKES for n in SMALL if n not in TAKES[o]])
def test_a_family_that_has_no_use_for_it_names_the_option(name: str, option: str) -> None:
    with pytest.raises(TypeError, match=option):
        visionssm.create_model(name, **{option: ON[option]})


@pytest.mark.parametrize("name", ["mambair_nano_x2", "segmamba_nano"])
def test_other_tasks_name_the_option_too(name: str) -> None:
    with pytest.raises(TypeError, match="shuffle_rate"):
        visionssm.create_model(name, shuffle_rate=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"local_scan": -2}, "local_scan must be a number of steps"),
        ({"low_rank": 2}, r"low_rank must be in 1..d_state = 1..1"),
        ({"shuffle_rate": 1.5}, r"shuffle_rate must be in 0..1, got 1.5"),
        ({"shuffle_rate": 0.5, "scan": "semantic"}, "needs layers that read tokens along fixed routes"),
    ],
)
def test_values_that_do_not_fit_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build("vmamba_nano", **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vim_nano", "vmamba_nano"])
def test_all_options_under_torchs_machinery(name: str) -> None:
    options = {"local_scan": 0, "shuffle_rate": 0.5}
    if name == "vmamba_nano":
        options |= {"depths": (1, 1, 2, 1), "d_state": 4, "low_rank": 2, "global_residual": True}
    else:
        options |= {"depth": 4}
    model = build(name, **options).eval()
    x = image(1, 64, 96)
    with torch.no_grad():
        wanted = model(x)
        torch.testing.assert_close(torch.jit.script(model)(x), wanted)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), wanted)
    _, names = get_graph_node_names(model)
    (output,) = create_feature_extractor(model, [names[-1]])(x).values()
    torch.testing.assert_close(output, wanted)
    torch._dynamo.reset()
    maps = build(name, features_only=True, **options)(x)
    assert all(feature.isfinite().all() for feature in maps)


# --- locally bi-directional scan ----------------------------------------------------------------------------------


def test_a_token_sees_the_rest_of_its_segment_and_no_more() -> None:
    mixer = ImageScan(
        4, scan=create_scan("raster"), d_inner=4, d_state=2, dt_rank=1, conv_size=1, gate=False, local_scan=4
    )
    x = torch.randn(1, 1, 12, 4, requires_grad=True)
    for position, last in ((0, 3), (5, 7), (7, 7), (11, 11)):
        (grad,) = torch.autograd.grad(mixer.scan(x)[0, 0, position].sum(), x)
        seen = grad[0, 0].abs().sum(-1) > 0
        assert seen.nonzero().flatten().tolist() == list(range(last + 1))


def test_lbvim_alternates_the_direction_from_layer_to_layer() -> None:
    model = visionssm.create_model("lbvim_tiny")
    tables = [block.mixer.paths.scan.routes((2, 3))[0].tolist() for block in model.blocks]
    forward = list(range(6))
    assert tables == [forward, forward[::-1]] * 12
    assert {block.mixer.kernel.segment for block in model.blocks} == {0}
    assert model.cls_token is None


# --- stochastic layer-wise shuffle --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(TAKES["shuffle_rate"]))
def test_the_chance_grows_from_zero_to_the_rate_over_the_scanning_layers(name: str) -> None:
    model = build(name, shuffle_rate=0.6)
    stages = [model] if hasattr(model, "shuffle_rates") else list(model.stages)
    rates = [rate for stage in stages for rate in stage.shuffle_rates]
    layers = [rate for i, rate in enumerate(rates) if i == 0 or rate > 0]
    torch.testing.assert_close(torch.tensor(layers), torch.linspace(0, 0.6, len(layers)))
    blocks = [block for stage in stages for block in stage.blocks]
    assert len(layers) == sum(any("RouteTable" in str(type(m)) for m in b.modules()) for b in blocks)


@pytest.mark.parametrize("name", ["vim_nano", "vmamba_nano"])
def test_a_shuffled_layer_runs_on_permuted_tokens_and_is_put_back(name: str) -> None:
    model = build(name, shuffle_rate=1.0, **({} if name == "vim_nano" else {"depths": (1, 2)})).train()
    stage = model if name == "vim_nano" else model.stages[-1]
    seen: list[tuple[Tensor, Tensor]] = []
    last = stage.blocks[-1]
    last.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    before = stage.blocks[-2]
    outputs: list[Tensor] = []
    before.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    features: list[Tensor] = []
    model.norm.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0]))
    model(image())
    (inside, output), (result,) = seen[0], features
    tokens, result = output.flatten(1, -2), result.flatten(1, -2)
    order = [int((tokens == result[:, i : i + 1]).all(-1).all(0).nonzero()) for i in range(result.shape[1])]
    assert sorted(order) == list(range(len(order))) != order  # the layer's output, put back
    assert not torch.equal(inside.flatten(1, -2), outputs[0].flatten(1, -2))


@pytest.mark.parametrize("name", ["vim_nano", "vmamba_nano"])
def test_shuffles_repeat_under_a_seed_and_under_checkpointing(name: str) -> None:
    model = build(name, shuffle_rate=0.9).train()
    x = image()

    def gradients(seed: int) -> list[Tensor]:
        torch.manual_seed(seed)
        return list(torch.autograd.grad(model(x).square().mean(), list(model.parameters())))

    first = gradients(3)
    assert all(torch.equal(a, b) for a, b in zip(first, gradients(3), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, gradients(4), strict=True))
    model.set_grad_checkpointing()
    for one, other in zip(gradients(3), first, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vim_nano", "vmamba_nano"])
def test_shuffles_compile_into_one_graph(name: str) -> None:
    model = build(name, shuffle_rate=0.9, **({"depth": 2} if name == "vim_nano" else {"depths": (1, 2)})).train()
    x = image(1)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    outputs = []
    for _ in range(4):
        outputs.append(compiled(x))
    outputs[0].mean().backward()
    assert any(not torch.allclose(outputs[0], other) for other in outputs[1:])
    torch._dynamo.reset()


# --- low-rank SS2D ------------------------------------------------------------------------------------------------


def mixer(low_rank: int | None, d_state: int = 6, **options: object) -> ImageScan:
    torch.manual_seed(0)
    return ImageScan(8, scan=create_scan("cross"), d_inner=8, d_state=d_state, dt_rank=2, low_rank=low_rank, **options)


@pytest.mark.parametrize("merge", [None, "mean"])
def test_the_full_rank_is_the_scan_itself_in_any_basis(merge: str | None) -> None:
    full, low = mixer(None, merge=merge).double(), mixer(6, merge=merge).double()
    low.load_state_dict({**low.state_dict(), **full.state_dict()})
    x = torch.randn(2, 5, 7, 8, dtype=torch.float64)
    torch.testing.assert_close(low(x), full(x), **TOLERANCES[torch.float64])
    # a basis: B and C of the full scan are those of the low-rank one, seen in it
    basis = torch.linalg.qr(torch.randn(4, 6, 6, dtype=torch.float64)).Q
    with torch.no_grad():
        low.state_U.copy_(basis)
        low.state_V.copy_(basis)
        for part in (slice(2, 8), slice(8, 14)):
            low.x_proj[:, part] = basis @ full.x_proj[:, part]
    torch.testing.assert_close(low(x), full(x), **TOLERANCES[torch.float64])


def test_the_transition_has_that_rank() -> None:
    """Against the recurrence with the N x N transition U exp(dt A) V^T, step by step."""
    N, r, L, D = 5, 2, 7, 3
    torch.manual_seed(0)
    module = ImageScan(
        D, scan=create_scan("raster"), d_inner=D, d_state=N, dt_rank=1, gate=False, conv_size=1, low_rank=r
    ).double()
    basis = torch.linalg.qr(torch.randn(N, r, dtype=torch.float64)).Q
    scale = torch.rand(r, dtype=torch.float64) + 0.5
    with torch.no_grad():
        module.state_U.copy_(basis / scale)
        module.state_V.copy_(basis * scale)
    x = torch.randn(1, 1, L, D, dtype=torch.float64)
    got = module.scan(x)[0, 0]
    proj = x[0, 0] @ module.x_proj[0].t()
    dt = nn.functional.softplus(proj[:, :1] @ module.dt_proj[0].t() + module.dt_bias[0])
    B, C = proj[:, 1 : 1 + N], proj[:, 1 + N :]
    U, V, A = module.state_U[0], module.state_V[0], -module.A_log[0].exp()
    for d in range(D):
        h = torch.zeros(N, dtype=torch.float64)
        for t in range(L):
            transition = U @ torch.diag(torch.exp(dt[t, d] * A[d])) @ V.t()
            assert torch.linalg.matrix_rank(transition) == r
            h = transition @ h + dt[t, d] * x[0, 0, t, d] * B[t]
            wanted = C[t] @ h + module.D[0, d] * x[0, 0, t, d]
            torch.testing.assert_close(got[t, d], wanted, **TOLERANCES[torch.float64])


def test_gradients_of_the_factors() -> None:
    module = mixer(2, d_state=3, gate=False).double()
    with torch.no_grad():
        for factor in (module.state_U, module.state_V):
            factor.add_(0.3 * torch.randn_like(factor))
    x = torch.randn(1, 2, 3, 8, dtype=torch.float64)
    names = ("state_U", "state_V", "A_log")

    def run(*tensors: Tensor) -> Tensor:
        replaced = dict(zip(names, tensors, strict=True))
        return torch.func.functional_call(module, replaced, (x,)).sum((1, 2))

    torch.autograd.gradcheck(run, tuple(getattr(module, name).detach().requires_grad_() for name in names))


def test_low_rank_saves_parameters_and_operations() -> None:
    full, low = (visionssm.create_model("local_vmamba_nano", low_rank=rank) for rank in (None, 4))
    rates = sum(p.numel() for n, p in full.named_parameters() if n.endswith("A_log"))
    factors = sum(p.numel() for n, p in low.named_parameters() if n.endswith(("state_U", "state_V")))
    saved = sum(p.numel() for p in full.parameters()) - sum(p.numel() for p in low.parameters())
    state = full.stages[0].blocks[0].mixer.A_log.shape[-1]
    assert saved == rates * (state - 4) // state - factors > 0
    flops = []
    for model in (full, low):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.eval()(image(1))
        flops.append(counter.get_total_flops())
    assert flops[1] < flops[0]


# --- global residuals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (72, 104)])
def test_a_global_residual_passes_the_blocks_and_the_downsampling(size: tuple[int, int]) -> None:
    model = build("vmamba_nano", global_residual=True).eval()
    with torch.no_grad():
        x = model.stem(image(1, *size))
        entry = None
        for i, stage in enumerate(model.stages):
            x = stage.downsample(x)
            if entry is not None:
                pooled = nn.functional.adaptive_max_pool2d(entry.permute(0, 3, 1, 2), x.shape[1:3])
                x = x + model.global_residual.skips[i - 1].proj(pooled.permute(0, 2, 3, 1))
            entry, x = x, stage.blocks(x)
        wanted = model.forward_head(model.norm(x))
        torch.testing.assert_close(model(image(1, *size)), wanted)
        last, _ = model.forward_intermediates(image(1, *size))
        torch.testing.assert_close(model.forward_head(last), wanted)
    dims = [info["num_chs"] for info in model.feature_info]
    extra = sum((a + 1) * b for a, b in itertools.pairwise(dims))
    assert (
        sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in build("vmamba_nano").parameters()) == extra
    )
