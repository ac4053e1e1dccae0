"""Write the tables of configs/detection/README.md and configs/segmentation/README.md: what the authors report for each recipe.

    python dev/update_recipe_tables.py

Nothing here was measured by us. Figures stay text, as printed. A test holds the tables against this file, every recipe against
its entry, and the parameters of each model against the printed number.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
VMAMBA = "https://github.com/MzeroMiko/VMamba/releases/download/"
PLAIN = "https://huggingface.co/ChenhongyiYang/PlainMamba/resolve/main/"
VSSD = "https://huggingface.co/YuhengSSS/VSSD/resolve/main/"
MAMBA2D = "https://github.com/cocoalex00/Mamba2D/releases/download/v2.0.0/"
DRIVE = "https://drive.google.com/file/d/"
FOLDER = "https://drive.google.com/drive/folders/"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One recipe.

    Args:
        figures: box AP and mask AP, or mIoU at one scale and at several; None where the authors print none.
        params: of the whole model, "50M"; "40" where the authors cut off instead of rounding.
        weights: address of the authors' file.
        source: where the figures are printed.
        note: what else to know.
    """

    figures: tuple[str | None, str | None] = (None, None)
    params: str | None = None
    weights: str | None = None
    source: str = ""
    note: str = ""


def _vmamba(first: str, second: str | None, params: str, file: str) -> Row:
    return Row(figures=(first, second), params=params, weights=VMAMBA + file, source="MzeroMiko/VMamba@2ed52ea")


def _spatial(first: str, second: str, params: str, file: str) -> Row:
    return Row(
        figures=(first, second),
        params=params,
        weights=f"{DRIVE}{file}/view",
        source="EdwardChasel/Spatial-Mamba@71221eb",
    )


def _plain(first: str, second: str | None, params: str, file: str, note: str = "") -> Row:
    return Row(
        figures=(first, second),
        params=params,
        weights=PLAIN + file,
        source="ChenhongyiYang/PlainMamba@0975a1d",
        note=note,
    )


def _msvmamba(first: str, second: str | None, params: str, folder: str) -> Row:
    return Row(figures=(first, second), params=params, weights=FOLDER + folder, source="YuHengsss/MSVMamba@c394019")


def _vssd(first: str, second: str, params: str, file: str, note: str = "") -> Row:
    return Row(figures=(first, second), params=params, weights=VSSD + file, source="YuHengsss/VSSD@87b753b", note=note)


def _mobile(first: str, second: str | None, params: str | None, file: str, note: str = "") -> Row:
    return Row(
        figures=(first, second),
        params=params,
        weights=f"{DRIVE}{file}/view",
        source="lewandofskee/MobileMamba@0980f48",
        note=note,
    )


def _mamba2d(first: str, second: str, params: str, file: str) -> Row:
    return Row(figures=(first, second), params=params, weights=MAMBA2D + file, source="cocoalex00/Mamba2D@9acb361")


def _paper(first: str, second: str | None, arxiv: str, *, params: str | None = None, note: str = "") -> Row:
    note = ", ".join(part for part in ("no weights are released", note) if part)
    return Row(figures=(first, second), params=params, source=f"arXiv {arxiv}", note=note)


_NO_FIGURES = Row(note="the repository prints no figures and releases no weights")
_UNREAD = "printed with a last stage that is not read; it has 9.5M"
_OURS = Row(note="no counterpart is published")

