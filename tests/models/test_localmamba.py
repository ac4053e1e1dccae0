"""LocalVim and LocalVMamba beyond the reference cases: padded windows, un-scan, rotary positions, search, training rules."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import visionssm
import visionssm_kernels
from tests.parity.cases import load_cases
from tests.tolerances import TOLERANCES
from visionssm.checkpoints import CheckpointError, convert
from visionssm.layers import GridRope, rope_tables
from visionssm.mixers import GatedMerge, SearchMerge, SequenceScan
from visionssm.scans import create_scan, published_unscan, with_slots, with_token

PARITY = Path(__file__).parents[1] / "parity"
DIRECTIONS = ("h", "v_flip", "w2", "w2_flip", "w7", "w7_flip", "v")
SIZES = [(1, 1), (5, 9), (4, 6), (8, 3)]


def path_of(direction: str, height: int, width: int) -> list[int | None]:
    """The cells of a route by loops; None for padding."""
    if direction[0] == "h":
        path = [y * width + x for y in range(height) for x in range(width)]
    elif direction[0] == "v":
        path = [y * width + x for x in range(width) for y in range(height)]
    else:
        side = int(direction[1:].removesuffix("_flip"))
        path = [
            y * width + x if y < height and x < width else None
            for top in range(0, height, side)
            for left in range(0, width, side)
            for y in range(top, top + side)
            for x in range(left, left + side)
        ]
    return path[::-1] if direction.endswith("_flip") else path


def by_hand(mixer: SequenceScan, x_BLC: Tensor, size: tuple[int, int], token: bool) -> Tensor:
    """LocalVim's mixer as published: pad and re-order xz, convolve, scan, gate, put back, merge."""
    xz = mixer.in_proj(x_BLC)
    length, channels = x_BLC.shape[1], mixer.D.shape[1]
    rank, states = mixer.dims[0], mixer.dims[1]
    outputs = []
    for k, direction in enumerate(DIRECTIONS):
        steps = path_of(direction, *size)
        if token:
            middle = size[0] * size[1] // 2
            steps = [step if step is None or step < middle else step + 1 for step in steps]
            steps = [*steps[:middle], middle, *steps[middle:]]
        zeros = xz.new_zeros(xz.shape[0], xz.shape[2])
        x, z = torch.stack([zeros if p is None else xz[:, p] for p in steps], 1).chunk(2, -1)
        x = F.conv1d(x.mT, mixer.conv_weight[k][:, None], mixer.conv_bias[k], padding=3, groups=channels)
        u = F.silu(x[..., : len(steps)].mT)
        low, B, C = F.linear(u, mixer.x_proj[k]).split([rank, states, states], -1)
        dt = F.softplus(F.linear(low, mixer.dt_proj[k], mixer.dt_bias[k]))
        A = -torch.exp(mixer.A_log[k])
        h = xz.new_zeros(xz.shape[0], channels, states)
        y = []
        for t in range(len(steps)):
            h = torch.exp(dt[:, t, :, None] * A) * h + (dt[:, t] * u[:, t])[..., None] * B[:, t, None]
            y.append((h * C[:, t, None]).sum(-1) + mixer.D[k] * u[:, t])
        where = {p: t for t, p in enumerate(steps) if p is not None}
        gated = torch.stack(y, 1) * F.silu(z)
        outputs.append(torch.stack([gated[:, where[p]] for p in range(length)], 1))
    return mixer.out_proj(mixer.merge(torch.stack(outputs, 2)))


