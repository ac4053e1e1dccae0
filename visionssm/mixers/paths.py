"""What a mixer scans along: one table for all images of a size, tables read off each image, or pieces that each start anew.

Legend: B batch, S spatial sizes, L tokens, D channels, N state, K routes, T steps, P pieces of a route, s steps of a piece.
"""

from __future__ import annotations

from typing import List, Optional, Tuple  # noqa: UP035  (TorchScript reads these)

import torch
from timm.models._features_fx import register_notrace_function, register_notrace_module
from torch import Tensor, nn

from visionssm.scans import RouteTable, ScanOrder, invert

from .content import content_routes
from .functional import conv_along_routes, deal_channels, join_groups, scan_routes

__all__ = ["Paths", "conv_pieces", "scan_pieces", "scan_shared"]


@torch.library.custom_op("visionssm::scan_segments", mutates_args=())
def _scan_segments(key: str, size: List[int]) -> Tensor:  # noqa: UP006
    from visionssm.scans import scan_from_key

    return torch.tensor(scan_from_key(key).segments(size))


@register_notrace_module
class PieceTable(nn.Module):
    """The pieces of every route of a segmented order, for a channels-last image.

    Args:
        scan: the order.
    """

    def __init__(self, scan: ScanOrder) -> None:
        super().__init__()
        self.scan = scan
        self.key = scan.key
        self.route_table = RouteTable(scan)

    def forward(self, image_BSC: Tensor) -> List[Tensor]:  # noqa: UP006
        """(B, *S, C) -> an int32 (P, s) per route; the last piece may end in -1, for nothing."""
        order_KT = self.route_table(image_BSC)
        if torch.jit.is_scripting():
            lengths: List[int] = torch.ops.visionssm.scan_segments(self.key, image_BSC.shape[1:-1]).tolist()  # noqa: UP006
        else:
            lengths = list(self.scan.segments(tuple(image_BSC.shape[1:-1])))
        pieces: List[Tensor] = []  # noqa: UP006
        for k, length in enumerate(lengths):
            route = nn.functional.pad(order_KT[k], [0, -order_KT.shape[1] % length], value=-1.0)
            pieces.append(route.view(-1, length))
        return pieces


class Paths(nn.Module):
    """The routes of any order for a mixer.

    Args:
        scan: the order.
        dim: D, channels of the scan, over all groups.
        d_state: N.
    """

    def __init__(self, scan: ScanOrder, dim: int, d_state: int) -> None:
        super().__init__()
        self.scan = scan
        self.content = content_routes(scan, dim, d_state)
        self.shared = self.content is None or bool(self.content.shared)  # whether all routes have one input
        self.pieces = PieceTable(scan) if scan.segmented else None
        self.table = None if scan.content or scan.segmented else RouteTable(scan)

    def forward(
        self, x_BLD: Tensor, image_BSC: Tensor
    ) -> Tuple[Tensor, Optional[Tensor], Optional[Tensor], Optional[List[Tensor]]]:  # noqa: UP006, UP045
        """Routes for tokens.

        Args:
            x_BLD: the tokens.
            image_BSC: the image that they make up, of which only the sizes count.

        Returns:
            The input (B, L, 1 or K, D); the order, (K, T), (B, K, T) or None where there are pieces; prompts (B, L, N) to add to
            the readout, or None; the pieces of each route, or None.
        """
        u_BLKD = x_BLD.unsqueeze(2)
        if self.content is not None:
            u_BLKD, order_BKT, prompt_BLN = self.content(x_BLD)
            return u_BLKD, order_BKT, prompt_BLN, None
        if self.pieces is not None:
            return u_BLKD, None, None, self.pieces(image_BSC)
        assert self.table is not None
        return u_BLKD, self.table(image_BSC), None, None


def _take(x_BLKD: Tensor, k: int, place_T: Tensor, pieces: int) -> Tensor:
    """Route k of `x` piece by piece, zero where there is no place: (B, L, 1 or K, D) -> (B * P, s, 1, D)."""
    x_BTD = x_BLKD[:, :, min(k, x_BLKD.shape[2] - 1)].index_select(1, place_T.clamp(min=0))
    x_BTD = x_BTD * (place_T >= 0).unsqueeze(-1)
    return x_BTD.reshape(x_BLKD.shape[0] * pieces, -1, 1, x_BLKD.shape[3])


def _put(y_PsKD: Tensor, place_T: Tensor, batch: int, length: int) -> Tensor:
    """The inverse, zero where a route never was: (B * P, s, 1, D) -> (B, L, D)."""
    step_L = invert(place_T, length)
    y_BTD = y_PsKD.reshape(batch, -1, y_PsKD.shape[3])
    return y_BTD.index_select(1, step_L.clamp(min=0)) * (step_L >= 0).unsqueeze(-1)


