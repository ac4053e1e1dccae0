"""Mask R-CNN 1x with VMamba-S[s2l15], after
MzeroMiko/VMamba@2ed52ea detection/configs/vssm1/mask_rcnn_vssm_fpn_coco_small.py.
"""

_base_ = "./_base_/mask_rcnn_1x.py"

model = dict(
    backbone=dict(
        name="vmamba_small_s2l15",
        drop_path_rate=0.3,
        init_cfg=dict(type="Pretrained", checkpoint="vmamba_small_s2l15.in1k"),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