@pytest.mark.parametrize("token", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_padding_before_the_convolution(size: tuple[int, int], token: bool) -> None:
    scan = create_scan("window", directions=DIRECTIONS)
    order = with_slots(with_token(scan, mirrored=False) if token else scan)
    mixer = SequenceScan(8, scan=order, d_inner=16, d_state=3, dt_rank=2, merge=GatedMerge(16)).double()
    torch.nn.init.normal_(mixer.dt_bias)  # large steps, over which padding is felt
    length = size[0] * size[1] + token
    x = torch.randn(2, length, 8, dtype=torch.float64, requires_grad=True)
    probe = torch.randn(2, length, 8, dtype=torch.float64)
    tensors = {"x": x, **dict(mixer.named_parameters())}
    with visionssm_kernels.use_backend("chunked"):
        got = mixer(x, torch.empty(0, *size, 0))
        got_gradients = torch.autograd.grad((got * probe).sum(), list(tensors.values()))
    wanted = by_hand(mixer, x, size, token)
    torch.testing.assert_close(got, wanted, **TOLERANCES[torch.float64])
    wanted_gradients = torch.autograd.grad((wanted * probe).sum(), list(tensors.values()))
    for a, b in zip(got_gradients, wanted_gradients, strict=True):
        torch.testing.assert_close(a, b, **TOLERANCES[torch.float64])


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_slots_number_the_padding_that_matters(size: tuple[int, int]) -> None:
    scan = create_scan("window", directions=DIRECTIONS)
    order, cells = with_slots(scan), size[0] * size[1]
    assert order.positions(size) == order.length(size) == order.routes(size).shape[1]
    for direction, route in zip(DIRECTIONS, order.routes(size).tolist(), strict=True):
        steps = path_of(direction, *size)
        last = max(t for t, p in enumerate(steps) if p is not None)
        padded = [t for t in range(last) if steps[t] is None]
        assert [route[t] for t in padded] == list(range(cells, cells + len(padded)))
        assert [p for p in route if 0 <= p < cells] == [p for p in steps if p is not None]
        assert set(route[last + 1 :]) <= {-1}


def test_orders_that_need_no_slots_are_left_alone() -> None:
    for name in ("cross", "skip"):  # unpadded; padded, but every route reads only a part
        scan = create_scan(name)
        assert with_slots(scan) is scan


@pytest.mark.parametrize("name", ["local_vim_nano", "local_vmamba_nano"])
def test_published_unscan_differs_only_where_it_was_wrong(name: str) -> None:
    right = visionssm.create_model(name).eval()
    published = visionssm.create_model(name, unscan="published").eval()
    published.load_state_dict(right.state_dict())
    square, wide = torch.randn(1, 3, 64, 64), torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(published(square), right(square), rtol=0, atol=0)
        assert (published(wide) - right(wide)).abs().max() > 1e-4


@pytest.mark.parametrize("size", [(2, 3), (5, 4)], ids=str)
def test_published_unscan_reads_columns_as_rows(size: tuple[int, int]) -> None:
    """The published inverse of "v" reads the sequence of outputs as (H, W) and swaps the sides of that."""
    scan = create_scan("window", directions=("v", "h"))
    unscan = published_unscan(scan)
    assert unscan is not None
    route = scan.routes(size)[0]
    wrong = route.reshape(size).T.flatten()
    assert torch.equal(unscan.routes(size), torch.stack([wrong, scan.routes(size)[1]]))
    assert published_unscan(create_scan("cross")) is None


def test_rope_turns_each_pair_by_row_and_column() -> None:
    cos, sin = rope_tables((3, 5), 8)
    rope = GridRope((3, 5), 8)
    tokens, patches = torch.randn(2, 15, 8), torch.empty(2, 3, 5, 8)
    turned = rope(tokens, patches)
    pairs = torch.view_as_complex(tokens.unflatten(-1, (4, 2)))
    for y in range(3):
        for x in range(5):
            angles = torch.tensor([y / 3 * 14, y / 3 * 14 / 100, x / 5 * 14, x / 5 * 14 / 100])
            wanted = pairs[:, y * 5 + x] * torch.polar(torch.ones(4), angles)
            got = torch.view_as_complex(turned[:, y * 5 + x].unflatten(-1, (4, 2)).contiguous())
            torch.testing.assert_close(got, wanted, **TOLERANCES[torch.float32])
    assert cos.shape == sin.shape == (15, 8)
    with pytest.raises(ValueError, match="multiple of 4"):
        rope_tables((2, 2), 6)


def test_fixed_tables_of_a_checkpoint_are_checked() -> None:
    case = load_cases(PARITY / "local_vim" / "local_vim_tiny.json")[0]
    model = visionssm.create_model("local_vim_tiny")
    cos, sin = rope_tables((14, 14), 192)
    state = case.weights()
    visionssm.load_official(model, state | {"rope.freqs_cos": cos.numpy(), "rope.freqs_sin": sin.numpy()})
    with pytest.raises(CheckpointError, match=r"rope\.freqs_sin"):
        visionssm.load_official(model, state | {"rope.freqs_cos": cos.numpy(), "rope.freqs_sin": cos.numpy()})
    with pytest.raises(CheckpointError, match=r"rope\.freqs_cos"):
        visionssm.load_official(model, state | {"rope.freqs_cos": cos[:, :96].numpy()})
    without = visionssm.create_model("local_vim_tiny", rope=False)
    with pytest.raises(CheckpointError, match=r"unexpected: rope\.freqs_cos"):
        visionssm.load_official(without, state | {"rope.freqs_cos": cos.numpy()})


def test_another_input_size_is_as_if_built_for_it() -> None:
    resized, fresh = (visionssm.create_model("local_vim_nano", img_size=size) for size in (64, (40, 72)))
    resized.set_input_size((40, 72))
    fresh.load_state_dict(resized.state_dict())
    x = torch.randn(1, 3, 40, 72)
    with torch.no_grad():
        torch.testing.assert_close(resized.eval()(x), fresh.eval()(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["local_vim_small", "local_vim_small_searched", "local_vmamba_tiny"])
def test_weights_that_were_never_released_are_refused(name: str) -> None:
    with pytest.raises(RuntimeError, match=f"No pretrained weights exist for {name}"):
        visionssm.create_model(name, pretrained=True, dim=16)


@pytest.mark.parametrize(
    ("file", "name"),
    [("local_vim/local_vim_tiny", "local_vim_tiny"), ("local_vmamba/tiny", "local_vmamba_tiny")],
)
def test_weight_decay_is_that_of_the_published_training(file: str, name: str) -> None:
    """There it leaves out vectors, biases and position tables: tensors marked so arrive in ours that are left out."""
    model = visionssm.create_model(name)
    published = {
        key: torch.full(shape, float(len(shape) > 1 and not key.endswith(".bias") and key != "pos_embed"))
        for key, shape, kind in load_cases(PARITY / f"{file}.json")[0].state
        if kind == "float32"
    }
    left_out = model.no_weight_decay()
    for key, decayed in convert(published, model).items():
        ours = decayed.dim() > 1 and not key.endswith(".bias") and key not in left_out
        assert torch.all(decayed == float(ours)), key


def test_local_vim_starts_as_published() -> None:
    model = visionssm.create_model("local_vim_nano")
    for block in model.blocks:
        mixer = block.mixer
        assert not mixer.dt_bias.any()  # Mamba's step sizes are drawn over
        for drawn in (mixer.dt_proj, mixer.x_proj, mixer.in_proj.weight, mixer.merge.gate.reduce.weight):
            assert 0.015 < drawn.std() < 0.025
        limit = (mixer.out_proj.in_features * len(model.blocks)) ** -0.5
        assert 0.95 * limit < mixer.out_proj.weight.abs().max() <= limit
        assert torch.all(mixer.D == 1)
        torch.testing.assert_close(mixer.A_log[2, 5].exp(), torch.arange(1.0, 17.0))


def test_search_merge_weighs_normed_routes() -> None:
    merge = SearchMerge(16, create_scan("cross"))
    torch.nn.init.normal_(merge.weights)
    y = torch.randn(2, 6, 4, 16)
    shares = merge.weights.softmax(0)
    gated = y * merge.gate(y)[:, None]
    wanted = sum(shares[k] * F.layer_norm(gated[:, :, k], (16,)) for k in range(4))
    torch.testing.assert_close(merge(y), wanted, **TOLERANCES[torch.float32])


def test_gate_is_per_image_route_and_channel() -> None:
    gate = GatedMerge(16).gate
    y = torch.randn(2, 6, 3, 16)
    for k in range(3):
        alone = gate.norm(y[:, :, k]).mean(1)
        factor = torch.sigmoid(gate.select(F.gelu(gate.reduce(alone))))
        torch.testing.assert_close(gate(y)[:, k], factor, **TOLERANCES[torch.float32])


@pytest.mark.parametrize("name", ["local_vim_nano", "local_vmamba_nano"])
@pytest.mark.parametrize("option", ["merge", "unscan"])
def test_unknown_choices_are_named(name: str, option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} must be .*'nonsense'"):
        visionssm.create_model(name, **{option: "nonsense"})


def test_class_token_and_rope_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="class_token=False"):
        visionssm.create_model("local_vim_nano", class_token=True)


@pytest.mark.parametrize(
    "options",
    [{"scan": "hilbert"}, {"scan": "skip"}, {"scan": "window"}, {"class_token": True, "rope": False}],
    ids=str,
)
def test_local_vim_takes_other_orders_and_sizes(options: dict) -> None:
    model = visionssm.create_model("local_vim_nano", depth=2, **({"scan": "window"} | options)).eval()
    with torch.no_grad():
        assert model(torch.randn(2, 3, 43, 60)).isfinite().all()


@pytest.mark.parametrize("scan", ["hilbert", "skip", "group", "window"])
def test_local_vmamba_takes_other_orders_and_sizes(scan: str) -> None:
    model = visionssm.create_model("local_vmamba_nano", depths=(1, 1), scan=scan).eval()
    with torch.no_grad():
        assert model(torch.randn(2, 3, 43, 60)).isfinite().all()


def test_a_supernet_checkpoint_has_a_place_for_its_weights() -> None:
    model = visionssm.create_model("local_vmamba_nano", depths=(1,), scan="window", merge="search")
    weights = torch.randn(8, 1, 1, 1)
    ours = convert({"module.layers.0.blocks.0.op.multi_scan.weights": weights}, model)
    torch.testing.assert_close(ours["stages.0.blocks.0.mixer.merge.weights"], weights.flatten())
