"""Orders that depend on the data or on chance: per-image tables for `routed_scan`, made anew at every step.

Legend: B batch, L positions, G groups, M length of a learned vector.
"""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

__all__ = ["adaptive_scores", "category_order", "draw_shuffle", "score_order", "shuffle_probability"]


def category_order(category_BL: Tensor) -> Tensor:
    """Return each image's positions sorted by category, raster order inside a category.

    Source: MambaIRv2's semantic neighbours (arXiv 2411.15269, csguoh/MambaIR@33d7b34), whose sort is not stable.

    Args:
        category_BL: integer (B, L).
    Returns:
        int32 (B, 1, L), one route.
    """
    return category_BL.argsort(dim=-1, stable=True).to(torch.int32)[:, None]


def adaptive_scores(vector_GM: Tensor, individual_BL: Tensor) -> Tensor:
    """Return the scores by which ASM-UNet sorts (arXiv 2508.07237, YqunYang/ASM-UNet@4f5aa5d).

    Args:
        vector_GM: learned vectors, one per group, stretched linearly to L (first to first, last to last).
        individual_BL: scores from the image, in 0..1.
    Returns:
        (B, G, L): sigmoid of the stretched vector plus the individual score, differentiable in both.
    """
    stretched = interpolate(vector_GM[None], size=individual_BL.shape[-1], mode="linear", align_corners=True)
    return stretched.sigmoid() + individual_BL[:, None]


def score_order(score_BGL: Tensor) -> Tensor:
    """Return the positions by ascending score, equal scores in raster order; no gradient passes through it.

    Args:
        score_BGL: (B, G, L).
    Returns:
        int32 (B, G, L), one route per group.
    """
    return score_BGL.detach().argsort(dim=-1, stable=True).to(torch.int32)


def shuffle_probability(index: int, depth: int, rate: float) -> float:
    """Return the chance with which layer `index` of `depth` shuffles in training: from 0 in the first to `rate` in the last.

    Source: ShuffleMamba (arXiv 2408.17081, huangzizheng01/ShuffleMamba@0df405f).

    Raises:
        ValueError: `index` is not in 0..depth - 1, or `rate` not in 0..1.
    """
    if not 0 <= index < depth:
        raise ValueError(f"layer index must be in 0..depth-1, got index={index}, depth={depth}")
    if not 0 <= rate <= 1:
        raise ValueError(f"rate must be in 0..1, got {rate}")
    return rate * index / max(depth - 1, 1)


def draw_shuffle(
    length: int, probability: float, *, generator: torch.Generator, device: torch.device | str = "cpu"
) -> Tensor | None:
    """Draw whether to shuffle a layer's tokens, and how: one draw and one permutation for the whole batch.

    Call it in training only; undo the permutation after the layer.

    Args:
        length: number of tokens, class token included.
        probability: from `shuffle_probability`.
        generator: CPU generator, the only source of chance, so that runs repeat and resume.
        device: where the permutation shall lie.
    Returns:
        int64 (length,), or None: leave the tokens as they are.
    """
    if torch.rand((), generator=generator).item() >= probability:
        return None
    return torch.randperm(length, generator=generator).to(device)