DETECTION: dict[str, Row] = {
    "mask_rcnn_vmamba_tiny_s1l8_1x": _vmamba(
        "47.3", "42.7", "50M", "%23v2det/mask_rcnn_vssm_fpn_coco_tiny_s_epoch_12.pth"
    ),
    "mask_rcnn_vmamba_tiny_s1l8_3x": _vmamba(
        "48.8", "43.7", "50M", "%23v2det/mask_rcnn_vssm_fpn_coco_tiny_ms_3x_s_epoch_31.pth"
    ),
    "mask_rcnn_vmamba_tiny_s2l5_1x": _vmamba(
        "47.4", "42.7", "50M", "%23v2det/mask_rcnn_vssm_fpn_coco_tiny_epoch_12.pth"
    ),
    "mask_rcnn_vmamba_tiny_s2l5_3x": _vmamba(
        "48.9", "43.7", "50M", "%23v2det/mask_rcnn_vssm_fpn_coco_tiny_ms_3x_epoch_36.pth"
    ),
    "mask_rcnn_vmamba_small_s2l15_1x": _vmamba(
        "48.7", "43.7", "70M", "%23v2det/mask_rcnn_vssm_fpn_coco_small_epoch_11.pth"
    ),
    "mask_rcnn_vmamba_small_s2l15_3x": _vmamba(
        "49.9", "44.2", "70M", "%23v2det/mask_rcnn_vssm_fpn_coco_small_ms_3x_epoch_32.pth"
    ),
    "mask_rcnn_vmamba_base_s2l15_1x": _vmamba(
        "49.2", "44.1", "108M", "%23v2det/mask_rcnn_vssm_fpn_coco_base_epoch_11.pth"
    ),
    "mask_rcnn_vmamba_base_s2l15_3x": _OURS,
    "mask_rcnn_vmamba_v0_tiny_1x": _vmamba(
        "46.5", "42.1", "42M", "%23v0det/vssmtiny_mask_rcnn_swin_fpn_coco_epoch_12.pth"
    ),
    "mask_rcnn_vmamba_v0_tiny_3x": _vmamba(
        "48.5", "43.2", "42M", "%23v0det/vssmtiny_mask_rcnn_swin_fpn_coco_ms_3x_epoch_34.pth"
    ),
    "mask_rcnn_vmamba_v0_small_1x": _vmamba(
        "48.2", "43.0", "64M", "%23v0det/vssmsmall_mask_rcnn_swin_fpn_coco_epoch_12.pth"
    ),
    "mask_rcnn_vmamba_v0_small_3x": _vmamba(
        "49.7", "44.0", "64M", "%23v0det/vssmsmall_mask_rcnn_swin_fpn_coco_ms_3x_epoch_34.pth"
    ),
    "mask_rcnn_vmamba_v0_base_1x": _vmamba(
        "48.6", "43.3", "96M", "%23v0det/vssmbase_mask_rcnn_swin_fpn_coco_epoch_12.pth"
    ),
    "mask_rcnn_vmamba_v0_base_3x": _OURS,
    "mask_rcnn_spatial_mamba_tiny_1x": _spatial("47.6", "42.9", "46M", "1lmA0_pBQbvuMkJD1R5m3oS_2jXaSy3N3"),
    "mask_rcnn_spatial_mamba_small_1x": _spatial("49.2", "44.0", "63M", "1pzjz1A6nWA9W2FW2Ymg5JSAMbvxmc2hP"),
    "mask_rcnn_spatial_mamba_base_1x": _spatial("50.4", "45.1", "115M", "1oTyT0q88ernqc1_IyqBWHrVJJPGNRN8r"),
    "mask_rcnn_spatial_mamba_tiny_3x": _spatial("49.3", "43.6", "46M", "1PY0_8ZCwogssmaULdc6MzVbCTGm_83Ew"),
    "mask_rcnn_spatial_mamba_small_3x": _spatial("50.5", "44.6", "63M", "19fDAk8cyMplgVRKqU0BC_3l1NxXzHYl_"),
    "mask_rcnn_spatial_mamba_base_3x": _OURS,
    "mask_rcnn_plain_mamba_l1_1x": _plain("44.1", "39.1", "31", "detection/maskrcnn/l1_1x.pth"),
    "mask_rcnn_plain_mamba_l2_1x": _plain("46.0", "40.6", "53", "detection/maskrcnn/l2_1x.pth"),
    "mask_rcnn_plain_mamba_l3_1x": _plain("46.8", "41.2", "79", "detection/maskrcnn/l3_1x.pth"),
    "retinanet_plain_mamba_l1_1x": _plain("41.7", None, "19", "detection/retinanet/l1_1x.pth"),
    "retinanet_plain_mamba_l2_1x": _plain(
        "43.9", None, "40", "detection/retinanet/l2_1x.pth", "printed with 40M parameters; it has 41.3M"
    ),
    "retinanet_plain_mamba_l3_1x": _plain("44.8", None, "67", "detection/retinanet/l3_1x.pth"),
    "mask_rcnn_msvmamba_micro_1x": _msvmamba("43.8", "39.9", "32M", "12CrNAGBalU0yoQcQgPTGO5lM397Jc4La"),
    "mask_rcnn_msvmamba_tiny_1x": _msvmamba("46.9", "42.2", "53M", "1MogQ6PGdrgsyJckJTL9BJzlMCodJ3epu"),
    "mask_rcnn_msvmamba_micro_3x": _msvmamba("46.3", "41.8", "32M", "10-8cDnRfnk_j4QxMHkhUyecucnM_82pt"),
    "mask_rcnn_msvmamba_tiny_3x": _msvmamba("48.3", "43.2", "53M", "1dK1qFjaU8GmqvsmMr1mgppNJlNacHPtG"),
    "mask_rcnn_msvmamba_nano_1x": _NO_FIGURES,
    "mask_rcnn_msvmamba_nano_3x": _OURS,
    "mask_rcnn_local_vmamba_tiny_1x": _paper("46.7", "42.2", "2403.09338"),
    "mask_rcnn_local_vmamba_small_1x": _paper("48.4", "43.2", "2403.09338"),
    "mask_rcnn_local_vmamba_tiny_3x": _paper("48.7", "43.4", "2403.09338"),
    "mask_rcnn_local_vmamba_small_3x": _paper("49.9", "44.1", "2403.09338"),
    "mask_rcnn_local_vim_tiny_100e": _NO_FIGURES,
    "mask_rcnn_local_vim_small_100e": _NO_FIGURES,
    "cascade_mask_rcnn_vim_tiny_100e": _paper("45.7", "39.2", "2401.09417"),
    "cascade_mask_rcnn_vim_small_100e": _NO_FIGURES,
    "mask_rcnn_efficient_vmamba_tiny_1x": _paper(
        "35.6", "33.2", "2403.09977", params="11M", note="printed with 11M parameters; it has 26.2M"
    ),
    "mask_rcnn_efficient_vmamba_small_1x": _paper("39.3", "36.7", "2403.09977", params="31M"),
    "mask_rcnn_efficient_vmamba_base_1x": _paper("43.7", "40.2", "2403.09977", params="53M"),
    "mask_rcnn_efficient_vmamba_tiny_3x": _paper(
        "38.3", "35.3", "2403.09977", params="11M", note="printed with 11M parameters; it has 26.2M"
    ),
    "mask_rcnn_efficient_vmamba_small_3x": _paper("41.6", "38.2", "2403.09977", params="31M"),
    "mask_rcnn_efficient_vmamba_base_3x": _paper("45.0", "40.8", "2403.09977", params="53M"),
    "retinanet_efficient_vmamba_tiny_1x": _paper(
        "37.5", None, "2403.09977", params="13M", note="printed with 13M parameters; it has 16.0M"
    ),
    "retinanet_efficient_vmamba_small_1x": _paper(
        "39.1", None, "2403.09977", params="19M", note="printed with 19M parameters; it has 21.0M"
    ),
    "retinanet_efficient_vmamba_base_1x": _paper("42.8", None, "2403.09977", params="44M"),
    "mask_rcnn_vssd_micro_1x": _vssd("45.4", "41.3", "33M", "mask_rcnn_vssd_fpn_coco_micro.pth"),
    "mask_rcnn_vssd_tiny_1x": _vssd("46.9", "42.6", "44M", "mask_rcnn_vssd_fpn_coco_tiny.pth"),
    "mask_rcnn_vssd_small_1x": _vssd("48.4", "43.5", "59", "mask_rcnn_vssd_fpn_coco_small.pth"),
    "mask_rcnn_vssd_micro_3x": _vssd("47.7", "42.8", "33M", "mask_rcnn_vssd_fpn_coco_micro_3x.pth"),
    "mask_rcnn_vssd_tiny_3x": _vssd("48.8", "43.6", "44M", "mask_rcnn_vssd_fpn_coco_tiny_3x.pth"),
    "mask_rcnn_vssd_small_3x": Row(
        figures=("50.0", "44.6"),
        params="59",
        source="YuHengsss/VSSD@87b753b",
        note="which names the 1x file for it",
    ),
    "mask_rcnn_group_mamba_tiny_1x": _paper("47.6", "42.9", "2407.13772", note="figures as others quote them"),
    "mask_rcnn_mobile_mamba_b1_1x": _mobile("40.6", "37.4", "38M", "1vxp7cV2YXxu2GJmIgoAYE7bARve9qlBp"),
    "retinanet_mobile_mamba_b1_1x": _mobile("39.6", None, "27M", "1uQzA-k721hacqnORf5WPlYFK9rAxauDC"),
    "ssdlite_mobile_mamba_b1_320": _mobile("24.0", None, "18M", "1EUuCJMqJlOkE3sQlLA0n04YPW7B-h05F", _UNREAD),
    "ssdlite_mobile_mamba_b1_512": _mobile("29.5", None, "18M", "12g-Dq6NoiN4vK05lLC91L8deTKHtJ0iz", _UNREAD),
    "mask_rcnn_mamba2d_nano_1x": _mamba2d("42.8", "39.6", "26M", "M2D-N-mask-rcnn-1x.pth"),
    "mask_rcnn_mamba2d_tiny_1x": _mamba2d("48.5", "43.8", "44M", "M2D-T-mask-rcnn-1x.pth"),
    "mask_rcnn_mamba2d_small_1x": _mamba2d("50.4", "45.1", "67M", "M2D-S-mask-rcnn-1x.pth"),
    "mask_rcnn_mamba2d_nano_3x": _mamba2d("47.2", "42.4", "26M", "M2D-N-mask-rcnn-3x.pth"),
    "mask_rcnn_mamba2d_tiny_3x": _mamba2d("50.5", "44.7", "44M", "M2D-T-mask-rcnn-3x.pth"),
    "mask_rcnn_mamba2d_small_3x": _mamba2d("52.2", "46.2", "67M", "M2D-S-mask-rcnn-3x.pth"),
    "retinanet_vmamba_tiny_s1l8_1x": _OURS,
    "dino_vmamba_tiny_s1l8_12e": _OURS,
}

