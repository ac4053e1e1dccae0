"""The frame of every hierarchical backbone: stem, stages, norm, head, and timm's model interface over them."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import ClassifierHead
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from .head import PooledHead
from .image import check_image
from .residual import GlobalResidual
from .shuffle import draw_order, reordered, restored, shuffle_rates
from .typing import checkpointed, unscripted

__all__ = ["HierarchicalModel", "Stage"]


class Stage(nn.Module):
    """Downsampling (or none), then blocks; (B, H, W, C) in and out.

    Args:
        downsample: run before the blocks; `nn.Identity()` in the first stage.
        blocks: modules from (B, H, W, C) to (B, H, W, C).
        out_norm: run on the map where it leaves the model as a feature, but not on what the next stage reads.
    """

    def __init__(self, downsample: nn.Module, blocks: list[nn.Module], *, out_norm: nn.Module | None = None) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)
        self.out_norm = nn.Identity() if out_norm is None else out_norm
        self.shuffle_rates: list[float] = [0.0] * len(blocks)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H', W', C')."""
        return self.run_blocks(self.downsample(x))

    def run_blocks(self, x: Tensor) -> Tensor:
        """All blocks: (B, H', W', C') -> (B, H', W', C')."""
        if sum(self.shuffle_rates) == 0 and (torch.jit.is_scripting() or not self.grad_checkpointing):
            return self.blocks(x)
        for i, block in enumerate(self.blocks):
            order = draw_order(x, self.shuffle_rates[i], self.training)
            x = reordered(x, order)
            if self.grad_checkpointing and not torch.jit.is_scripting():  # noqa: SIM108  (TorchScript leaves out only branches)
                x = checkpointed(block, x)
            else:
                x = block(x)
            x = restored(x, order)
        return x

    def run(self, x: Tensor, notes: list[Tensor]) -> Tensor:
        """`run_blocks`, of a stage that may also append to `notes` what it tells the head directly: (B, C'')."""
        return self.run_blocks(x)


