"""ViT-Adapter around a plain backbone: a convolutional branch that gives the strides 4 to 32 and trades with the tokens.

Paper: Vision Transformer Adapter for Dense Predictions, arXiv 2205.08534; with PlainMamba, arXiv 2403.17695, as in
ChenhongyiYang/PlainMamba@0975a1d downstream/mmdetection/mmdet/models/backbones. The branch's parameters have the published names.
Differs from the published code: images that are no multiples of 32 are zero-padded; batch norms become synchronised by the
config (`sync_bn="torch"`).

Legend: B batch, C channels, L tokens, Q tokens of the branch (of the strides 8, 16 and 32, in this order).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction, multi_scale_deformable_attn_pytorch
from mmengine.registry import MODELS
from timm.layers import DropPath
from torch import Tensor, nn

from visionssm.layers import PlainModel
from visionssm.layers.typing import checkpointed
from visionssm.mixers.schedule import ScanChoice

from .openmmlab import BackboneModule

__all__ = ["DeformableAttention", "VisionSSMAdapter"]

Size = tuple[int, int]


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention (arXiv 2010.04159): every query reads a few points of every level.

    Args:
        dim: C.
        levels: maps that are read.
        heads: attention heads.
        points: per head and level.
        ratio: channels of the values over C.
    """

    def __init__(self, dim: int, *, levels: int, heads: int, points: int, ratio: float) -> None:
        super().__init__()
        if dim % heads or int(dim * ratio) % heads:
            raise ValueError(f"{dim} channels and {int(dim * ratio)} of the values must be multiples of {heads} heads")
        self.levels, self.heads, self.points = levels, heads, points
        self.sampling_offsets = nn.Linear(dim, heads * levels * points * 2)
        self.attention_weights = nn.Linear(dim, heads * levels * points)
        self.value_proj = nn.Linear(dim, int(dim * ratio))
        self.output_proj = nn.Linear(int(dim * ratio), dim)
        self.reset()

    def reset(self) -> None:
        """Head i looks into direction 2 pi i / heads, its points one step further each; all weigh the same."""
        angles = torch.arange(self.heads) * (2 * math.pi / self.heads)
        directions = torch.stack([angles.cos(), angles.sin()], -1)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.points + 1)
        offsets = directions[:, None, None] * steps[:, None]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.expand(-1, self.levels, -1, -1).flatten())
        for weight in (self.sampling_offsets.weight, self.attention_weights.weight, self.attention_weights.bias):
            nn.init.zeros_(weight)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(self, query: Tensor, places: Tensor, feature: Tensor, sizes: Sequence[Size]) -> Tensor:
        """Query (B, Lq, C) at places (Lq, 2) as (x, y) in 0..1, feature (B, sum of sizes, C) -> (B, Lq, C)."""
        batch, length, _ = query.shape
        query = query.float()
        value = self.value_proj(feature).unflatten(-1, (self.heads, -1)).float()
        shape = (self.heads, self.levels, self.points)
        offsets = self.sampling_offsets(query).view(batch, length, *shape, 2).float()
        weights = self.attention_weights(query).view(batch, length, self.heads, -1).float().softmax(-1)
        weights = weights.view(batch, length, *shape)
        spatial = torch.tensor(sizes, device=query.device)
        locations = places[:, None, None, None] + offsets / spatial.flip(-1)[:, None]
        if query.is_cuda:
            starts = torch.cat([spatial.new_zeros(1), spatial.prod(1).cumsum(0)[:-1]])
            read = MultiScaleDeformableAttnFunction.apply(value, spatial, starts, locations, weights, 64)
        else:
            read = multi_scale_deformable_attn_pytorch(value, spatial, locations, weights)
        return self.output_proj(read)


class _DepthwiseConv(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor, sizes: Sequence[Size]) -> Tensor:
        levels = x.split([height * width for height, width in sizes], 1)
        maps = [level.transpose(1, 2).unflatten(2, size) for level, size in zip(levels, sizes, strict=True)]
        return torch.cat([self.dwconv(level).flatten(2).transpose(1, 2) for level in maps], 1)


