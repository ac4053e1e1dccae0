"""What is MambaIRv2's own: routing and its chance, the sort, the prompts, the windows."""

import pytest
import torch
import torch.nn.functional as F

import visionssm
from tests.parity.cases import load_cases
from tests.parity.families import HERE, torch_weights
from tests.tolerances import TOLERANCES
from visionssm.checkpoints import CheckpointError
from visionssm.mixers import AttentiveScan
from visionssm.models.mambairv2 import WindowAttention

CLOSE = TOLERANCES[torch.float32]


def nano(**options: object) -> torch.nn.Module:
    """With weights that make the routes matter."""
    torch.manual_seed(0)
    model = visionssm.create_model("mambairv2_nano_x2", **options)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, AttentiveScan):
                for parameter in (
                    module.prompt,
                    module.prompt_basis,
                    module.x_proj,
                    module.router.fc2.weight,
                ):
                    parameter.copy_(torch.randn_like(parameter))
    return model.eval()


def slow_attentive_scan(mixer: AttentiveScan, x: torch.Tensor, stable: bool) -> torch.Tensor:
    """The published steps: sort and gather, scan the sequence, gather back; the prompts stay in raster order."""
    tokens = x.flatten(1, 2)
    category = mixer.router(tokens, None)[1]
    prompt = (mixer.prompt @ mixer.prompt_basis)[category]
    index = category.sort(dim=-1, stable=stable)[1].unsqueeze(-1)
    h = mixer.in_proj(x).permute(0, 3, 1, 2)
    h = (h * mixer.conv(h).sigmoid()).flatten(2).transpose(1, 2)
    u = h.gather(1, index.expand_as(h))
    dt, B, C = (u @ mixer.x_proj[0].T).split(mixer.dims, -1)
    dt = F.softplus(dt @ mixer.dt_proj[0].T + mixer.dt_bias[0])
    C = C + prompt
    state, outputs = torch.zeros(len(u), u.shape[-1], B.shape[-1]), []
    for t in range(u.shape[1]):
        state = torch.exp(dt[:, t, :, None] * -mixer.A_log[0].exp()) * state + (dt * u)[:, t, :, None] * B[:, t, None]
        outputs.append((state * C[:, t, None]).sum(-1) + mixer.D[0] * u[:, t])
    y = mixer.out_proj(mixer.out_norm(torch.stack(outputs, 1)))
    return torch.empty_like(y).scatter_(1, index.expand_as(y), y).view_as(x)


@pytest.mark.parametrize("sort", ["published", "stable"])
@pytest.mark.parametrize("grad", [False, True])
def test_attentive_scan_against_the_published_steps(sort: str, grad: bool) -> None:
    mixer = AttentiveScan(12, d_inner=24, d_state=4, dt_rank=2, categories=8, rank=4, sort=sort)
    x = torch.randn(2, 5, 7, 12)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
        wanted = slow_attentive_scan(mixer, x, stable=sort == "stable")
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(mixer(x), wanted, **CLOSE)


def slow_window_attention(module: WindowAttention, x: torch.Tensor) -> torch.Tensor:
    """Swin's: regions of the rolled image are numbered, and positions of different regions do not see each other."""
    w, s = module.window, module.shift
    qkv = module.qkv(x).roll((-s, -s), (1, 2))
    region = torch.zeros(x.shape[1:3])
    if s:
        for i, rows in enumerate((slice(0, -w), slice(-w, -s), slice(-s, None))):
            for j, columns in enumerate((slice(0, -w), slice(-w, -s), slice(-s, None))):
                region[rows, columns] = 3 * i + j
    out = torch.zeros_like(x)
    for i in range(0, x.shape[1], w):
        for j in range(0, x.shape[2], w):
            part = qkv[:, i : i + w, j : j + w].flatten(1, 2).unflatten(-1, (3, module.heads, -1))
            q, k, v = part.permute(2, 0, 3, 1, 4)
            number = region[i : i + w, j : j + w].flatten()
            scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5 + module.bias.get_bias()
            scores = scores - 100.0 * (number[:, None] != number)
            out[:, i : i + w, j : j + w] = (scores.softmax(-1) @ v).transpose(1, 2).reshape(len(x), w, w, -1)
    return module.proj(out).roll((s, s), (1, 2))


