"""Routes that a mixer makes from what an image shows; the orders themselves are in `visionssm.scans.content`.

Legend: B batch, L positions, D channels, N state, K routes, T categories or clusters.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionssm.layers import Linear
from visionssm.scans import Chain, ScanOrder, WithToken, adaptive_scores, category_order, scan_from_key, score_order
from visionssm.scans.content import Adaptive, Cluster, Semantic
from visionssm.scans.select import Select

from .router import CategoryRouter

__all__ = ["AdaptiveRoutes", "ClusterRoutes", "SemanticRoutes", "content_routes"]


class SemanticRoutes(nn.Module):
    """One route, sorted by the category that a small network gives every position; categories have prompts.

    In training, categories are drawn in proportion to their probabilities (Gumbel noise); otherwise the most probable is taken.
    Differs from MambaIRv2, which reads prompts in raster order: here each position reads the prompt of its own category.

    Args:
        dim: D.
        d_state: N.
        scan: the order.
    """

    def __init__(self, dim: int, d_state: int, scan: Semantic) -> None:
        super().__init__()
        self.shared = True
        self.categories = scan.categories
        self.router = CategoryRouter(dim, scan.categories)
        self.prompt = nn.Parameter(torch.empty(scan.categories, scan.rank))
        self.prompt_basis = nn.Parameter(torch.empty(scan.rank, d_state))
        for table in (self.prompt, self.prompt_basis):
            nn.init.uniform_(table, -1 / table.shape[0], 1 / table.shape[0])

    def forward(self, x_BLD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, L, D) -> input (B, L, 1, D), order int32 (B, 1, L), prompts (B, L, N)."""
        shape = (x_BLD.shape[0], x_BLD.shape[1], self.categories)
        noise = -torch.empty(shape, device=x_BLD.device).exponential_().log() if self.training else None
        soft_BLT, category_BL = self.router(x_BLD, noise)
        hard_BLT = F.one_hot(category_BL, self.categories).to(soft_BLT.dtype)
        weights_BLT = hard_BLT - soft_BLT.detach() + soft_BLT  # the choice going forward, the probabilities going back
        prompt_BLN = weights_BLT @ (self.prompt @ self.prompt_basis).to(soft_BLT.dtype)
        return x_BLD.unsqueeze(2), category_order(category_BL), prompt_BLN