class _ConvFFN(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.dwconv = _DepthwiseConv(hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor, sizes: Sequence[Size]) -> Tensor:
        return self.fc2(self.act(self.dwconv(self.fc1(x), sizes)))


class _Injector(nn.Module):
    """Tokens read the branch: x + gamma attention(norm x, norm c)."""

    def __init__(self, dim: int, **attention: Any) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(dim, eps=1e-6)
        self.feat_norm = nn.LayerNorm(dim, eps=1e-6)
        self.attn = DeformableAttention(dim, levels=3, **attention)
        self.gamma = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor, places: Tensor, branch: Tensor, sizes: Sequence[Size]) -> Tensor:
        return x + self.gamma * self.attn(self.query_norm(x), places, self.feat_norm(branch), sizes)


class _Extractor(nn.Module):
    """The branch reads the tokens, then mixes: c + attention(norm c, norm x), then c + ffn(norm c)."""

    def __init__(self, dim: int, *, ffn_ratio: float, drop_path: float, **attention: Any) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(dim, eps=1e-6)
        self.feat_norm = nn.LayerNorm(dim, eps=1e-6)
        self.attn = DeformableAttention(dim, levels=1, **attention)
        self.ffn = _ConvFFN(dim, int(dim * ffn_ratio))
        self.ffn_norm = nn.LayerNorm(dim, eps=1e-6)
        self.drop_path = DropPath(drop_path)

    def forward(self, branch: Tensor, places: Tensor, x: Tensor, size: Size, sizes: Sequence[Size]) -> Tensor:
        branch = branch + self.attn(self.query_norm(branch), places, self.feat_norm(x), [size])
        return branch + self.drop_path(self.ffn(self.ffn_norm(branch), sizes))


class _Interaction(nn.Module):
    def __init__(self, dim: int, *, extra: bool, ffn_ratio: float, drop_path: float, **attention: Any) -> None:
        super().__init__()
        self.injector = _Injector(dim, **attention)
        self.extractor = _Extractor(dim, ffn_ratio=ffn_ratio, drop_path=drop_path, **attention)
        more = [_Extractor(dim, ffn_ratio=ffn_ratio, drop_path=drop_path, **attention) for _ in range(2 * extra)]
        self.extra_extractors = nn.ModuleList(more)


def _conv(dim: int, out_dim: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(dim, out_dim, 3, stride, 1, bias=False), nn.BatchNorm2d(out_dim), nn.ReLU()]


