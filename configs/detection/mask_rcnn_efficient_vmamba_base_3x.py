"""Mask R-CNN 3x with EfficientVMamba-B, by the words of arXiv 2403.09977: the recipe for Swin-T.

The authors' classifier weights must be fetched by hand: give the file as init_cfg's checkpoint.
"""

_base_ = "./_base_/mask_rcnn_3x.py"

model = dict(
    backbone=dict(
        name="efficient_vmamba_base",
        drop_path_rate=0.2,
        init_cfg=dict(type="Pretrained", checkpoint="efficient_vmamba_base.in1k"),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