class ClusterRoutes(nn.Module):
    """One route, sorted by the nearest centre; every centre has a prompt.

    Args:
        dim: D.
        d_state: N.
        scan: the order.
    """

    def __init__(self, dim: int, d_state: int, scan: Cluster) -> None:
        super().__init__()
        self.shared = True
        self.iterations, self.decay = scan.iterations, scan.decay
        self.embedding = Linear(dim, d_state)
        self.centres = nn.Buffer(torch.randn(scan.clusters, dim))
        self.steps = nn.Buffer(torch.zeros((), dtype=torch.int64))

    def forward(self, x_BLD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, L, D) -> input (B, L, 1, D), order int32 (B, 1, L), prompts (B, L, N)."""
        centres_TD = self._follow(x_BLD.detach()) if self.training else self.centres
        direction_TD = F.normalize(centres_TD, dim=-1).to(x_BLD.dtype)
        cluster_BL = (F.normalize(x_BLD.detach(), dim=-1) @ direction_TD.t()).argmax(-1)
        prompt_TN = self.embedding(centres_TD.to(self.embedding.weight.dtype))
        return x_BLD.unsqueeze(2), category_order(cluster_BL), F.embedding(cluster_BL, prompt_TN)

    def _follow(self, x_BLD: Tensor) -> Tensor:
        """Steps of k-means over the batch from where the centres are; the running average moves towards the result."""
        x_MD = F.normalize(x_BLD.flatten(0, 1).to(self.centres.dtype), dim=-1)
        clusters = self.centres.shape[0]
        # the first batch is dealt out in turn: its means are where the centres begin
        turn_M = torch.arange(x_MD.shape[0], device=x_MD.device) % clusters
        begun = self.steps > 0
        centres_TD = torch.where(begun, self.centres, self._means(x_MD, turn_M, self.centres))
        for _ in range(self.iterations):
            nearest_M = (x_MD @ F.normalize(centres_TD, dim=-1).t()).argmax(-1)
            centres_TD = self._means(x_MD, nearest_M, centres_TD)
        kept = self.decay * begun.to(centres_TD.dtype)
        self.centres.copy_(kept * self.centres + (1 - kept) * centres_TD)
        self.steps.add_(1)
        return centres_TD

    def _means(self, x_MD: Tensor, cluster_M: Tensor, otherwise_TD: Tensor) -> Tensor:
        """The normed mean of every cluster, or what it was where nothing is nearest to it."""
        total_TD = torch.zeros_like(otherwise_TD).index_add(0, cluster_M, x_MD)
        count_T = torch.zeros_like(total_TD[:, 0]).index_add(0, cluster_M, torch.ones_like(x_MD[:, 0]))
        return torch.where(count_T.unsqueeze(-1) > 0, F.normalize(total_TD, dim=-1), otherwise_TD)


class AdaptiveRoutes(nn.Module):
    """Routes by ascending scores of place and content; the score is added to the input along a learned direction per route.

    Differs from ASM-UNet, where a Mamba block finds the score of the content: here a norm and a linear layer do. A linear layer
    over an appended feature, as there, is the same as a direction that is added.

    Args:
        dim: D.
        scan: the order.
    """

    def __init__(self, dim: int, scan: Adaptive) -> None:
        super().__init__()
        self.shared = scan.scores == 1
        self.vectors = nn.Parameter(torch.randn(scan.scores, scan.vector))
        self.norm = nn.LayerNorm(dim)
        self.score = Linear(dim, 1)
        self.direction = nn.Parameter(torch.empty(scan.scores, dim).uniform_(-(dim**-0.5), dim**-0.5))

    def forward(self, x_BLD: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """(B, L, D) -> input (B, L, K, D), order int32 (B, K, L), no prompts."""
        individual_BL = torch.sigmoid(self.score(F.relu(self.norm(x_BLD)))).squeeze(-1)
        score_BKL = adaptive_scores(self.vectors.to(individual_BL.dtype), individual_BL)
        u_BLKD = x_BLD.unsqueeze(2) + score_BKL.transpose(1, 2).unsqueeze(-1) * self.direction
        return u_BLKD.to(x_BLD.dtype), score_order(score_BKL), None


class SelectRoutes(nn.Module):
    """Some of the routes of another module here.

    Args:
        inner: the other module.
        which: numbers of the routes.
    """

    def __init__(self, inner: nn.Module, which: Sequence[int]) -> None:
        super().__init__()
        self.inner = inner
        self.shared = bool(inner.shared)
        self.which = nn.Buffer(torch.tensor(which), persistent=False)

    def forward(self, x_BLD: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """(B, L, D) -> input (B, L, 1 or K, D), order int32 (B, K, L), prompts (B, L, N) or None."""
        u_BLKD, order_BKL, prompt_BLN = self.inner(x_BLD)
        if u_BLKD.shape[2] > 1:
            u_BLKD = u_BLKD.index_select(2, self.which)
        return u_BLKD, order_BKL.index_select(1, self.which), prompt_BLN


class ChainRoutes(nn.Module):
    """The routes of another module here as one, over a copy of the image for each: see `visionssm.scans.Chain`.

    Args:
        inner: the other module.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.shared = True

    def forward(self, x_BLD: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """(B, L, D) -> input (B, K * L, 1, D), order int32 (B, 1, K * L), prompts (B, K * L, N) or None."""
        u_BLKD, order_BKL, prompt_BLN = self.inner(x_BLD)
        routes, length = order_BKL.shape[1], order_BKL.shape[2]
        copies_K1 = length * torch.arange(routes, device=order_BKL.device, dtype=order_BKL.dtype).unsqueeze(1)
        u_BLKD = u_BLKD.expand(-1, -1, routes, -1)
        if prompt_BLN is not None:
            prompt_BLN = prompt_BLN.repeat(1, routes, 1)
        return (
            u_BLKD.transpose(1, 2).flatten(1, 2).unsqueeze(2),
            (order_BKL + copies_K1).flatten(1).unsqueeze(1),
            prompt_BLN,
        )


class TokenRoutes(nn.Module):
    """The routes of another module here over the patches; the class token in their middle is visited at the middle step.

    Args:
        inner: the other module.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.shared = bool(inner.shared)

    def forward(self, x_BLD: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """(B, L, D) -> input (B, L, 1 or K, D), order int32 (B, K, L), prompts (B, L, N) or None."""
        middle = (x_BLD.shape[1] - 1) // 2
        u_BLKD, order_BKL, prompt_BLN = self.inner(torch.cat([x_BLD[:, :middle], x_BLD[:, middle + 1 :]], 1))
        token_B1KD = x_BLD[:, middle : middle + 1].unsqueeze(2).expand(-1, -1, u_BLKD.shape[2], -1)
        u_BLKD = torch.cat([u_BLKD[:, :middle], token_B1KD, u_BLKD[:, middle:]], 1)
        moved_BKL = order_BKL + (order_BKL >= middle)  # patches behind the token move up by one
        token_BK1 = torch.full_like(order_BKL[:, :, :1], middle)
        order_BKL = torch.cat([moved_BKL[:, :, :middle], token_BK1, moved_BKL[:, :, middle:]], 2).to(torch.int32)
        if prompt_BLN is not None:
            none_B1N = torch.zeros_like(prompt_BLN[:, :1])
            prompt_BLN = torch.cat([prompt_BLN[:, :middle], none_B1N, prompt_BLN[:, middle:]], 1)
        return u_BLKD, order_BKL, prompt_BLN


def content_routes(scan: ScanOrder, dim: int, d_state: int) -> nn.Module | None:
    """The module that reads the routes of an order off the image: (B, L, D) -> input, order and prompts for the scan.

    Args:
        scan: the order.
        dim: D, channels of the scan.
        d_state: N.

    Returns:
        None for an order whose table is the same for all images of a size.

    Raises:
        ValueError: an order with `content` that has no such module.
    """
    if not scan.content:
        return None
    if isinstance(scan, Semantic):
        return SemanticRoutes(dim, d_state, scan)
    if isinstance(scan, Cluster):
        return ClusterRoutes(dim, d_state, scan)
    if isinstance(scan, Adaptive):
        return AdaptiveRoutes(dim, scan)
    if isinstance(scan, (Select, Chain, WithToken)):
        inner = content_routes(scan_from_key(scan.scan), dim, d_state)
        assert inner is not None
        if isinstance(scan, Select):
            return SelectRoutes(inner, scan.which)
        return ChainRoutes(inner) if isinstance(scan, Chain) else TokenRoutes(inner)
    raise ValueError(f"{scan!r} asks what the image shows, but no module makes its routes")
