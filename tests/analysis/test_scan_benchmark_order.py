"""A new order is one small class in one file: the example of 20 lines is a full member as soon as it is imported."""

import importlib
import sys
from pathlib import Path

import pytest
import timm
import torch

from tests.scans.test_properties import EDGES, check
from visionssm.scans import create_scan, list_scans, registry

EXAMPLE = Path(__file__).with_name("example_order.py")


def test_example_is_short() -> None:
    assert len(EXAMPLE.read_text().splitlines()) <= 20


def test_example_is_registered_correct_and_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_SCANS", dict(registry._SCANS))
    monkeypatch.syspath_prepend(str(EXAMPLE.parent))
    importlib.import_module("example_order")
    monkeypatch.delitem(sys.modules, "example_order")
    assert "outside_in" in list_scans(2)
    scan = create_scan("outside_in")
    for size in (*EDGES[2], (9, 4)):
        check(scan, size)
    assert scan.routes((3, 2))[0].tolist() == [0, 1, 4, 5, 2, 3]
    torch.manual_seed(0)
    model = timm.create_model("vmamba_nano", scan="outside_in", dim=16, depths=(1, 1), num_classes=2)
    loss = torch.nn.functional.cross_entropy(model(torch.randn(2, 3, 32, 32)), torch.tensor([0, 1]))
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
