"""Kernels have first derivatives alone; plain torch has them all."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.library import CustomOpDef

__all__ = ["first_only"]


def first_only(gradient: CustomOpDef) -> None:
    """Makes the derivative of an operator that computes gradients an error that says what to do instead."""

    def refuse(ctx: Any, *grads: Tensor | None) -> Any:
        raise RuntimeError("the kernels have no second derivatives: backend='chunked' has them")

    gradient.register_autograd(refuse)
