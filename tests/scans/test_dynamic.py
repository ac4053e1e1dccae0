"""Orders that depend on data or chance, and the local backward scan, against the published values."""

import json
from pathlib import Path

import pytest
import torch

from tests.tolerances import TOLERANCES
from visionssm import scans

FOLDER = Path(__file__).parents[1] / "parity" / "scans"
CASES = {
    name: json.loads((FOLDER / f"{name}.json").read_text())["cases"]
    for name in ("adaptive", "local_bidirectional", "semantic", "shuffle")
}


@pytest.mark.parametrize("case", CASES["semantic"], ids=lambda case: str(case["size"]))
def test_semantic(case: dict) -> None:
    category = torch.tensor(case["categories"])
    order = scans.category_order(torch.stack([category, category.flip(0)]))
    assert (order.dtype, order.shape) == (torch.int32, (2, 1, len(category)))
    assert order[0].tolist() == case["routes"]
    assert scans.invert(order)[0].tolist() == case["inverse"]
    # The other image of the batch is sorted for itself.
    flipped = category.flip(0).tolist()
    assert order[1, 0].tolist() == sorted(range(len(flipped)), key=lambda cell: flipped[cell])


@pytest.mark.parametrize("case", CASES["adaptive"], ids=lambda case: str(case["size"]))
def test_adaptive(case: dict) -> None:
    vectors = torch.tensor(case["group_embeddings"], dtype=torch.float64, requires_grad=True)
    individual = torch.tensor(case["individual"], dtype=torch.float64, requires_grad=True)
    scores = scans.adaptive_scores(vectors, individual)
    groups = torch.tensor(case["group_scores"], dtype=torch.float64)
    torch.testing.assert_close(scores, groups + individual[:, None], **TOLERANCES[torch.float64])
    order = scans.score_order(scores)
    assert order.dtype == torch.int32
    assert not order.requires_grad
    assert order.transpose(0, 1).tolist() == case["routes"]  # the table has groups first
    scores.square().sum().backward()
    assert vectors.grad.ne(0).any()
    torch.testing.assert_close(individual.grad, 2 * scores.detach().sum(1), **TOLERANCES[torch.float64])


def test_equal_scores_stay_in_raster_order() -> None:
    score = torch.zeros(1, 1, 1000)
    assert torch.equal(scans.score_order(score)[0, 0], torch.arange(1000, dtype=torch.int32))


@pytest.mark.parametrize("case", CASES["shuffle"], ids=lambda case: str(case["options"]))
def test_shuffle_probability(case: dict) -> None:
    rate, depth = case["options"]["rate"], case["options"]["depth"]
    found = torch.tensor([scans.shuffle_probability(index, depth, rate) for index in range(depth)])
    torch.testing.assert_close(found, torch.tensor(case["probabilities"]), **TOLERANCES[torch.float32])


def test_shuffle_refuses() -> None:
    assert scans.shuffle_probability(0, 1, 0.5) == 0
    with pytest.raises(ValueError, match="layer index"):
        scans.shuffle_probability(3, 3, 0.5)
    with pytest.raises(ValueError, match="rate"):
        scans.shuffle_probability(0, 3, 1.5)


def test_shuffle_draws_from_its_generator_alone() -> None:
    def draws(seed: int) -> list[list[int] | None]:
        generator = torch.Generator().manual_seed(seed)
        found = [scans.draw_shuffle(7, 0.25, generator=generator) for _ in range(400)]
        return [None if order is None else order.tolist() for order in found]

    first = draws(0)
    torch.manual_seed(9)
    assert draws(0) == first != draws(1)
    shuffled = [order for order in first if order is not None]
    assert 60 <= len(shuffled) <= 140  # 100 expected, deviation 9
    assert all(sorted(order) == list(range(7)) for order in shuffled)
    generator = torch.Generator()
    assert scans.draw_shuffle(7, 0.0, generator=generator) is None
    assert scans.draw_shuffle(7, 1.0, generator=generator) is not None


@pytest.mark.parametrize("case", CASES["local_bidirectional"], ids=lambda case: str(case["options"]))
def test_local_bidirectional(case: dict) -> None:
    """Both routes scanned with the restarts of `segments`, own inputs counted once, give the published outputs."""
    a, b, c = (torch.tensor(case[key], dtype=torch.float64) for key in "abc")
    scan = scans.create_scan("local_bidirectional", segment=case["options"]["segment"])
    size = (len(a),)
    states = torch.zeros(2, *a.shape, dtype=torch.float64)
    for route, piece, out in zip(scan.routes(size).tolist(), scan.segments(size), states, strict=True):
        state = torch.zeros_like(a[0])
        for step, cell in enumerate(route):
            state = (0 if step % piece == 0 else a[cell] * state) + b[cell]
            out[cell] = state
    backward = states[1] - b
    torch.testing.assert_close(
        states[0], torch.tensor(case["forward"], dtype=torch.float64), **TOLERANCES[torch.float64]
    )
    wanted = torch.tensor(case["backward_exclusive"], dtype=torch.float64)
    torch.testing.assert_close(backward, wanted, **TOLERANCES[torch.float64])
    y = (c * (states[0] + backward)).sum(1)
    torch.testing.assert_close(y, torch.tensor(case["y"], dtype=torch.float64), **TOLERANCES[torch.float64])
