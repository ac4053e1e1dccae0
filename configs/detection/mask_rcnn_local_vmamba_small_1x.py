"""Mask R-CNN 1x with LocalVMamba-S, after
hunto/LocalMamba@75e5d1f detection/configs/local_mamba/mask_rcnn_local_vssm_small_fpn_coco.py.
"""

_base_ = "./_base_/mask_rcnn_1x.py"

model = dict(
    backbone=dict(
        name="local_vmamba_small",
        drop_path_rate=0.1,
        init_cfg=dict(type="Pretrained", checkpoint="local_vmamba_small.in1k"),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
