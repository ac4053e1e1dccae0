"""RetinaNet 1x with VMamba-T[s1l8], AdamW as for Mask R-CNN; no such figure is published."""

_base_ = "./_base_/retinanet_1x.py"

model = dict(
    backbone=dict(
        name="vmamba_tiny_s1l8",
        drop_path_rate=0.2,
        init_cfg=dict(type="Pretrained", checkpoint="vmamba_tiny_s1l8.in1k"),
    ),
    neck=dict(in_channels=[192, 384, 768]),
)
