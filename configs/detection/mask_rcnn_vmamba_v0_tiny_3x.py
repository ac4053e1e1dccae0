"""Mask R-CNN 3x with Vanilla-VMamba-T, after
MzeroMiko/VMamba@2ed52ea detection/configs/vssm/mask_rcnn_vssm_fpn_coco_tiny_ms_3x.py.
"""

_base_ = "./_base_/mask_rcnn_3x.py"

model = dict(
    backbone=dict(
        name="vmamba_v0_tiny",
        drop_path_rate=0.1,
        init_cfg=dict(type="Pretrained", checkpoint="vmamba_v0_tiny.in1k"),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
