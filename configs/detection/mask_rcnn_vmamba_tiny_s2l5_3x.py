"""Mask R-CNN 3x with VMamba-T[s2l5], after
MzeroMiko/VMamba@2ed52ea detection/configs/vssm1/mask_rcnn_vssm_fpn_coco_tiny1_ms_3x.py.
"""

_base_ = "./_base_/mask_rcnn_3x.py"

model = dict(
    backbone=dict(
        name="vmamba_tiny_s2l5",
        drop_path_rate=0.2,
        init_cfg=dict(type="Pretrained", checkpoint="vmamba_tiny_s2l5.in1k"),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
