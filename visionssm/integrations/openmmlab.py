"""Every 2D backbone of this package in MMEngine's words: maps for the necks and heads of MMDetection and MMSegmentation.

    custom_imports = dict(imports=["visionssm.integrations.mmdet"])          # or .mmseg
    model = dict(backbone=dict(type="VisionSSM", name="vmamba_tiny_s1l8", scan="hilbert", with_cp=True,
                               init_cfg=dict(type="Pretrained", checkpoint="vmamba_tiny_s1l8.in1k")), ...)

State dicts in the layouts that the authors publish for detection and segmentation are taken wherever a state dict is loaded:
`Runner(load_from=...)`, `init_detector`, `load_state_dict`. What does not fit the backbone is an error that names the keys.

Legend: B batch, C channels, (H, W) size.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from timm.models._hub import download_cached_file
from torch import Tensor, nn

import visionssm
from visionssm.checkpoints import CheckpointError
from visionssm.checkpoints.load import check, convert
from visionssm.layers import HierarchicalModel, PlainModel
from visionssm.mixers.schedule import ScanChoice

__all__ = ["BackboneModule", "VisionSSM"]


class BackboneModule(BaseModule):
    """Abstract: a model of this package as a part of an MMEngine model: built, started from weights, frozen, loaded.

    Args:
        name: one of `visionssm.list_models(task="classification")`.
        scan: another scan order, by name, with options, or one per block; None for the model's own.
        img_size: side or (H, W) that a model with a position table makes it for; other sizes are taken all the same.
        drop_path_rate: stochastic depth; None for the model's own.
        options: further arguments of the model's class.
        with_cp: trade time for memory: blocks are run again in the backward pass.
        frozen_stages: -1 for none; n freezes the stem and the first n stages (blocks of a plain model).
        norm_eval: keep batch norms at their running statistics.
        init_cfg: None, or dict(type="Pretrained", checkpoint=...) with classifier weights to start from: a file, published or our
            own, an address, or a name with timm's tag ("vim_tiny.in1k").

    Raises:
        ValueError: unknown model, or an argument that it does not take.
    """

    def __init__(
        self,
        *,
        name: str,
        scan: ScanChoice | None,
        img_size: int | Sequence[int] | None,
        drop_path_rate: float | None,
        options: Mapping[str, Any] | None,
        with_cp: bool,
        frozen_stages: int,
        norm_eval: bool,
        init_cfg: Mapping[str, Any] | None,
    ) -> None:
        super().__init__(init_cfg=None if init_cfg is None else dict(init_cfg))
        if init_cfg is not None and (init_cfg.get("type") != "Pretrained" or set(init_cfg) != {"type", "checkpoint"}):
            raise ValueError(f"init_cfg must be None or dict(type='Pretrained', checkpoint=...), got {init_cfg!r}")
        size = tuple(img_size) if isinstance(img_size, Sequence) else img_size
        given = {"scan": _plain(scan), "img_size": size, "drop_path_rate": drop_path_rate}
        self.name = name
        self._options = {key: value for key, value in given.items() if value is not None} | _plain(options or {})
        self.model: Any = _create(name, **self._options)
        if not isinstance(self.model, (HierarchicalModel, PlainModel)):
            raise ValueError(f"name={name!r} is no backbone: choose one of list_models(task='classification')")
        if not -1 <= frozen_stages <= self.depth:
            raise ValueError(f"frozen_stages must lie in -1..{self.depth} for {name}, got {frozen_stages}")
        self.frozen_stages, self.norm_eval = frozen_stages, norm_eval
        self.model.set_grad_checkpointing(with_cp)
        self.register_load_state_dict_pre_hook(_accept_published)

    def finish(self, *, depth: int, keep_norm: bool) -> None:
        """Drops what gives no feature: later stages, the head, the last norm unless it is kept. Freezes what shall be frozen."""
        whole = set(self.model.state_dict())
        self.model.prune_intermediate_layers([depth - 1], prune_norm=not keep_norm)
        self.model.head = nn.Identity()
        self._cut = whole - set(self.model.state_dict())
        for module in self.model.modules():
            if hasattr(
                module, "state_norm"
            ):  # what EfficientViM's stages note for the head; distributed training stops at it
                module.state_norm.requires_grad_(False)
        self.train()

    @property
    def depth(self) -> int:
        """Stages, or blocks of a plain model."""
        return len(self.model.blocks if isinstance(self.model, PlainModel) else self.model.stages)

    def _frozen(self) -> list[nn.Module]:
        if self.frozen_stages < 0:
            return []
        if isinstance(self.model, PlainModel):
            return [self.model.patch_embed, *self.model.blocks[: self.frozen_stages]]
        return [self.model.stem, *self.model.stages[: self.frozen_stages]]

    def train(self, mode: bool = True) -> BackboneModule:
        """As `nn.Module.train`, but frozen parts stay as they are, and batch norms with `norm_eval`."""
        super().train(mode)
        for part in self._frozen():
            part.eval().requires_grad_(False)
        if self.frozen_stages >= 0:
            for table in ("pos_embed", "cls_token"):
                if getattr(self.model, table, None) is not None:
                    getattr(self.model, table).requires_grad_(False)
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def init_weights(self) -> None:
        """Loads the classifier weights that `init_cfg` names; what else there is has been initialised on construction.

        Raises:
            ValueError: no such file or name.
            CheckpointError: the weights do not fit; the message names the keys.
            RuntimeError: the authors' file cannot be fetched by a program; the message says where it is.
        """
        if self._is_init or self.init_cfg is None:
            self._is_init = True
            return
        assert isinstance(self.init_cfg, dict)
        checkpoint = str(self.init_cfg["checkpoint"])
        base = checkpoint.partition(".")[0]
        if Path(checkpoint).is_file() or checkpoint.startswith(("http://", "https://")):
            path = checkpoint if Path(checkpoint).is_file() else download_cached_file(checkpoint)
            whole = _create(self.name, **self._options)
            whole.load_pretrained(path)
        elif base == self.name:
            whole = _create(checkpoint, pretrained=True, **self._options)
        else:
            raise ValueError(
                f"init_cfg checkpoint={checkpoint!r} is neither a file nor an address nor weights of {self.name} such as "
                f"'{self.name}.in1k'"
            )
        weights = whole.state_dict()
        self.model.load_state_dict({key: weights[key] for key in self.model.state_dict()})
        self._is_init = True

    def published(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict of the authors' backbone in our names and shapes; may leave names as they are that are ours already.

        Stages that give no map here are left out, and a classifier.

        Args:
            state: what a published file holds under "backbone.".

        Raises:
            CheckpointError: something is missing, unexpected or of another shape.
        """
        norms = {key: new for key in state if (new := self.published_name(key)) is not None}
        inner = convert({key: value for key, value in state.items() if key not in norms}, self.model)
        resize = getattr(self.model, "resize_position_tables", None)
        inner = inner if resize is None else resize(inner)
        inner = {key: value for key, value in inner.items() if key not in self._cut}
        check(inner, self.model, "the checkpoint's backbone")
        result = {f"model.{key}": value for key, value in inner.items()}
        result.update({new: state[key] for key, new in norms.items()})
        ours = {key for key in self.state_dict() if not key.startswith("model.")}
        lost = [key for key in ours if key not in result and not key.endswith("num_batches_tracked")]
        stray = [key for key, new in norms.items() if new not in ours]
        if lost or stray:
            raise CheckpointError(
                f"the checkpoint's backbone does not fit {self.name} as it is configured: "
                f"missing {', '.join(lost) or 'nothing'}; unexpected {', '.join(stray) or 'nothing'}"
            )
        return result

    def published_name(self, key: str) -> str | None:
        """Our name of a published tensor that is not the model's own, None for those of the model."""
        raise NotImplementedError