class _SpatialPrior(nn.Module):
    """Maps of the strides 4, 8, 16 and 32 by convolutions, (B, C, ...) each."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        stem = _conv(3, width, 2) + _conv(width, width, 1) + _conv(width, width, 1)
        self.stem = nn.Sequential(*stem, nn.MaxPool2d(3, 2, 1))
        self.conv2 = nn.Sequential(*_conv(width, 2 * width, 2))
        self.conv3 = nn.Sequential(*_conv(2 * width, 4 * width, 2))
        self.conv4 = nn.Sequential(*_conv(4 * width, 4 * width, 2))
        self.fc1 = nn.Conv2d(width, dim, 1)
        self.fc2 = nn.Conv2d(2 * width, dim, 1)
        self.fc3 = nn.Conv2d(4 * width, dim, 1)
        self.fc4 = nn.Conv2d(4 * width, dim, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        c1 = self.stem(x)
        c2 = self.conv2(c1)
        c3 = self.conv3(c2)
        return self.fc1(c1), self.fc2(c2), self.fc3(c3), self.fc4(self.conv4(c3))


def _places(sizes: Sequence[Size], device: torch.device) -> Tensor:
    """Centres of all positions of maps of these sizes, (L, 2) as (x, y) in 0..1."""
    centres = []
    for height, width in sizes:
        y = (torch.arange(height, device=device) + 0.5) / height
        x = (torch.arange(width, device=device) + 0.5) / width
        centres.append(torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], -1).flatten(0, 1))
    return torch.cat(centres)


@MODELS.register_module()
class VisionSSMAdapter(BackboneModule):
    """A plain backbone of patches of 16 without class token, inside a ViT-Adapter: NCHW maps of the strides 4, 8, 16 and 32.

    Args:
        name: as in `BackboneModule`, also all further arguments that are not named here.
        interactions: how many blocks run between two exchanges, one entry per exchange.
        width: channels of the branch's first convolutions.
        heads: of the deformable attention.
        points: per head and level.
        value_ratio: channels of the attention's values over C.
        ffn_ratio: hidden width of the branch's feed-forward layers over C.

    Raises:
        ValueError: an argument that is not accepted.
    """

    def __init__(
        self,
        name: str,
        *,
        interactions: Sequence[int],
        width: int = 64,
        heads: int = 6,
        points: int = 4,
        value_ratio: float = 1.0,
        ffn_ratio: float = 0.25,
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
        stride = self.model.feature_info[0]["reduction"]
        if not isinstance(self.model, PlainModel) or self.model.cls_token is not None or stride != 16:
            raise ValueError(
                f"name={name!r}: an adapter goes around a plain model without class token and of stride 16"
            )
        if sum(interactions) != self.depth:
            raise ValueError(
                f"interactions must add up to the {self.depth} blocks of {name}, got {tuple(interactions)}"
            )
        dim = self.model.embed_dim
        self.lengths = tuple(interactions)
        self.channels, self.strides = [dim] * 4, [4, 8, 16, 32]
        self.level_embed = nn.Parameter(torch.randn(3, dim))
        self.spm = _SpatialPrior(width, dim)
        attention = {"heads": heads, "points": points, "ratio": value_ratio}
        self.interactions = nn.ModuleList(
            _Interaction(
                dim,
                extra=i == len(interactions) - 1,
                ffn_ratio=ffn_ratio,
                drop_path=drop_path_rate or 0.0,
                **attention,
            )
            for i in range(len(interactions))
        )
        self.up = nn.ConvTranspose2d(dim, dim, 2, 2)
        self.out_norms = nn.ModuleList(nn.BatchNorm2d(dim) for _ in range(4))
        for part in (self.spm, self.interactions, self.up):
            part.apply(_init_weights)
        for module in self.interactions.modules():
            if isinstance(module, DeformableAttention):
                module.reset()
        self.finish(depth=self.depth, keep_norm=False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) -> (B, C, H/4, W/4), ..., (B, C, H/32, W/32), of H and W rounded up to multiples of 32."""
        x = F.pad(x, (0, -x.shape[3] % 32, 0, -x.shape[2] % 32))
        c1, *maps = self.spm(x)
        sizes: list[Size] = [(level.shape[2], level.shape[3]) for level in maps]
        tokens, patches = self.model.embed(x)
        embed = zip(maps, self.level_embed, strict=True)
        branch = torch.cat([level.flatten(2).transpose(1, 2) + own for level, own in embed], 1)
        at_tokens, at_branch = _places(sizes[1:2], x.device), _places(sizes, x.device)
        start = 0
        for length, exchange in zip(self.lengths, self.interactions, strict=True):
            assert isinstance(exchange, _Interaction)
            tokens = exchange.injector(tokens, at_tokens, branch, sizes)
            for block in self.model.blocks[start : start + length]:
                tokens = self.model.prepare(tokens, patches)
                recompute = self.model.grad_checkpointing and torch.is_grad_enabled()
                tokens = checkpointed(block, tokens, patches) if recompute else block(tokens, patches)
            start += length
            for extractor in (exchange.extractor, *exchange.extra_extractors):
                branch = extractor(branch, at_branch, tokens, sizes[1], sizes)
        levels = branch.split([height * width for height, width in sizes], 1)
        c2, c3, c4 = (part.transpose(1, 2).unflatten(2, size) for part, size in zip(levels, sizes, strict=True))
        final = tokens.transpose(1, 2).unflatten(2, sizes[1])
        outputs = []
        for level, scale, norm in zip((self.up(c2) + c1, c2, c3, c4), (4, 2, 1, 0.5), self.out_norms, strict=True):
            outputs.append(norm(level + F.interpolate(final, scale_factor=scale, mode="bilinear")))
        return tuple(outputs)

    def published_name(self, key: str) -> str | None:
        """See the base class."""
        if key.startswith("ad_norm"):
            number, tensor = key.removeprefix("ad_norm").split(".")
            return f"out_norms.{int(number) - 1}.{tensor}"
        return key if key.split(".")[0] in ("level_embed", "spm", "interactions", "up") else None


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
