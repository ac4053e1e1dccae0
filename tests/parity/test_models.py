"""Every reference case of every family: published weights in, published outputs and gradients out."""

import numpy as np
import pytest
import torch
from torch.func import functional_call

import visionssm
import visionssm_kernels
from tests import tolerances
from tests.parity.cases import Case, load_cases
from tests.parity.families import FAMILIES, HERE, stored_part, tolerance, torch_weights
from tests.parity.fill import make_input
from visionssm.checkpoints import convert

BACKENDS = [name for name in visionssm_kernels.backends("cpu").available if name not in ("reference", "loop")]
LARGE = 25e6  # parameters or so from which a case is slow


def _cases() -> list:
    params = []
    for family in FAMILIES:
        for path in sorted((HERE / family).glob("*.json")):
            for case in load_cases(path):
                pixels = np.prod(case.spec["input"]["shape"][2:])
                slow = pixels > 128 * 128 or case.file.get("params", 0) > LARGE
                marks = [pytest.mark.slow] if slow else []
                params.append(pytest.param(case, id=f"{family}-{case.variant}-{case.name}", marks=marks))
    return params


def _build(case: Case) -> torch.nn.Module:
    family = FAMILIES[case.family]
    return visionssm.create_model(family.model(case), **family.options(case)).eval()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", _cases())
def test_outputs(case: Case, backend: str) -> None:
    family = FAMILIES[case.family]
    model = visionssm.load_official(_build(case), case.weights())
    with torch.no_grad(), visionssm_kernels.use_backend(backend):
        outputs = family.outputs(model, torch.from_numpy(case.input()), case)
    missing = set(case.expected) - set(outputs)
    assert not missing, f"outputs of the case that nothing compares: {missing}"
    for name, wanted in case.expected.items():
        got = stored_part(case, name, outputs[name]).numpy()
        assert got.shape == wanted.shape, name
        if name.startswith(family.absolute):
            assert np.abs(got - wanted).max() <= tolerance(case), name
        else:
            bound = getattr(tolerances, family.features)
            assert np.abs(got - wanted).max() <= bound * np.abs(wanted).max(), name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", [p for p in _cases() if p.values[0].grads])
def test_gradients(case: Case, backend: str) -> None:
    """The conversion is differentiable, so gradients are compared under the published names."""
    model = _build(case)
    FAMILIES[case.family].before_gradients(model)
    statistics = ("running_mean", "running_var")
    published = {n: value.requires_grad_(not n.endswith(statistics)) for n, value in torch_weights(case).items()}
    with visionssm_kernels.use_backend(backend):
        outputs = functional_call(model, convert(published, model), torch.from_numpy(case.input()))
        probe = torch.from_numpy(make_input(list(outputs.shape), 5))
        (outputs * probe).sum().backward()
    assert set(case.grads) <= set(published)
    for name, wanted in case.grads.items():
        gradient = published[name].grad
        assert gradient is not None, f"no gradient reaches {name}"
        bound = tolerances.PUBLISHED_GRADIENTS * max(wanted["norm"], 1e-6)
        # recorded norms were summed in float32 or in float64, which for millions of squares differ by more than the bound
        norms = gradient.norm().item(), gradient.double().norm().item()
        assert min(abs(norm - wanted["norm"]) for norm in norms) <= bound, name
        head = gradient.flatten()[: len(wanted["head"])].numpy()
        assert np.abs(head - np.asarray(wanted["head"])).max() <= bound, name
