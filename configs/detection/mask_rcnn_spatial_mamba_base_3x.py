"""Mask R-CNN 3x with Spatial-Mamba-B, with the schedule of its smaller siblings; none is published."""

_base_ = "./_base_/mask_rcnn_3x.py"

model = dict(
    backbone=dict(
        name="spatial_mamba_base",
        drop_path_rate=0.5,
        init_cfg=dict(type="Pretrained", checkpoint="spatial_mamba_base.in1k"),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
