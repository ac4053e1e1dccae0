"""Mask R-CNN 3x with VSSD-S, after the authors' for VSSD-T; they publish the figures, not the config."""

_base_ = "./_base_/mask_rcnn_3x.py"

model = dict(
    backbone=dict(
        name="vssd_small",
        drop_path_rate=0.4,
        init_cfg=dict(type="Pretrained", checkpoint="vssd_small.in1k"),
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
