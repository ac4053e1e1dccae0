"""Which routes each layer should scan along: LocalMamba's search, on any recipe for classification.

Paper: LocalMamba, arXiv 2403.09338, section 4.3; hunto/LocalMamba@75e5d1f. A supernet scans along every route in every
layer and mixes them by softmax weights that are trained with everything else; the heaviest are kept.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from visionssm.data.errors import UserError
from visionssm.engine.checkpoint import write_atomic
from visionssm.engine.classification import ClassificationConfig, train_classifier
from visionssm.engine.models import build_classifier, load_classifier
from visionssm.mixers import SearchMerge
from visionssm.scans.window import Window

__all__ = ["RESULT", "LayerChoice", "choose_routes", "search_scans"]

RESULT = "scan.json"


@dataclass(frozen=True, kw_only=True)
class LayerChoice:
    """What the search found for one layer.

    Args:
        layer: name of the mixer.
        weights: share of each route in the mixture, by direction (or number), in the order of the supernet; they add up to 1.
        kept: those chosen, in the order of the supernet.
        scan: the order made of them, with its options, as `scan` of the model takes it.
    """

    layer: str
    weights: dict[str, float]
    kept: list[str]
    scan: dict[str, Any]


def choose_routes(supernet: nn.Module, *, keep: int = 4) -> list[LayerChoice]:
    """The heaviest routes of every layer of a supernet, first layer first.

    Args:
        supernet: a local model built with merge="search".
        keep: routes per layer.

    Raises:
        UserError: the model is no supernet, or a layer has fewer routes.
    """
    merges = {name: module for name, module in supernet.named_modules() if isinstance(module, SearchMerge)}
    if not merges:
        raise UserError(f"{type(supernet).__name__} mixes no routes: it must be built with merge='search'")
    return [_choose(name.removesuffix(".merge"), merge, keep) for name, merge in merges.items()]


def _choose(layer: str, merge: SearchMerge, keep: int) -> LayerChoice:
    scan = merge.scan
    if not 1 <= keep <= scan.num_routes:
        raise UserError(f"keep={keep} must be 1 to {scan.num_routes}, the number of routes of {layer}")
    shares = merge.weights.detach().float().softmax(0)
    which = sorted(shares.topk(keep).indices.tolist())
    if isinstance(scan, Window):
        names = list(scan.directions)
        options: dict[str, Any] = {"name": "window", "directions": [names[index] for index in which]}
    else:
        names = [str(index) for index in range(scan.num_routes)]
        options = {"name": "select", "scan": scan.key, "which": which}
    weights = dict(zip(names, shares.tolist(), strict=True))
    return LayerChoice(layer=layer, weights=weights, kept=[names[index] for index in which], scan=options)


def search_scans(
    config: ClassificationConfig, *, keep: int = 4, cpu: bool = False, resume: str = "never"
) -> dict[str, Any]:
    """Trains a supernet by a recipe and writes `scan.json` beside its run.

    Args:
        config: a recipe for a local model; its scan and merge are replaced by the supernet's.
        keep: routes per layer.
        cpu: stay on the CPU even where there is a GPU.
        resume: as in `train_classifier`.

    Returns:
        What scan.json holds: "model", "scan" (what `create_model(model, scan=...)` takes), "layers" (weights) and the supernet's
        scores. On all processes but the main one: an empty dict.

    Raises:
        UserError: the model has no such search, and what `train_classifier` raises.
    """
    kwargs = {"scan": "window", **config.model.kwargs, "merge": "search"}
    supernet = replace(config, model=replace(config.model, kwargs=kwargs))
    # what does not fit shows before the training
    choose_routes(build_classifier(supernet.model, num_classes=2, image_size=config.data.image_size), keep=keep)
    metrics = train_classifier(supernet, cpu=cpu, resume=resume)
    if not metrics:
        return {}
    folder = Path(config.run.output)
    choices = choose_routes(load_classifier(str(folder)), keep=keep)
    result = {
        "model": config.model.name,
        "scan": [choice.scan for choice in choices],
        "layers": [asdict(choice) for choice in choices],
        "supernet": {"evaluated_on": metrics["evaluated_on"], **metrics["scores"]},
    }
    write_atomic(folder / RESULT, json.dumps(result, indent=2).encode())
    return result
