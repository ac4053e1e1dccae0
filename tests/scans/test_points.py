"""Orders of point clouds."""

import itertools
import json
from pathlib import Path

import pytest
import torch

from visionssm import scans

PATH = Path(__file__).parents[1] / "parity" / "scans" / "points.json"
CASES = json.loads(PATH.read_text())["cases"]
SNAKES = tuple("".join(letters) for letters in itertools.permutations("xyz"))


@pytest.mark.parametrize("order", scans.POINT_ORDERS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["label"])
def test_published(case: dict, order: str) -> None:
    cells = torch.tensor(case["points"])
    assert scans.point_order(cells, order, published=True).tolist() == case["orders"][order]
    if order in case["codes"] and order not in SNAKES:
        assert scans.point_codes(cells, order).tolist() == case["codes"][order]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["label"])
def test_intended(case: dict) -> None:
    cells = torch.tensor(case["points"])
    assert {order: scans.point_order(cells, order).tolist() for order in SNAKES} == case["intended"]


@pytest.mark.parametrize("order", ["z", "z-trans", "hilbert", "hilbert-trans"])
def test_curves_have_no_published_mistake(order: str) -> None:
    cells = torch.randint(0, 9, (50, 3))
    assert torch.equal(scans.point_codes(cells, order), scans.point_codes(cells, order, published=True))


@pytest.mark.parametrize("order", SNAKES)
def test_a_full_grid_is_walked_step_by_step(order: str) -> None:
    cells = torch.cartesian_prod(torch.arange(3), torch.arange(4), torch.arange(5))
    walked = cells[scans.point_order(cells, order)]
    assert walked.diff(dim=0).abs().sum(1).eq(1).all()
    assert walked[1].tolist() == [int(letter == order[0]) for letter in "xyz"]


@pytest.mark.parametrize("order", scans.POINT_ORDERS)
def test_a_single_point_and_flat_clouds(order: str) -> None:
    assert scans.point_order(torch.zeros(1, 3, dtype=torch.int64), order).tolist() == [0]
    line = torch.tensor([[0, 0, 2], [0, 0, 0], [0, 0, 1]])
    assert scans.point_order(line, order).tolist() == [1, 2, 0]


def test_point_grid() -> None:
    position = torch.tensor([[0.0, 0.05, -0.03], [0.019, 0.01, 0.01], [0.041, 0.03, 0.03]])
    assert scans.point_grid(position).tolist() == [[0, 2, 0], [0, 0, 2], [2, 1, 3]]
    assert scans.point_grid(position, cell=0.04).tolist() == [[0, 1, 0], [0, 0, 1], [1, 0, 1]]


def test_unknown_order() -> None:
    with pytest.raises(ValueError, match="unknown point order 'xy'; accepted: xyz"):
        scans.point_order(torch.zeros(1, 3, dtype=torch.int64), "xy")
