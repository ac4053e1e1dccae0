"""Mixers without an order: every token reads one state, which is the weighted sum of all tokens.

`NonCausalScan` is VSSD's mixer (arXiv 2407.18559; YuHengsss/VSSD@87b753b), `HiddenStateMixer` EfficientViM's (arXiv 2411.15241;
mlvlab/EfficientViM@304340c), which also mixes the channels of the state before it is read.

Legend: B batch, H height, W width, L = H W, C block width, E heads, P channels of a head, D = E P inner width, N state.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.models._features_fx import register_notrace_function
from torch import Tensor, nn

from visionssm.layers import Linear, init_dt_bias
from visionssm_kernels import noncausal_ssd

from .functional import decay_rate, widened

__all__ = ["HiddenStateMixer", "NonCausalScan"]

register_notrace_function(noncausal_ssd)  # it checks shapes, which FX does not know


class NonCausalScan(nn.Module):
    """in_proj, depthwise conv of x, B and C, SiLU, sum over all tokens with weights dt exp(A_log), readout, norm, gate, out_proj.

    The state is a sum, not a mean: it grows with the number of tokens, and beside it the skip D x counts less. The gate is
    not activated. A_log, D and the dt bias are one number per head.

    Args:
        dim: C, channels in and out.
        heads: E.
        d_inner: D, a multiple of E.
        d_state: N.
        conv_size: side of the depthwise kernel, odd.

    Raises:
        ValueError: the inner width does not split into heads.
    """

    def __init__(self, dim: int, *, heads: int, d_inner: int, d_state: int, conv_size: int = 3) -> None:
        super().__init__()
        if d_inner % heads:
            raise ValueError(f"d_inner={d_inner} does not split into {heads} heads")
        self.heads = heads
        self.dims = (d_inner, d_inner + 2 * d_state, heads)
        self.conv_dims = (d_inner, d_state, d_state)
        self.in_proj = Linear(dim, sum(self.dims), bias=False)
        channels = self.dims[1]
        self.conv = nn.Conv2d(channels, channels, conv_size, padding=conv_size // 2, groups=channels)
        self.act = nn.SiLU()
        self.dt_bias = nn.Parameter(torch.empty(heads))
        self.A_log = nn.Parameter(torch.empty(heads))
        self.D = nn.Parameter(torch.empty(heads))
        self.out_norm = nn.LayerNorm(d_inner)
        self.out_proj = Linear(d_inner, dim, bias=False)
        self.reset_scan_parameters()

    def reset_scan_parameters(self) -> None:
        """Draws dt, A and D anew, as Mamba-2 does."""
        init_dt_bias(self.dt_bias)
        with torch.no_grad():
            self.A_log.copy_(torch.empty_like(self.A_log).uniform_(1, 16).log())
            self.D.fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        z, xBC, dt = self.in_proj(x).split(self.dims, -1)
        xBC = self.act(self.conv(xBC.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        u, B_BLN, C_BLN = xBC.flatten(1, 2).split(self.conv_dims, -1)
        dt_BLE = F.softplus(widened(dt.flatten(1, 2)) + self.dt_bias)
        weight_BLE = -dt_BLE * decay_rate(self.A_log)
        y = noncausal_ssd(u.unflatten(-1, (self.heads, -1)), weight_BLE, B_BLN, C_BLN, self.D)
        return self.out_proj(self.out_norm(y.flatten(2).view_as(z)) * z)


class HiddenStateMixer(nn.Module):
    """B, C and dt by a 1x1 and a depthwise conv; N weighted means of the tokens; their channels gated and mixed; readout.

    The weights of a state are a softmax over the positions of dt + A, so A cancels: published files hold it, and so it is kept.

    Args:
        dim: C, channels in and out.
        d_state: N.
        conv_size: side of the depthwise kernel, odd.
    """

    def __init__(self, dim: int, *, d_state: int, conv_size: int = 3) -> None:
        super().__init__()
        channels = 3 * d_state
        self.in_proj = Linear(dim, channels, bias=False)
        self.conv = nn.Conv2d(channels, channels, conv_size, padding=conv_size // 2, groups=channels, bias=False)
        self.gate_proj = Linear(dim, 2 * dim, bias=False)
        self.act = nn.SiLU()
        self.A = nn.Parameter(torch.empty(d_state).uniform_(1, 16))
        self.D = nn.Parameter(torch.ones(1))
        self.out_proj = Linear(dim, dim, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, H, W, C) -> (B, H, W, C), and the state that it was read from, (B, N, C)."""
        maps = self.conv(self.in_proj(x).permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
        B_BLN, C_BLN, dt_BLN = maps.chunk(3, -1)
        share_BLN = torch.softmax(dt_BLN + self.A, 1)
        tokens_BL1C = x.flatten(1, 2).unsqueeze(2)
        state, z = self.gate_proj(noncausal_ssd(tokens_BL1C, None, share_BLN * B_BLN).squeeze(1)).chunk(2, -1)
        state = self.out_proj(state * (self.act(z) + self.D))
        return torch.matmul(C_BLN, state).view_as(x), state