@register_notrace_function  # its loop runs over what FX does not know
def conv_pieces(x_BLKD: Tensor, weight_KDW: Tensor, bias_KD: Optional[Tensor], pieces: List[Tensor]) -> Tensor:  # noqa: UP006, UP045
    """`conv_along_routes` for routes in pieces, each of which begins with zeros: (B, L, 1 or K, D) -> (B, L, K, D)."""
    outputs: List[Tensor] = []  # noqa: UP006
    for k, piece_Ps in enumerate(pieces):
        place_T = piece_Ps.flatten()
        x = _take(x_BLKD, k, place_T, piece_Ps.shape[0])
        bias = None if bias_KD is None else bias_KD[k : k + 1]
        y = conv_along_routes(x, weight_KDW[k : k + 1], bias, None)
        outputs.append(_put(y, place_T, x_BLKD.shape[0], x_BLKD.shape[1]))
    return torch.stack(outputs, 2)


@register_notrace_function
def scan_pieces(
    u_BLKD: Tensor,
    delta_BLKD: Tensor,
    A_KDN: Tensor,
    B_BLKN: Tensor,
    C_BLKN: Tensor,
    D_KD: Optional[Tensor],  # noqa: UP045
    bias_KD: Optional[Tensor],  # noqa: UP045
    pieces: List[Tensor],  # noqa: UP006
    merge: str,
    segment: int = -1,
) -> Tensor:
    """`scan_routes` for routes in pieces, each of which starts from an empty state; merge as there."""
    outputs: List[Tensor] = []  # noqa: UP006
    for k, piece_Ps in enumerate(pieces):
        place_T, count = piece_Ps.flatten(), piece_Ps.shape[0]
        y = scan_routes(
            _take(u_BLKD, k, place_T, count),
            _take(delta_BLKD, k, place_T, count),
            A_KDN[k : k + 1],
            _take(B_BLKN, k, place_T, count),
            _take(C_BLKN, k, place_T, count),
            None if D_KD is None else D_KD[k : k + 1],
            None if bias_KD is None else bias_KD[k : k + 1],
            None,
            "none",
            segment,
        )
        outputs.append(_put(y, place_T, u_BLKD.shape[0], u_BLKD.shape[1]))
    y_BLKD = torch.stack(outputs, 2)
    return y_BLKD.sum(2) if merge == "sum" else y_BLKD


@register_notrace_function
def scan_shared(
    u_BLKD: Tensor,
    delta_BLKD: Tensor,
    A_DN: Tensor,
    B_BLKN: Tensor,
    C_BLKN: Tensor,
    D_D: Optional[Tensor],  # noqa: UP045
    bias_D: Tensor,
    order_KT: Optional[Tensor],  # noqa: UP045
    pieces: Optional[List[Tensor]],  # noqa: UP006, UP045
    routes: int,
    groups: int,
    segment: int = -1,
    dt_weight_DR: Optional[Tensor] = None,  # noqa: UP045
) -> Tensor:
    """The sum of routes that share one set of parameters; with groups, each route over the channels of its group.

    Args:
        u_BLKD, delta_BLKD: (B, L, 1 or K, D); with a weight, delta is (B, L, 1 or K, R).
        A_DN: (D, N).
        B_BLKN, C_BLKN: (B, L, K, N).
        D_D, bias_D: (D,).
        order_KT: (K, T) or (B, K, T); None where there are pieces.
        pieces: see `Paths`.
        routes: K.
        groups: number of channel groups.
        segment: see `scan_routes`.
        dt_weight_DR: (D, R), if the scan projects dt (`projects_in_scan`): without pieces, groups and segments only.

    Returns:
        (B, L, D).
    """
    merge = "sum"
    A_KDN, bias_KD = A_DN.expand(routes, -1, -1), bias_D.expand(routes, -1)
    D_KD = None if D_D is None else D_D.expand(routes, -1)
    if groups > 1:
        u_BLKD = deal_channels(u_BLKD, groups, routes)
        A_KDN = A_DN.unflatten(0, (groups, -1)).repeat_interleave(routes // groups, dim=0)
        bias_KD = deal_channels(bias_D.unsqueeze(0), groups, routes)
        D_KD = None if D_D is None else deal_channels(D_D.unsqueeze(0), groups, routes)
        delta_BLKD = deal_channels(delta_BLKD, groups, routes)
        merge = "none"
    delta_BLKD = delta_BLKD.expand(-1, -1, routes, -1)
    if pieces is not None:
        y = scan_pieces(u_BLKD, delta_BLKD, A_KDN, B_BLKN, C_BLKN, D_KD, bias_KD, pieces, merge, segment)
    else:
        weight_KDR = None if dt_weight_DR is None else dt_weight_DR.expand(routes, -1, -1)
        y = scan_routes(u_BLKD, delta_BLKD, A_KDN, B_BLKN, C_BLKN, D_KD, bias_KD, order_KT, merge, segment, weight_KDR)
    return join_groups(y, groups) if groups > 1 else y
