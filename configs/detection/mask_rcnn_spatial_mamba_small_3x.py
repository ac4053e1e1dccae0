"""Mask R-CNN 3x with Spatial-Mamba-S, after
EdwardChasel/Spatial-Mamba@71221eb detection/configs/spatialmamba/mask_rcnn_spatialmamba_fpn_coco_small_3x.py.
"""

_base_ = "./_base_/mask_rcnn_3x.py"

model = dict(
    backbone=dict(
        name="spatial_mamba_small",
        drop_path_rate=0.3,
        init_cfg=dict(type="Pretrained", checkpoint="spatial_mamba_small.in1k"),
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
