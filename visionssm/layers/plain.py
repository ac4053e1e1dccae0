"""The frame of every plain backbone: patches, positions, blocks of one width, norm, head, and timm's interface over them.

Legend: B batch, M patches, L tokens (M, or M + 1 with a class token at position M // 2), C channels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import to_2tuple
from timm.models._features import feature_take_indices
from timm.models._features_fx import register_notrace_function
from torch import Tensor, nn

from .image import check_image
from .shuffle import draw_order, reordered, restored, shuffle_rates
from .typing import checkpointed, unscripted

__all__ = ["PatchEmbed", "PlainModel", "add_positions", "resize_positions"]


class PatchEmbed(nn.Module):
    """Patches by one convolution: (B, in_chans, H, W) -> (B, H', W', C).

    Args:
        in_chans: channels of the image.
        dim: C.
        patch_size: side of a patch in pixels.
        stride: pixels from patch to patch; smaller than `patch_size` for overlapping patches.
        pad: zero-pad the image at the bottom and right up to a multiple of `patch_size`.
    """

    def __init__(self, in_chans: int, dim: int, *, patch_size: int = 16, stride: int = 16, pad: bool = False) -> None:
        super().__init__()
        self.patch_size, self.stride, self.pad = patch_size, stride, pad
        self.proj = nn.Conv2d(in_chans, dim, patch_size, stride=stride)

    def grid_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        """Patches along (H, W) for an image of `img_size`.

        Raises:
            ValueError: that is not two sides, or the image is smaller than a patch.
        """
        if len(img_size) != 2:
            raise ValueError(f"img_size must be one side or (H, W), got {tuple(img_size)}")
        sides = []
        for side in img_size:
            side += -side % self.patch_size if self.pad else 0
            if side < self.patch_size:
                raise ValueError(f"an image of {tuple(img_size)} is smaller than a patch of {self.patch_size} pixels")
            sides.append((side - self.patch_size) // self.stride + 1)
        return sides[0], sides[1]

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, H', W', C)."""
        if self.pad:
            x = F.pad(x, (0, -x.shape[3] % self.patch_size, 0, -x.shape[2] % self.patch_size))
        return self.proj(x).permute(0, 2, 3, 1)


def resize_positions(
    table: Tensor,
    old: tuple[int, int],
    new: tuple[int, int],
    token: int = -1,
) -> Tensor:
    """Position embeddings for another grid: bicubic, align_corners=False, as the published code does.

    Args:
        table: (1, M or M + 1, C).
        old: the grid (H, W) that it was made for.
        new: the grid wanted.
        token: index of the class token's entry, which is kept as it is and moved to the middle; -1 if there is none.

    Returns:
        (1, M' or M' + 1, C), float32.
    """
    entry = table[:, token : token + 1] if token >= 0 else table[:, :0]
    patches = torch.cat([table[:, :token], table[:, token + 1 :]], 1) if token >= 0 else table
    maps = patches.float().reshape(1, old[0], old[1], -1).permute(0, 3, 1, 2)
    maps = F.interpolate(maps, size=[new[0], new[1]], mode="bicubic", align_corners=False)
    patches = maps.flatten(2).transpose(1, 2)
    middle = patches.shape[1] // 2 if token >= 0 else 0
    return torch.cat([patches[:, :middle], entry.float(), patches[:, middle:]], 1)


def _is_open(height: int, width: int) -> bool:
    """Whether a graph is being exported for any size; resizing to the same size changes nothing."""
    if torch.jit.is_scripting():
        return False
    return torch.jit.is_tracing() or not (isinstance(height, int) and isinstance(width, int))


@register_notrace_function
def add_positions(
    tokens_BLC: Tensor,
    table_1LC: Tensor,
    patches_BHWC: Tensor,
    grid: tuple[int, int],
    class_token: bool,
) -> Tensor:
    """Adds position embeddings, resized if the grid of `patches_BHWC` is not the one they were made for."""
    height, width = patches_BHWC.shape[1], patches_BHWC.shape[2]
    if _is_open(height, width) or height != grid[0] or width != grid[1]:
        token = grid[0] * grid[1] // 2 if class_token else -1
        table_1LC = resize_positions(table_1LC, grid, (height, width), token).to(table_1LC.dtype)
    return tokens_BLC + table_1LC


class NoPreparation(nn.Module):
    """Leaves tokens as they are between blocks."""

    def forward(self, tokens_BLC: Tensor, patches_BHWC: Tensor) -> Tensor:
        """The tokens."""
        return tokens_BLC


