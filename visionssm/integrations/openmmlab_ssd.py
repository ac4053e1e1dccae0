"""SSD's head, able to predict: MMDetection 3.5.1 asks every dense head for a `loss_cls`, and its `SSDHead` has none.

A config that uses it names this file in `custom_imports`. The parameters are those of `SSDHead`.
"""

from __future__ import annotations

from mmdet.models.dense_heads import SSDHead
from mmengine.registry import MODELS

__all__ = ["SSDLiteHead"]


@MODELS.register_module()
class SSDLiteHead(SSDHead):
    """`mmdet.models.SSDHead`, whose classification loss is fixed."""

    loss_cls = None
