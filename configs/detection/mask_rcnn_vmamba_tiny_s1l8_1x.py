"""Mask R-CNN 1x with VMamba-T[s1l8], after
MzeroMiko/VMamba@2ed52ea detection/configs/vssm1/mask_rcnn_vssm_fpn_coco_tiny.py.
"""

_base_ = "./_base_/mask_rcnn_1x.py"

model = dict(
    backbone=dict(
        name="vmamba_tiny_s1l8",
        drop_path_rate=0.2,
        init_cfg=dict(type="Pretrained", checkpoint="vmamba_tiny_s1l8.in1k"),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