@MODELS.register_module()
class VisionSSM(BackboneModule):
    """A backbone of this package: (B, 3, H, W) -> one NCHW map per entry of `out_indices`.

    Args:
        name: as in `BackboneModule`, also all further arguments that are not named here.
        out_indices: stages, or blocks of a plain model, ascending; negative ones count from the end. None for the four stages,
            or for the last block of a plain model.
        out_norm: "layer" for a layer norm on every map, as the published detectors have; "model" for the model's own last norm
            on the last map and layer norms on the others; "none".

    Raises:
        ValueError: an argument that is not accepted.
    """

    def __init__(
        self,
        name: str,
        *,
        out_indices: Sequence[int] | None = None,
        out_norm: Literal["layer", "model", "none"] = "layer",
        scan: ScanChoice | None = None,
        img_size: int | Sequence[int] | None = None,
        drop_path_rate: float | None = None,
        options: Mapping[str, Any] | None = None,
        with_cp: bool = False,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        init_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            name=name,
            scan=scan,
            img_size=img_size,
            drop_path_rate=drop_path_rate,
            options=options,
            with_cp=with_cp,
            frozen_stages=frozen_stages,
            norm_eval=norm_eval,
            init_cfg=init_cfg,
        )
        if out_norm not in ("layer", "model", "none"):
            raise ValueError(f"out_norm must be 'layer', 'model' or 'none', got {out_norm!r}")
        depth, info = self.depth, self.model.feature_info
        if out_indices is None:
            out_indices = range(depth) if depth <= 4 and isinstance(self.model, HierarchicalModel) else (depth - 1,)
        self.out_indices = [index + depth if index < 0 else index for index in out_indices]
        if sorted(set(self.out_indices)) != self.out_indices or not set(self.out_indices) <= set(range(depth)):
            raise ValueError(
                f"out_indices must ascend within 0..{depth - 1} for {name} (or count from -1), got {tuple(out_indices)}"
            )
        if not self.out_indices:
            raise ValueError("out_indices must name at least one map")
        self.channels = [info[index]["num_chs"] for index in self.out_indices]
        self.strides = [info[index]["reduction"] for index in self.out_indices]
        last = self.out_indices[-1]
        self.own_norm = out_norm == "model" and last == depth - 1
        norms = [nn.Identity() if out_norm == "none" else nn.LayerNorm(width) for width in self.channels]
        if self.own_norm:
            norms[-1] = nn.Identity()
        self.out_norms = nn.ModuleList(norms)
        self.finish(depth=last + 1, keep_norm=self.own_norm)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) -> NCHW maps."""
        maps = self.model.forward_intermediates(x, indices=self.out_indices, intermediates_only=True, output_fmt="NHWC")
        normed = [norm(feature) for norm, feature in zip(self.out_norms, maps, strict=True)]
        if self.own_norm:
            normed[-1] = self.model.norm(normed[-1])
        return tuple(feature.permute(0, 3, 1, 2).contiguous() for feature in normed)

    def published_name(self, key: str) -> str | None:
        """See the base class; "outnorm2" and "norm_layer5" count stages and blocks, "outnorm_2" counts the outputs."""
        found = re.fullmatch(r"(outnorm_?|norm_layer)(\d+)\.(weight|bias)", key)
        if found is None:
            return None
        kind, number, tensor = found[1], int(found[2]), found[3]
        if kind != "outnorm_":
            number = self.out_indices.index(number) if number in self.out_indices else len(self.out_indices)
        return f"out_norms.{number}.{tensor}"


def _accept_published(module: BackboneModule, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Before a state dict is loaded: published names become ours. Ours are left to torch."""
    given = {key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)}
    if not given or any(key.startswith("model.") for key in given):
        return
    with torch.no_grad():
        renamed = module.published(given)
    for key in given:
        del state_dict[prefix + key]
    state_dict.update({prefix + key: value for key, value in renamed.items()})


def _create(name: str, **options: Any) -> Any:
    try:
        return visionssm.create_model(name, **options)
    except TypeError as error:
        raise ValueError(f"{name} does not take these options: {error}") from error


def _plain(value: Any) -> Any:
    """A value out of a config without MMEngine's own kinds of dict and list."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item) for item in value)
    return value