class PlainModel(nn.Module):
    """Abstract: a backbone of equal blocks over tokens. A family builds the parts and says nothing more.

    A class token, if there is one, lies in the middle of the patches: position M // 2.
    Images of another size than `img_size` are taken too: position embeddings are then resized on the way.

    Args:
        in_chans: channels of the image.
        num_classes: 0 for no classifier.
        global_pool: "token", "avg" (over patches), or "" for all tokens.
        img_size: side or (H, W) that the position embedding is made for.
        patch_embed: (B, in_chans, H, W) -> (B, H', W', dim), with `grid_size(img_size)`.
        stride: pixels from patch to patch.
        dim: C.
        class_token: whether there is one.
        pos_embed: whether a position embedding is added.
        blocks: modules from (tokens (B, L, C), patches (B, H', W', C)) to tokens; the patches only tell the grid.
        prepare: run before every block, with the same arguments.
        norm: the last norm, over channels.
        drop_rate: dropout before the classifier.
        shuffle_rate: chance with which the last block's tokens are shuffled in training, falling linearly to 0 at the first
            (`visionssm.layers.shuffle`).

    Raises:
        ValueError: the pooling needs a class token that is not there, or is unknown; the image is smaller than a patch.
    """

    def __init__(
        self,
        *,
        in_chans: int,
        num_classes: int,
        global_pool: str,
        img_size: int | tuple[int, int],
        patch_embed: Any,
        stride: int,
        dim: int,
        class_token: bool,
        pos_embed: bool,
        blocks: list[nn.Module],
        norm: nn.Module,
        drop_rate: float,
        prepare: nn.Module | None = None,
        shuffle_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = self.embed_dim = dim
        self.output_fmt = "NLC"
        self.grad_checkpointing = False
        self.grid_size = patch_embed.grid_size(to_2tuple(img_size))
        self.feature_info = [{"num_chs": dim, "reduction": stride, "module": f"blocks.{i}"} for i in range(len(blocks))]
        self.patch_embed = patch_embed
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if class_token else None
        length = self.grid_size[0] * self.grid_size[1] + int(class_token)
        self.pos_embed = nn.Parameter(torch.zeros(1, length, dim)) if pos_embed else None
        self.prepare = NoPreparation() if prepare is None else prepare
        self.blocks: nn.ModuleList = nn.ModuleList(blocks)
        self.shuffles = shuffle_rate > 0
        self.shuffle_rates = shuffle_rates(shuffle_rate, blocks)
        self.norm = norm
        self.global_pool = self._check_pool(global_pool)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(dim, num_classes) if num_classes > 0 else nn.Identity()

    @unscripted
    def _check_pool(self, global_pool: str) -> str:
        if global_pool not in ("token", "avg", ""):
            raise ValueError(f"global_pool must be 'token', 'avg' or '', got {global_pool!r}")
        if global_pool == "token" and self.cls_token is None:
            raise ValueError(f"{type(self).__name__} was built without a class token: global_pool cannot be 'token'")
        return global_pool

    @unscripted
    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Makes the position embedding for another image size, resizing its values."""
        new = self.patch_embed.grid_size(to_2tuple(img_size))
        if self.pos_embed is not None and new != self.grid_size:
            with torch.no_grad():
                resized = resize_positions(self.pos_embed, self.grid_size, new, self._token_index(self.grid_size))
            self.pos_embed = nn.Parameter(resized.to(self.pos_embed.dtype), self.pos_embed.requires_grad)
        self.grid_size = new

    @unscripted
    def resize_position_tables(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A checkpoint's position embedding for this model's grid; checkpoints of square images only."""
        table = state.get("pos_embed")
        if table is None or self.pos_embed is None or table.shape == self.pos_embed.shape:
            return state
        side = round((table.shape[1] - int(self.cls_token is not None)) ** 0.5)
        if side * side + int(self.cls_token is not None) != table.shape[1]:
            return state  # not a square: the strict check after this names the key
        resized = resize_positions(table, (side, side), self.grid_size, self._token_index((side, side)))
        return {**state, "pos_embed": resized.to(table.dtype)}

    @unscripted
    def _token_index(self, grid: tuple[int, int]) -> int:
        return -1 if self.cls_token is None else grid[0] * grid[1] // 2

    @unscripted
    def group_matcher(self, coarse: bool = False) -> dict[str, object]:
        """Parameter groups for layer-wise learning rates, in timm's form."""
        return {"stem": r"^cls_token|pos_embed|patch_embed|prepare",
                "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))]}  # fmt: skip

    @unscripted
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trades time for memory: blocks are run again in the backward pass."""
        self.grad_checkpointing = enable

    @unscripted
    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the classifier by a fresh one; 0 classes removes it."""
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = self._check_pool(global_pool)
        weight = self.norm.weight
        self.head = nn.Identity()
        if num_classes > 0:
            self.head = nn.Linear(self.embed_dim, num_classes, device=weight.device, dtype=weight.dtype)

    def embed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Image to tokens with positions (B, L, C), and the patch map (B, H', W', C)."""
        check_image(x, self.in_chans)
        patches = self.patch_embed(x)
        tokens = patches.flatten(1, 2)
        if self.cls_token is not None:
            middle = tokens.shape[1] // 2
            token = self.cls_token.expand(tokens.shape[0], -1, -1)
            tokens = torch.cat([tokens[:, :middle], token, tokens[:, middle:]], 1)
        if self.pos_embed is not None:
            tokens = add_positions(tokens, self.pos_embed, patches, self.grid_size, self.cls_token is not None)
        return tokens, patches

    def _patch_tokens(self, tokens: Tensor) -> Tensor:
        if self.cls_token is None:
            return tokens
        middle = (tokens.shape[1] - 1) // 2
        return torch.cat([tokens[:, :middle], tokens[:, middle + 1 :]], 1)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | list[tuple[Tensor, Tensor]] | tuple[Tensor, list[Any]]:
        """Features of chosen blocks, in timm's form.

        Args:
            x: (B, in_chans, H, W).
            indices: the last n blocks if an int, the chosen ones if a list, all if None.
            return_prefix_tokens: pair each feature with the class token (B, 0 or 1, C).
            norm: apply the last norm to every feature.
            stop_early: do not run blocks after the last chosen one.
            output_fmt: "NCHW", "NHWC" or "NLC"; the class token is left out of all.
            intermediates_only: return only the list of features.

        Returns:
            The features, or (last tokens after the norm, features).
        """
        assert output_fmt in ("NCHW", "NHWC", "NLC"), "Output format must be one of NCHW, NHWC or NLC."
        take_indices, max_index = feature_take_indices(len(self.blocks), indices)
        features: list[Any] = []
        tokens, patches = self.embed(x)
        # TorchScript cannot slice the blocks
        blocks = self.blocks if torch.jit.is_scripting() or not stop_early else self.blocks[: max_index + 1]
        for i, block in enumerate(blocks):
            tokens = self.prepare(tokens, patches)
            order = torch.zeros(0)
            if self.shuffles:
                order = draw_order(tokens, self.shuffle_rates[i], self.training)
                tokens = reordered(tokens, order)
            if self.grad_checkpointing and not torch.jit.is_scripting():
                tokens = checkpointed(block, tokens, patches)
            else:
                tokens = block(tokens, patches)
            if self.shuffles:
                tokens = restored(tokens, order)
            if i in take_indices:
                chosen = self.norm(tokens) if norm else tokens
                feature = self._patch_tokens(chosen)
                if output_fmt != "NLC":
                    feature = feature.reshape(patches.shape)
                if output_fmt == "NCHW":
                    feature = feature.permute(0, 3, 1, 2).contiguous()
                if return_prefix_tokens:
                    middle = (chosen.shape[1] - 1) // 2
                    prefix = chosen[:, :0] if self.cls_token is None else chosen[:, middle : middle + 1]
                    features.append((feature, prefix))
                else:
                    features.append(feature)
        if intermediates_only:
            return features
        return self.norm(tokens), features

    @unscripted
    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drops the blocks after the last chosen one, in timm's form."""
        take_indices, max_index = feature_take_indices(len(self.blocks), indices)
        self.blocks = self.blocks[: max_index + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.num_classes, self.global_pool, self.head = 0, "", nn.Identity()
        return take_indices

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, L, C), after the last norm."""
        tokens, patches = self.embed(x)
        for i, block in enumerate(self.blocks):
            tokens = self.prepare(tokens, patches)
            order = torch.zeros(0)
            if self.shuffles:
                order = draw_order(tokens, self.shuffle_rates[i], self.training)
                tokens = reordered(tokens, order)
            if self.grad_checkpointing and not torch.jit.is_scripting():
                tokens = checkpointed(block, tokens, patches)
            else:
                tokens = block(tokens, patches)
            if self.shuffles:
                tokens = restored(tokens, order)
        return self.norm(tokens)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, L, C) -> (B, num_classes), or the pooled features."""
        if self.global_pool == "token":
            x = x[:, (x.shape[1] - 1) // 2]
        elif self.global_pool == "avg":
            x = self._patch_tokens(x).mean(1)
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, num_classes)."""
        return self.forward_head(self.forward_features(x))