class HierarchicalModel(nn.Module):
    """Abstract: a backbone whose maps shrink from stage to stage. A family builds the parts and says nothing more.

    Inside, features are (B, H, W, C); they leave `features_only` and `forward_intermediates` as NCHW.

    Args:
        in_chans: channels of the image.
        num_classes: 0 for no classifier.
        global_pool: "avg", "max", ... or "" for none.
        stem: (B, in_chans, H, W) -> (B, H', W', dims[0]).
        stages: one per entry of `dims`.
        dims: channels after each stage.
        strides: total stride after each stage.
        norm: the last norm, over channels. What stages noted for the head stands before its output as further channels, the same
            at every position, so that pooling keeps it.
        drop_rate: dropout before the classifier.
        head: what follows the last norm instead of timm's `ClassifierHead`, with its interface: `PooledHead`.
        shuffle_rate: chance with which the last block's positions are shuffled in training, falling linearly to 0 at the first
            (`visionssm.layers.shuffle`).
        global_residual: whether what enters a stage's blocks is also added to what enters the next stage's (`GlobalResidual`).
    """

    def __init__(
        self,
        *,
        in_chans: int,
        num_classes: int,
        global_pool: str,
        stem: nn.Module,
        stages: list[Stage],
        dims: tuple[int, ...],
        strides: tuple[int, ...],
        norm: nn.Module,
        drop_rate: float,
        head: nn.Module | None = None,
        shuffle_rate: float = 0.0,
        global_residual: bool = False,
    ) -> None:
        super().__init__()
        rates = iter(shuffle_rates(shuffle_rate, [block for stage in stages for block in stage.blocks]))
        for stage in stages:
            stage.shuffle_rates = [next(rates) for _ in stage.blocks]
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.output_fmt = "NHWC"
        self.feature_info = [
            {"num_chs": dim, "reduction": stride, "module": f"stages.{i}"}
            for i, (dim, stride) in enumerate(zip(dims, strides, strict=True))
        ]
        self.stem: Any = stem
        self.stages: nn.Sequential = nn.Sequential(*stages)
        self.global_residual = GlobalResidual(dims if global_residual else ())
        self.norm = norm
        if head is None:
            head = ClassifierHead(dims[-1], num_classes, global_pool, drop_rate, input_fmt="NHWC")
        self.head: Any = head
        self.num_features = self.head_hidden_size = head.num_features

    @unscripted
    def group_matcher(self, coarse: bool = False) -> dict[str, object]:
        """Parameter groups for layer-wise learning rates, in timm's form."""
        blocks = r"^stages\.(\d+)" if coarse else [(r"^stages\.(\d+)\.downsample", (0,)),
                                                   (r"^stages\.(\d+)\.blocks\.(\d+)", None),
                                                   (r"^norm", (99999,))]  # fmt: skip
        return {"stem": r"^stem", "blocks": blocks}

    @unscripted
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trades time for memory: blocks are run again in the backward pass."""
        for stage in self.stages:
            assert isinstance(stage, Stage)
            stage.grad_checkpointing = enable

    @unscripted
    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the classifier by a fresh one; 0 classes removes it."""
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)
        self.head_hidden_size = self.head.num_features

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Features of chosen stages, in timm's form.

        Args:
            x: (B, in_chans, H, W).
            indices: the last n stages if an int, the chosen ones if a list, all if None.
            norm: apply the last norm to the last stage's map.
            stop_early: do not run stages after the last chosen one.
            output_fmt: "NCHW" or "NHWC".
            intermediates_only: return only the list of maps.

        Returns:
            The maps, or (last features, maps).
        """
        assert output_fmt in ("NCHW", "NHWC"), "Output format must be one of NCHW or NHWC."
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        intermediates = []
        notes: list[Tensor] = []
        last = len(self.stages) - 1
        check_image(x, self.in_chans)
        x = self.stem(x)
        entry = torch.zeros(0)
        # TorchScript cannot slice the stages
        stages = self.stages if torch.jit.is_scripting() or not stop_early else self.stages[: max_index + 1]
        i = 0
        for i, stage in enumerate(stages):  # pyright: ignore[reportArgumentType]
            x = stage.downsample(x)
            if self.global_residual.on:
                x = self.global_residual(x, entry, i)
                entry = x
            x = stage.run(x, notes)
            if i in take_indices:
                feature = self.norm(x) if norm and i == last else stage.out_norm(x)
                if output_fmt == "NCHW":
                    feature = feature.permute(0, 3, 1, 2).contiguous()
                intermediates.append(feature)
        if intermediates_only:
            return intermediates
        return self.finish(x, notes) if i == last else x, intermediates

    @unscripted
    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drops the stages after the last chosen one, in timm's form."""
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        self.stages = self.stages[: max_index + 1]  # pyright: ignore[reportAttributeAccessIssue]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
            if isinstance(self.head, PooledHead):
                self.head.neck = nn.Identity()
        return take_indices

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, H', W', C), after the last norm."""
        check_image(x, self.in_chans)
        x = self.stem(x)
        notes: list[Tensor] = []
        entry = torch.zeros(0)
        for i, stage in enumerate(self.stages):
            x = stage.downsample(x)  # pyright: ignore[reportCallIssue]
            if self.global_residual.on:
                x = self.global_residual(x, entry, i)
                entry = x
            x = stage.run(x, notes)  # pyright: ignore[reportCallIssue]
        return self.finish(x, notes)

    def finish(self, x: Tensor, notes: list[Tensor]) -> Tensor:
        """The last stage's map as it goes to the head: normed, and with what stages noted as further channels."""
        x = self.norm(x)
        if len(notes) > 0:
            told = torch.cat(notes, -1).unsqueeze(1).unsqueeze(1)
            x = torch.cat([told.expand(-1, x.shape[1], x.shape[2], -1), x], -1)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, H', W', C) -> (B, num_classes), or the pooled features."""
        return self.head(x, pre_logits=True) if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, num_classes)."""
        return self.forward_head(self.forward_features(x))