@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("size", [(4, 4), (4, 8), (12, 8)])
def test_window_attention_against_regions(shift: int, size: tuple[int, int]) -> None:
    module = WindowAttention(12, heads=3, window=4, shift=shift)
    x = torch.randn(2, *size, 12)
    with torch.no_grad():
        module.bias.relative_position_bias_table.copy_(torch.randn_like(module.bias.relative_position_bias_table))
        torch.testing.assert_close(module(x), slow_window_attention(module, x), **CLOSE)


def test_evaluation_is_deterministic_by_default() -> None:
    model, x = nano(), torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        first = model(x)
        state = torch.get_rng_state()
        assert torch.equal(model(x), first)
    assert torch.equal(torch.get_rng_state(), state)


def test_chance_comes_from_the_generator() -> None:
    model, x = nano(routing="gumbel"), torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        first, again, other = (model(x, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
        torch.manual_seed(1)
        assert torch.equal(model(x), first)  # torch's own generator gives the same numbers
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_training_draws() -> None:
    model, x = nano().train(), torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        first, other = (model(x, torch.Generator().manual_seed(seed)) for seed in (1, 2))
    assert not torch.equal(first, other)


def test_a_layer_that_is_run_again_takes_the_same_ways() -> None:
    model, x = nano().train(), torch.rand(1, 3, 16, 16)
    found = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(x, torch.Generator().manual_seed(1)).square().sum().backward()
        found.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)


def test_noise_is_gumbel() -> None:
    mixer = AttentiveScan(12, d_inner=24, d_state=4, dt_rank=2, categories=50, rank=4)
    noise = mixer.draw_noise(torch.rand(2, 30, 40, 12), torch.Generator().manual_seed(0))
    assert noise.shape == (2, 1200, 50)
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.02)
    assert noise.var().item() == pytest.approx(torch.pi**2 / 6, rel=0.02)


def test_every_parameter_learns() -> None:
    model = nano().train()
    model(torch.rand(1, 3, 16, 16)).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_half_precision_learns() -> None:
    model = nano().train().bfloat16()
    model(torch.randn(1, 3, 16, 16).bfloat16()).float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_stable_sort_is_another_function_on_cpus() -> None:
    x = torch.rand(1, 3, 40, 40)
    published, stable = nano(), nano(sort="stable")
    with torch.no_grad():
        assert not torch.allclose(published(x), stable(x), **CLOSE)


def test_the_table_of_positions_is_checked() -> None:
    case = load_cases(HERE / "mambairv2" / "light_x2.json")[0]
    model = visionssm.create_model("mambairv2_light_x2")
    index = model.groups[0].layers[0].attention.bias.relative_position_index.view(256, 256)
    weights = torch_weights(case)
    visionssm.load_official(model, {"params": {**weights, "relative_position_index_SA": index}})
    with pytest.raises(CheckpointError, match="relative_position_index_SA"):
        visionssm.load_official(model, {**weights, "relative_position_index_SA": index.T.contiguous()})
    with pytest.raises(CheckpointError, match=r"windows of \(16, 16\)"):
        visionssm.load_official(model, {**weights, "relative_position_index_SA": index[:64, :64]})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"routing": "random"}, "routing must be"),
        ({"sort": "fast"}, "sort must be"),
        ({"heads": 7}, "heads=7"),
    ],
)
def test_options_that_do_not_fit(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        visionssm.create_model("mambairv2_nano_x2", **options)


def test_initial_values() -> None:
    layer = visionssm.create_model("mambairv2_nano_x2").groups[0].layers[0]
    assert (layer.scale1 == 1e-4).all()
    assert (layer.scale2 == 1e-4).all()
    assert layer.mixer.prompt.abs().max().item() == pytest.approx(1 / 64, rel=0.05)
    assert layer.mixer.prompt_basis.abs().max().item() == pytest.approx(1 / 32, rel=0.05)
    assert layer.mixer.router.fc1.weight.std().item() == pytest.approx(0.02, rel=0.1)
