"""Mask R-CNN 1x with GroupMamba-T, by the words of arXiv 2407.13772: the recipe for Swin-T.

The authors' classifier weights must be fetched by hand: give the file as init_cfg's checkpoint.
"""

_base_ = "./_base_/mask_rcnn_1x.py"

model = dict(
    backbone=dict(
        name="group_mamba_tiny",
        drop_path_rate=0.2,
        init_cfg=dict(type="Pretrained", checkpoint="group_mamba_tiny.in1k"),
    ),
    neck=dict(in_channels=[64, 128, 348, 448]),
)
