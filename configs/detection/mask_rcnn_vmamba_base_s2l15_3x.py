"""Mask R-CNN 3x with VMamba-B[s2l15], with the schedule of its smaller siblings; none is published."""

_base_ = "./_base_/mask_rcnn_3x.py"

model = dict(
    backbone=dict(
        name="vmamba_base_s2l15",
        drop_path_rate=0.6,
        init_cfg=dict(type="Pretrained", checkpoint="vmamba_base_s2l15.in1k"),
    ),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
