"""Classifier heads that do more than timm's between pooling and the linear layer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from timm.layers import SelectAdaptivePool2d
from torch import Tensor, nn

__all__ = ["PooledHead"]


class PooledHead(nn.Module):
    """Pooling, a module over the pooled vector, dropout, linear layer: timm's `ClassifierHead` with something in between.

    Args:
        dim: C.
        num_classes: 0 for no classifier.
        pool_type: "avg", "max", ... or "" for none: the map then passes by the neck too.
        neck: (B, C) -> (B, C).
        drop_rate: dropout before the linear layer.
        distilled: a second linear layer `fc_dist`, trained on a teacher's labels; the mean of both is returned, and both
            while training with `distilled_training` set.
        linear: makes a classifier from the numbers of channels and of classes.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        pool_type: str,
        *,
        neck: nn.Module,
        drop_rate: float = 0.0,
        distilled: bool = False,
        linear: Callable[[int, int], nn.Module] = nn.Linear,
    ) -> None:
        super().__init__()
        self._make_linear = linear
        self.num_features = dim
        self.distilled_training = False
        self.global_pool = self._pool(pool_type)
        self.neck = neck
        self.drop = nn.Dropout(drop_rate)
        self.fc = self._linear(num_classes)
        self.fc_dist = self._linear(num_classes) if distilled else None

    def _pool(self, pool_type: str) -> SelectAdaptivePool2d:
        if "cat" in pool_type:
            raise ValueError(f"global_pool must keep the number of channels, got {pool_type!r}")
        return SelectAdaptivePool2d(pool_type=pool_type, flatten=bool(pool_type), input_fmt="NHWC")

    def _linear(self, num_classes: int) -> nn.Module:
        return self._make_linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def reset(self, num_classes: int, pool_type: str | None = None) -> None:
        """Replaces the linear layers by fresh ones.

        Args:
            num_classes: 0 removes them.
            pool_type: new pooling, unchanged if None.
        """
        where = next(self.parameters(), torch.empty(0))  # none are left of a pruned head
        if pool_type is not None:
            self.global_pool = self._pool(pool_type)
        self.fc = self._linear(num_classes).to(where.device, where.dtype)
        if self.fc_dist is not None:
            self.fc_dist = self._linear(num_classes).to(where.device, where.dtype)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, H, W, C) -> (B, num_classes), or the vector before the linear layer."""
        x = self.global_pool(x)
        if self.global_pool.pool_type:
            x = self.neck(x)
        x = self.drop(x)
        if pre_logits:
            return x
        if self.fc_dist is None:
            return self.fc(x)
        if not torch.jit.is_scripting() and self.training and self.distilled_training:
            return self.fc(x), self.fc_dist(x)  # pyright: ignore[reportReturnType]
        return (self.fc(x) + self.fc_dist(x)) / 2
