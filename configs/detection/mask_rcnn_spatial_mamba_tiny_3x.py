"""Mask R-CNN 3x with Spatial-Mamba-T, after
EdwardChasel/Spatial-Mamba@71221eb detection/configs/spatialmamba/mask_rcnn_spatialmamba_fpn_coco_tiny_3x.py.
"""

_base_ = "./_base_/mask_rcnn_3x.py"

model = dict(
    backbone=dict(
        name="spatial_mamba_tiny",
        drop_path_rate=0.2,
        init_cfg=dict(type="Pretrained", checkpoint="spatial_mamba_tiny.in1k"),
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