SEGMENTATION: dict[str, Row] = {
    "upernet_vmamba_tiny_s1l8_160k_ade20k": _vmamba(
        "47.9", "48.8", "62M", "%23v2seg/upernet_vssm_4xb4-160k_ade20k-512x512_tiny_s_iter_160000.pth"
    ),
    "upernet_vmamba_tiny_s2l5_160k_ade20k": _vmamba(
        "48.3", "48.6", "62M", "%23v2seg/upernet_vssm_4xb4-160k_ade20k-512x512_tiny_iter_160000.pth"
    ),
    "upernet_vmamba_small_s2l15_160k_ade20k": _vmamba(
        "50.6", "51.2", "82M", "%23v2seg/upernet_vssm_4xb4-160k_ade20k-512x512_small_iter_144000.pth"
    ),
    "upernet_vmamba_base_s2l15_160k_ade20k": _vmamba(
        "51.0", "51.6", "122M", "%23v2seg/upernet_vssm_4xb4-160k_ade20k-512x512_base_iter_160000.pth"
    ),
    "upernet_vmamba_v0_tiny_160k_ade20k": _vmamba(
        "47.3", "48.3", "55M", "%23v0seg/vssmtiny_upernet_4xb4-160k_ade20k-512x512_iter_160000.pth"
    ),
    "upernet_vmamba_v0_small_160k_ade20k": _vmamba(
        "49.5", "50.5", "76M", "%23v0seg/vssmsmall_upernet_4xb4-160k_ade20k-512x512_iter_160000.pth"
    ),
    "upernet_vmamba_v0_base_160k_ade20k": _vmamba(
        "50.0", "51.3", "110M", "%23v0seg/vssmbase_upernet_4xb4-160k_ade20k-512x512_iter_128000.pth"
    ),
    "upernet_spatial_mamba_tiny_160k_ade20k": _spatial("48.6", "49.4", "57M", "1ngRweMh6vLjfZ43fb_o_ZyHs6psxb6Ix"),
    "upernet_spatial_mamba_small_160k_ade20k": _spatial("50.6", "51.4", "73M", "1Ve07Um4dIPCcdg0mdNLjGxJtxKNWB_Sy"),
    "upernet_spatial_mamba_base_160k_ade20k": _spatial("51.8", "52.6", "127M", "1DLSC20TiSfzWrdgLRSdgrhnDn79nruB6"),
    "upernet_plain_mamba_l1_160k_ade20k": _plain("44.1", None, "35", "segmentation/l1_upernet.pth"),
    "upernet_plain_mamba_l2_160k_ade20k": _plain("46.8", None, "55", "segmentation/l2_upernet.pth"),
    "upernet_plain_mamba_l3_160k_ade20k": _plain("49.1", None, "81", "segmentation/l3_upernet.pth"),
    "upernet_msvmamba_micro_160k_ade20k": _msvmamba("45.1", "45.4", "42M", "1naZHL4mwTchllAE001SsyZ_z4y_JRF0s"),
    "upernet_msvmamba_tiny_160k_ade20k": _msvmamba("47.8", None, "65M", "1FaFPFExDd_4goIlLjTR7fXsuMRr-vYoY"),
    "upernet_msvmamba_nano_160k_ade20k": _NO_FIGURES,
    "upernet_local_vmamba_tiny_160k_ade20k": _paper("47.9", "49.1", "2403.09338"),
    "upernet_local_vmamba_small_160k_ade20k": _paper("50.0", "51.0", "2403.09338"),
    "upernet_local_vim_tiny_160k_ade20k": _paper("43.4", "44.4", "2403.09338"),
    "upernet_local_vim_small_160k_ade20k": _paper("46.4", "47.5", "2403.09338"),
    "upernet_vim_tiny_60k_ade20k": _paper("41.0", None, "2401.09417"),
    "upernet_vim_small_60k_ade20k": _paper("44.9", None, "2401.09417"),
    "upernet_efficient_vmamba_tiny_160k_ade20k": _paper(
        "38.9", "39.3", "2403.09977", params="14M", note="printed with 14M parameters; it has 35.4M"
    ),
    "upernet_efficient_vmamba_small_160k_ade20k": _paper(
        "41.5", "42.1", "2403.09977", params="29M", note="printed with 29M parameters; it has 41.1M"
    ),
    "upernet_efficient_vmamba_base_160k_ade20k": _paper("46.5", "47.3", "2403.09977", params="65M"),
    "upernet_vssd_micro_160k_ade20k": _vssd(
        "45.6", "46.0", "42M", "upernet_vssd_final_4xb4-160k_ade20k-512x512_micro.pth"
    ),
    "upernet_vssd_tiny_160k_ade20k": _vssd(
        "47.9",
        "48.7",
        "53M",
        "upernet_vssd_4xb4-160k_ade20k-512x512_tiny.pth",
        "printed with 53M parameters; it has 54.1M",
    ),
    "upernet_vssd_small_160k_ade20k": _NO_FIGURES,
    "upernet_group_mamba_tiny_160k_ade20k": _paper("48.6", "49.2", "2407.13772", note="figures as others quote them"),
    "fpn_mobile_mamba_b4_160k_ade20k": _mobile("42.5", None, "20M", "109TnG4OZCHtEMxC4GJkoARAO_n6cWRzD"),
    "deeplabv3_mobile_mamba_b4_80k_ade20k": _mobile(
        "36.6", None, "23M", "1vlWE7G6nbwnqh-J4nz4oD-CBYKQdg_I-", "printed with 23.4M parameters; it has 23.8M"
    ),
    "pspnet_mobile_mamba_b4_80k_ade20k": _mobile(
        "36.9", None, "20M", "1yU0vwcKhL3sopPS-3keeAwSBQjD8m_OX", "printed with 20.5M parameters; it has 21.4M"
    ),
    "upernet_mamba2d_nano_160k_ade20k": _mamba2d("43.1", "43.1", "34M", "M2D-N-upernet.pth"),
    "upernet_mamba2d_tiny_160k_ade20k": _mamba2d("48.9", "49.3", "53", "M2D-T-upernet.pth"),
    "upernet_mamba2d_small_160k_ade20k": _mamba2d("51.7", "51.8", "77", "M2D-S-upernet.pth"),
    "segformer_vmamba_tiny_s1l8_160k_ade20k": _OURS,
    "segformer_vmamba_tiny_s1l8_160k_cityscapes": _OURS,
}

TABLES = {
    "detection": (DETECTION, ("box AP", "mask AP")),
    "segmentation": (SEGMENTATION, ("mIoU", "mIoU, several scales")),
}
BEGIN, END = "<!-- recipes: written by dev/update_recipe_tables.py -->", "<!-- /recipes -->"


def table(task: str) -> str:
    """The table of a task, in Markdown."""
    rows, figures = TABLES[task]
    lines = [f"| recipe | {' | '.join(figures)} | parameters | weights | reported in |", "| --- | " + "--- | " * 5]
    lines[1] = lines[1].strip()
    for name, row in rows.items():
        params = "" if row.params is None else row.params if row.params.endswith("M") else f"{row.params}M"
        weights = "" if row.weights is None else f"[file]({row.weights})"
        source = ", ".join(part for part in (row.source, row.note) if part)
        cells = [f"[{name}]({name}.py)", *(figure or "" for figure in row.figures), params, weights, source]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def with_table(text: str, task: str) -> str:
    """The README with its table renewed."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table(task)}\n{END}{after}"


def main() -> None:
    for task in TABLES:
        path = ROOT / "configs" / task / "README.md"
        path.write_text(with_table(path.read_text(), task))


if __name__ == "__main__":
    main()
