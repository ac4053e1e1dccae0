"""Mask R-CNN 1x with Spatial-Mamba-B, after
EdwardChasel/Spatial-Mamba@71221eb detection/configs/spatialmamba/mask_rcnn_spatialmamba_fpn_coco_base.py.
"""

_base_ = "./_base_/mask_rcnn_1x.py"

model = dict(
    backbone=dict(
        name="spatial_mamba_base",
        drop_path_rate=0.5,
        init_cfg=dict(type="Pretrained", checkpoint="spatial_mamba_base.in1k"),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
