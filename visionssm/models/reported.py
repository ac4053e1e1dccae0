"""What the authors of the published models report of them, as they print it; nothing here was measured by us.

Figures stay text, so that their rounding is known. The licence, the paper and where weights are stand beside each model, in its
`default_cfgs`. `counted` says how the published FLOPs came about, where that could be found out; `visionssm.analysis` counts in
each of these ways, and a test holds the results against the text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["REPORTED", "FlopConvention", "ParamConvention", "Reported"]

FlopConvention = Literal["papers", "one route", "no scan"]
ParamConvention = Literal["model", "backbone, cut off"]


@dataclass(frozen=True, kw_only=True)
class Reported:
    """One variant as published.

    Args:
        source: where the figures are printed.
        top1: ImageNet-1k accuracy in percent.
        top5: the same among five guesses.
        params: number of parameters with its unit, "23M".
        params_counted: of the whole model, rounded; or without the classifier, later digits cut off instead of rounded.
        flops: operations for one image of the default size with their unit, "5.6G"; None where the authors print none.
        counted: how those were counted, see `visionssm.analysis.Operations`.
        flops_differ: why our count in that way is another, where it is.
        drop_path: rate of stochastic depth in the published training, None where it is not stated.
        weights: the state of the released file where there is something to say about it.
        note: what else a reader of the figures must know.
    """

    source: str
    top1: float | None = None
    top5: float | None = None
    params: str | None = None
    params_counted: ParamConvention = "model"
    flops: str | None = None
    counted: FlopConvention = "papers"
    flops_differ: str = ""
    drop_path: float | None = None
    weights: str = ""
    note: str = ""


_VMAMBA = "MzeroMiko/VMamba@2ed52ea README"
_LOCAL = "hunto/LocalMamba@75e5d1f README"
_VIM = "hustvl/Vim@dd0358a README"
_VIM_FLOPS = "the authors print no FLOPs"
_PLAIN = "ChenhongyiYang/PlainMamba@0975a1d README"
_EFFICIENT = "TerryPei/EfficientVMamba@0bc5ee2 README"
_GROUP = "Amshaker/GroupMamba@c1800ed README"
_ND = "jacklishufan/Mamba-ND@4f70284 README"
_UMAMBA = "bowang-lab/U-Mamba@28459e3; arXiv 2401.04722"
_VSSD = "YuHengsss/VSSD@87b753b README"
_EFFICIENT_VIM = "mlvlab/EfficientViM@304340c README"
_MOBILE = "lewandofskee/MobileMamba@0980f48 README"
_M2D = "cocoalex00/Mamba2D@9acb361 README"
_M2D_COPY = "whether the files hold plain or averaged weights is not stated"
_NO_FLOPS = "the repository prints no FLOPs"
_HAND_NORMS = "the authors' tool passes over their layer norms, which are written by hand"
_SPATIAL = "EdwardChasel/Spatial-Mamba@71221eb README"
_DRIVE = "Google Drive only, which a program cannot fetch from: download the file by hand"
_EMA = "accuracy of the averaged weights (model_ema), which are the ones that load"
_VIM_LOCAL = "FLOPs as LocalMamba's README gives them for Vim, whose own README has none"
_PLAIN_NOTE = "the published parameter count leaves out the classifier; the README prints no FLOPs"


def _vmamba(top1: float, params: str, flops: str, drop_path: float, *, note: str = _EMA) -> Reported:
    return Reported(source=_VMAMBA, top1=top1, params=params, flops=flops, drop_path=drop_path, note=note)


def _plain(top1: float, top5: float, params: str, drop_path: float) -> Reported:
    return Reported(
        source=_PLAIN,
        top1=top1,
        top5=top5,
        params=params,
        params_counted="backbone, cut off",
        drop_path=drop_path,
        note=_PLAIN_NOTE,
    )


def _spatial(top1: float, params: str, flops: str, drop_path: float) -> Reported:
    return Reported(source=_SPATIAL, top1=top1, params=params, flops=flops, drop_path=drop_path, weights=_DRIVE)


def _msvmamba(top1: float, flops: str, drop_path: float, *, differ: str = "") -> Reported:
    source = "YuHengsss/MSVMamba README (arXiv 2405.14174)"
    return Reported(source=source, top1=top1, flops=flops, drop_path=drop_path, flops_differ=differ)


def _mamba_nd_3d(dice: str, drop_path: float) -> Reported:
    note = f"mean Dice reported for BTCV: {dice}; compared with the published code are the layers, in the models for images"
    return Reported(source=_ND, drop_path=drop_path, note=note)


def _u_mamba(figures: str) -> Reported:
    note = f"reported for networks that nnU-Net's planner sizes for each data set, larger than this one: {figures}"
    return Reported(source=_UMAMBA, weights="never released by the authors", note=note)


def _efficient(top1: float, params: str, flops: str) -> Reported:
    return Reported(source=_EFFICIENT, top1=top1, params=params, flops=flops, counted="no scan", drop_path=0.1)


def _vssd(top1: float, flops: str, drop_path: float, *, mesa: str = "") -> Reported:
    note = f"{mesa} % with the teacher of its own averages (MESA), the weights `mesa_in1k`" if mesa else ""
    differ = "the authors' tool counts both products of the mixer for a single head, ours for all; with theirs the figures meet"
    return Reported(source=_VSSD, top1=top1, flops=flops, drop_path=drop_path, note=note, flops_differ=differ)


def _efficient_vim(top1: float, flops: str | None = None, *, longer: str = "", differ: str = "") -> Reported:
    note = (
        f"after 300 epochs; {longer} % after 450, the weights `e450_in1k`"
        if longer
        else "trained with a teacher's labels"
    )
    return Reported(source=_EFFICIENT_VIM, top1=top1, flops=flops, note=note, flops_differ=differ)


def _mobile(top1: float, params: str | None, flops: str, drop_path: float, *, taught: str, more: str = "") -> Reported:
    note = f"{taught} % after 1000 epochs with a teacher, in a file of its own{more}"
    return Reported(
        source=_MOBILE,
        top1=top1,
        params=params,
        flops=flops,
        drop_path=drop_path,
        weights=_DRIVE,
        note=note,
        flops_differ="the authors' tool counts the wavelet transforms as convolutions, and passes over the convolutions between "
        'them, which are padded "same"; with both the figures meet',
    )


_LBVIM_UNKNOWN = Reported(
    source="cvlab-stonybrook/LBMamba@5215551 README; arXiv 2506.15976",
    weights="the repository's link to weights is empty",
    note="the README prints no figures, the abstract relative ones alone: 0.8 to 1.6 points of top-1 at the same throughput",
)

REPORTED: dict[str, Reported] = {
    "vmamba_v0_tiny": _vmamba(82.2, "23M", "5.6G", 0.2, note="accuracy of the plain weights, not of averaged ones"),
    "vmamba_v0_small": _vmamba(83.5, "44M", "11.2G", 0.3),
    "vmamba_v0_base": _vmamba(83.7, "76M", "18.0G", 0.5, note=f"{_EMA}; the file's name says drop path 0.6, its recipe 0.5"),
    "vmamba_tiny_s2l5": _vmamba(82.5, "31M", "4.9G", 0.2),
    "vmamba_small_s2l15": _vmamba(83.6, "50M", "8.7G", 0.3),
    "vmamba_base_s2l15": _vmamba(83.9, "89M", "15.4G", 0.6),
    "vmamba_tiny_s1l8": _vmamba(82.6, "30M", "4.9G", 0.2),
    "vmamba_small_s1l20": _vmamba(83.3, "49M", "8.6G", 0.3),
    "vmamba_base_s1l20": _vmamba(83.8, "87M", "15.2G", 0.5),
    "vim_tiny": Reported(
        source=_VIM, top1=76.1, top5=93.0, params="7M", flops="1.5G", counted="one route", drop_path=0.0, note=_VIM_LOCAL
    ),
    "vim_tiny_stride8": Reported(source=_VIM, top1=78.3, top5=94.2, params="7M", drop_path=0.0, note=_VIM_FLOPS),
    "vim_small": Reported(
        source=_VIM, top1=80.5, top5=95.1, params="26M", flops="5.1G", counted="one route", drop_path=0.05, note=_VIM_LOCAL
    ),
    "vim_small_stride8": Reported(source=_VIM, top1=81.6, top5=95.4, params="26M", drop_path=0.0, note=_VIM_FLOPS),
    "vim_base": Reported(source=_VIM, top1=81.9, top5=95.8, params="98M", note=_VIM_FLOPS),
    "lbvim_tiny": _LBVIM_UNKNOWN,
    "lbvim_300": _LBVIM_UNKNOWN,
    "lbvim_small": _LBVIM_UNKNOWN,
    "local_vim_tiny": Reported(source=_LOCAL, top1=76.2, params="8M", flops="1.5G", counted="one route", drop_path=0.1),
    "local_vim_tiny_middle_cls_token": Reported(
        source=_LOCAL, top1=77.8, params="8M", flops="1.5G", counted="one route", drop_path=0.1
    ),
    "local_vim_small": Reported(
        source=_LOCAL, top1=81.1, params="28M", flops="4.8G", counted="one route", drop_path=0.1,
        weights="never released: the authors' link leads to LocalVMamba-S's file (issue 43 of their repository)",
        note="the published code defines this name twice; which definition the figures belong to is not stated",
    ),
    "local_vim_small_searched": Reported(
        source=_LOCAL, top1=81.1, params="28M", flops="4.8G", counted="one route", drop_path=0.1,
        weights="never released: the authors' link leads to LocalVMamba-S's file (issue 43 of their repository)",
        note="the published code defines this name twice; which definition the figures belong to is not stated",
    ),
    "local_vmamba_tiny": Reported(
        source=_LOCAL, top1=82.7, params="26M", flops="5.7G", drop_path=0.2, weights='never released ("retraining")'
    ),
    "local_vmamba_small": Reported(source=_LOCAL, top1=83.7, params="50M", flops="11.4G", drop_path=0.2),
    "plain_mamba_l1": _plain(77.9, 94.0, "7.3M", 0.2),
    "plain_mamba_l2": _plain(81.6, 95.6, "25.7M", 0.2),
    "plain_mamba_l3": _plain(82.3, 95.9, "50.5M", 0.4),
    "spatial_mamba_tiny": _spatial(83.5, "27M", "4.5G", 0.2),
    "spatial_mamba_small": _spatial(84.6, "43M", "7.1G", 0.3),
    "spatial_mamba_base": _spatial(85.3, "96M", "15.8G", 0.5),
    "efficient_vmamba_tiny": _efficient(76.5, "6.494M", "0.8G"),
    "efficient_vmamba_small": _efficient(78.7, "11.274M", "1.3G"),
    "efficient_vmamba_base": _efficient(81.8, "33.717M", "4.0G"),
    "group_mamba_tiny": Reported(source=_GROUP, top1=83.3, drop_path=0.05, note=_NO_FLOPS),
    "group_mamba_small": Reported(source=_GROUP, top1=83.9, drop_path=0.05, note=_NO_FLOPS),
    "group_mamba_base": Reported(source=_GROUP, top1=84.5, drop_path=0.05, note=_NO_FLOPS),
    "mamba_nd_2d_small": Reported(source=_ND, top1=81.7, drop_path=0.1, note=_NO_FLOPS),
    "mamba_nd_2d_base": Reported(source=_ND, top1=83.0, drop_path=0.1, note=_NO_FLOPS),
    "mamba_nd_3d_small": _mamba_nd_3d("83.1", 0.1),
    "mamba_nd_3d_small_plus": _mamba_nd_3d("83.9", 0.4),
    "mamba_nd_3d_base": _mamba_nd_3d("82.7", 0.2),
    "mamba_nd_3d_base_64": _mamba_nd_3d("84.7", 0.25),
    "mamba2d_nano": Reported(source=_M2D, top1=79.6, drop_path=0.0, weights=_M2D_COPY, note=_NO_FLOPS),
    "mamba2d_tiny": Reported(source=_M2D, top1=84.0, drop_path=0.175, weights=_M2D_COPY, note=_NO_FLOPS),
    "mamba2d_small": Reported(source=_M2D, top1=85.3, drop_path=0.4, weights=_M2D_COPY, note=_NO_FLOPS),
    "msvmamba_nano": _msvmamba(77.3, "0.9G", 0.2),
    "msvmamba_micro": _msvmamba(79.8, "1.5G", 0.2),
    "msvmamba_tiny": _msvmamba(82.8, "4.6G", 0.2),
    "msvmamba_v3_tiny": _msvmamba(
        83.0, "5.0G", 0.2,
        differ="the count that meets the five other variants gives 5.1 G here; why 5.0 is printed is not known",
    ),
    "msvmamba_v3_small": _msvmamba(84.1, "8.8G", 0.4),
    "msvmamba_v3_base": _msvmamba(84.4, "16.3G", 0.5),
    "light_m_unet_2d": Reported(
        source="MrBlankness/LightM-UNet@6b72e27", weights="never released by the authors",
        note="the published code builds five times the 1M parameters that its README prints; figures are in a picture only",
    ),
    "light_m_unet_3d": Reported(
        source="MrBlankness/LightM-UNet@6b72e27", weights="never released by the authors",
        note="the published code builds five times the 1M parameters that its README prints; figures are in a picture only",
    ),
    "u_mamba_bot_2d": _u_mamba("Dice 0.654 (endoscopy), F1 0.539 (microscopy)"),
    "u_mamba_enc_2d": _u_mamba("Dice 0.630 (endoscopy), F1 0.561 (microscopy)"),
    "u_mamba_bot_3d": _u_mamba("Dice 0.868 (abdominal CT), 0.845 (abdominal MR)"),
    "u_mamba_enc_3d": _u_mamba("Dice 0.864 (abdominal CT), 0.850 (abdominal MR)"),
    "vssd_micro": _vssd(82.5, "2.3G", 0.2),
    "vssd_tiny": _vssd(83.6, "4.5G", 0.2, mesa="84.1"),
    "vssd_small": _vssd(84.1, "7.4G", 0.4, mesa="84.5"),
    "vssd_base": _vssd(84.7, "16.1G", 0.6, mesa="85.4"),
    "efficient_vim_m1": _efficient_vim(72.9, "239M", longer="73.5"),
    "efficient_vim_m1_dist": _efficient_vim(74.6),
    "efficient_vim_m2": _efficient_vim(75.4, "355M", longer="75.8", differ=_HAND_NORMS),
    "efficient_vim_m2_dist": _efficient_vim(76.7),
    "efficient_vim_m3": _efficient_vim(77.6, "656M", longer="77.9", differ=_HAND_NORMS),
    "efficient_vim_m3_dist": _efficient_vim(79.1),
    "efficient_vim_m4": _efficient_vim(
        79.4, "1111M", longer="79.6", differ=f"{_HAND_NORMS}; of the other 0.4 M the origin is not known"
    ),
    "efficient_vim_m4_dist": _efficient_vim(80.7),
    "mobile_mamba_t2": _mobile(73.6, "8.8M", "255M", 0.0, taught="76.9"),
    "mobile_mamba_t4": _mobile(
        76.1, None, "413M", 0.0, taught="78.9", more="; 14.2M parameters are printed, which counts the wavelets' fixed filters"
    ),
    "mobile_mamba_s6": _mobile(78.0, "15.0M", "652M", 0.0, taught="80.7"),
    "mobile_mamba_b1": _mobile(79.9, "17.1M", "1080M", 0.03, taught="82.2"),
    "mobile_mamba_b2": _mobile(81.6, "17.1M", "2427M", 0.03, taught="83.3"),
    "mobile_mamba_b4": _mobile(82.5, "17.1M", "4313M", 0.03, taught="83.6"),
    "segmamba_brats2023": Reported(
        source="ge-xing/SegMamba@cff3597", params="67.4M", weights="never released by the authors",
        note="Dice reported for BraTS2023 (arXiv 2401.13560): WT 93.61, TC 92.65, ET 87.71",
    ),
}  # fmt: skip
