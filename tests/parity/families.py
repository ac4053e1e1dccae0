"""How each family's reference cases are run: which model, which options, which outputs.

A family adds one `Family` here; `test_models.py` does the rest for every case file in its folder.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import visionssm
from tests.parity.cases import Case

HERE = Path(__file__).parent


def logits(model: nn.Module, x: Tensor, case: Case) -> dict[str, Tensor]:
    return {"logits": model(x)}


def hierarchical(model: nn.Module, x: Tensor, case: Case) -> dict[str, Tensor]:
    """Logits, and the stages' maps where the case has them: NCHW, before downsampling."""
    outputs = logits(model, x, case)
    if "feat0" in case.expected:
        maps = model.forward_intermediates(x, intermediates_only=True)
        outputs |= {f"feat{i}": feature for i, feature in enumerate(maps)}
    return outputs


def vim_outputs(model: nn.Module, x: Tensor, case: Case) -> dict[str, Tensor]:
    """Logits, tokens after the norm, and what three blocks add to and find in the residual stream."""
    kept: dict[str, Tensor] = {}
    depth = len(model.blocks)
    hooks = []
    for name, index in (("first", 0), ("mid", depth // 2), ("last", depth - 1)):
        block = model.blocks[index]
        hooks.append(block.norm.register_forward_pre_hook(lambda _, a, n=name: kept.update({f"block_{n}_residual": a[0]})))
        hooks.append(block.mixer.register_forward_hook(lambda _, a, out, n=name: kept.update({f"block_{n}_hidden": out})))
    tokens = model.forward_features(x)
    for hook in hooks:
        hook.remove()
    return {"logits": model.forward_head(tokens), "tokens": tokens, **kept}


def local_vmamba(model: nn.Module, x: Tensor, case: Case) -> dict[str, Tensor]:
    """What a hierarchical model gives; at H != W with the published un-scan, and also with the right one."""
    if "logits_vfix" not in case.expected:
        return hierarchical(model, x, case)
    published = visionssm.create_model(FAMILIES[case.family].model(case), unscan="published").eval()
    published.load_state_dict(model.state_dict())
    return hierarchical(published, x, case) | {"logits_vfix": model(x)}


def local_vim_options(case: Case) -> dict[str, Any]:
    """The size, and the published un-scan at H != W: nothing else is recorded there."""
    height, width = case.spec["input"]["shape"][2:]
    return same_size(case) | ({} if height == width else {"unscan": "published"})


def plain_mamba_outputs(model: nn.Module, x: Tensor, case: Case) -> dict[str, Tensor]:
    """Logits, tokens after the norm, and what three blocks return."""
    depth = len(model.blocks)
    names = {0: "block_first", depth // 2: "block_mid", depth - 1: "block_last"}
    tokens, features = model.forward_intermediates(x, indices=list(names), output_fmt="NLC")
    return {"logits": model.forward_head(tokens), "tokens": tokens, **dict(zip(names.values(), features, strict=True))}


@dataclass(frozen=True)
class Family:
    """One folder of cases.

    Args:
        model: registered name for a case.
        options: what `create_model` is given for a case.
        outputs: every checked output of a model for an input; those that a case does not hold are ignored.
        tolerance: largest absolute difference of logits or images.
    """

    model: Callable[[Case], str]
    options: Callable[[Case], dict[str, Any]] = field(default=lambda case: {})
    outputs: Callable[[nn.Module, Tensor, Case], dict[str, Tensor]] = logits
    tolerance: str = "PUBLISHED_LOGITS"


def same_size(case: Case) -> dict[str, Any]:
    """The image size that a case's position embedding is made for."""
    size = case.spec.get("constructor_override", {}).get("img_size")
    return {} if size is None else {"img_size": tuple(size) if isinstance(size, list) else size}


FAMILIES = {
    "vmamba": Family(lambda case: f"vmamba_{case.variant}", outputs=hierarchical),
    "local_vim": Family(lambda case: case.variant, options=local_vim_options, outputs=vim_outputs),
    "local_vmamba": Family(lambda case: f"local_vmamba_{case.variant}", outputs=local_vmamba),
    "plain_mamba": Family(lambda case: case.variant, outputs=plain_mamba_outputs),
    "spatial_mamba": Family(lambda case: f"spatial_mamba_{case.variant}", outputs=hierarchical),
    "vim": Family(lambda case: case.variant, options=same_size, outputs=vim_outputs),
}


def stored_part(case: Case, name: str, output: Tensor) -> Tensor:
    """The slice of a full output that the case kept: "[0:1, :8] ..." as text."""
    text = case.stored.get(name)
    if text is None:
        return output
    index = []
    for part in text[1 : text.index("]")].split(","):
        numbers = [int(n) if n.strip() else None for n in part.split(":")]
        index.append(numbers[0] if len(numbers) == 1 else slice(*numbers))
    return output[tuple(index)]


def torch_weights(case: Case) -> dict[str, Tensor]:
    return {name: torch.from_numpy(value) for name, value in case.weights().items()}
