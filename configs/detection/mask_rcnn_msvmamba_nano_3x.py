"""Mask R-CNN 3x with MSVMamba-N, with the schedule of its smaller siblings; none is published."""

_base_ = "./_base_/mask_rcnn_3x.py"

model = dict(
    backbone=dict(
        name="msvmamba_nano",
        drop_path_rate=0.1,
        init_cfg=dict(type="Pretrained", checkpoint="msvmamba_nano.in1k"),
    ),
    neck=dict(in_channels=[48, 96, 192, 384]),
)
