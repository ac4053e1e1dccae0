"""Weights that their authors put where a program cannot fetch them from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from timm.models._builder import resolve_pretrained_cfg

__all__ = ["require_file"]


def require_file(variant: str, places: Mapping[str, str], options: Mapping[str, Any]) -> None:
    """Says where a person finds the weights of a variant, unless a file of them is given.

    Args:
        variant: whose pretrained weights are wanted.
        places: variant -> address of a page; others may be fetched.
        options: what the model is built with; `pretrained_cfg` and `pretrained_cfg_overlay` may name a file.

    Raises:
        RuntimeError: the weights must be downloaded by hand.
    """
    if variant not in places:
        return
    cfg = resolve_pretrained_cfg(variant, options.get("pretrained_cfg"), options.get("pretrained_cfg_overlay"))
    if not (cfg.has_weights or cfg.state_dict):
        raise RuntimeError(
            f"no pretrained weights exist under a direct address for {variant}: download the file from "
            f"{places[variant]} and pass it to visionssm.load_official"
        )
