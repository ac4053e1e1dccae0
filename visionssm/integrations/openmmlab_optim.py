"""Layer-wise learning rates for MMEngine that know the depth of every backbone here, and weight decay that spares the scan.

optim_wrapper = dict(constructor="VisionSSMLayerDecay", paramwise_cfg=dict(layer_decay_rate=0.837),
                     optimizer=dict(type="AdamW", lr=1e-4, weight_decay=0.05))
"""

from __future__ import annotations

from typing import Any

from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from timm.models import group_parameters
from torch import nn

from .openmmlab import BackboneModule

__all__ = ["VisionSSMLayerDecay", "layer_scales", "spared"]

# A_log and D may be matrices of (routes, ...) here, vectors elsewhere; tables of positions and tokens stand for inputs.
_SPARED = ("A_log", "D", "dt_bias", "conv_bias", "direction_B", "pos_embed", "cls_token", "level_embed", "gamma")


def spared(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is never decayed: vectors (norms and biases among them), A_log, D, dt bias, tables of positions."""
    return parameter.ndim <= 1 or name.rpartition(".")[2] in _SPARED


def layer_scales(backbone: BackboneModule, rate: float) -> dict[str, float]:
    """The factor of every parameter's learning rate: rate ** (distance from the top).

    The top is what belongs to no layer (norms of the outputs, an adapter), with 1; the last of n blocks has `rate`, the first
    rate**n, and the stem with the tables rate**(n + 1). A downsampling counts with the block after it.

    Args:
        backbone: a backbone of this package.
        rate: factor from layer to layer.
    """
    model: Any = backbone.model
    groups: Any = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    top = 1 + max(layer for name, layer in groups.items() if not name.startswith("norm."))
    return {
        name: rate ** (top - min(groups.get(name.removeprefix("model."), top), top))
        if name.startswith("model.")
        else 1.0
        for name, _ in backbone.named_parameters()
    }


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class VisionSSMLayerDecay(DefaultOptimWrapperConstructor):
    """Builds an optimizer whose learning rate falls from the backbone's top to its stem.

    `paramwise_cfg` takes `layer_decay_rate` (1 for the same rate everywhere) and `custom_keys`, as MMEngine knows them:
    dict(decode_head=dict(lr_mult=10)). Which parameters are not decayed is fixed, see `spared`.
    """

    def _validate_cfg(self) -> None:
        unknown = set(self.paramwise_cfg) - {"layer_decay_rate", "custom_keys"}
        rate = self.paramwise_cfg.get("layer_decay_rate")
        if unknown or not isinstance(rate, (int, float)) or not 0 < rate <= 1:
            raise ValueError(
                "paramwise_cfg of VisionSSMLayerDecay takes layer_decay_rate, in (0, 1], and custom_keys; "
                f"got {dict(self.paramwise_cfg)}"
            )
        if self.base_lr is None:
            raise ValueError("VisionSSMLayerDecay needs the optimizer's lr")

    def add_params(self, params: list[dict[str, Any]], module: nn.Module, prefix: str = "", **_: Any) -> None:
        """Fills `params` with one group per learning rate and weight decay; parameters that are frozen are left out."""
        scales = {}
        for name, part in module.named_modules():
            if isinstance(part, BackboneModule):
                rates = layer_scales(part, float(self.paramwise_cfg["layer_decay_rate"]))
                scales.update({f"{name}.{key}" if name else key: value for key, value in rates.items()})
        if not scales:
            raise ValueError(f"VisionSSMLayerDecay found no backbone of visionssm in {type(module).__name__}")
        custom = self.paramwise_cfg.get("custom_keys", {})
        groups: dict[tuple[float, float], dict[str, Any]] = {}
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            keys = [key for key in custom if key in name]
            own = custom[max(keys, key=len)] if keys else {}
            scale = scales.get(name, 1.0) * own.get("lr_mult", 1.0)
            decay = 0.0 if spared(name, parameter) else (self.base_wd or 0.0) * own.get("decay_mult", 1.0)
            group = {"params": [], "param_names": [], "lr": self.base_lr * scale, "weight_decay": decay}
            group = groups.setdefault((scale, decay), group)
            group["params"].append(parameter)
            group["param_names"].append(name)
        params.extend(groups.values())
