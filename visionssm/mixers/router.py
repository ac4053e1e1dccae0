"""A learned category for every position.

Source: MambaIRv2, arXiv 2411.15269, section 3; csguoh/MambaIR@33d7b34 basicsr/archs/mambairv2_arch.py (ASSM).

Legend: B batch, L positions, C width, T categories.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["CategoryRouter"]


class CategoryRouter(nn.Module):
    """Gives every position one of T categories: a straight-through Gumbel softmax over a small network.

    Args:
        dim: C.
        categories: T.
    """

    def __init__(self, dim: int, categories: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, dim // 3)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(dim // 3, categories)

    def forward(self, x_BLC: Tensor, noise_BLT: Tensor | None) -> tuple[Tensor, Tensor]:
        """Chooses the most probable category, or with Gumbel noise a random one in proportion to its probability.

        Args:
            x_BLC: the positions.
            noise_BLT: what is added to the log-probabilities.

        Returns:
            The probabilities (B, L, T), through which gradients flow, and the choices, int64 (B, L).
        """
        scores = F.log_softmax(self.fc2(self.act(self.fc1(x_BLC))), -1)
        soft_BLT = F.softmax(scores if noise_BLT is None else scores + noise_BLT, -1)
        return soft_BLT, soft_BLT.argmax(-1)
