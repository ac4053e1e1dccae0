"""Mask R-CNN 3x with LocalVMamba-T, after
hunto/LocalMamba@75e5d1f detection/configs/local_mamba/mask_rcnn_local_vssm_tiny_fpn_coco_ms_3x.py.

No classifier weights were released to start from.
"""

_base_ = "./_base_/mask_rcnn_3x.py"

model = dict(
    backbone=dict(
        name="local_vmamba_tiny",
        drop_path_rate=0.1,
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
