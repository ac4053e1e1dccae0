"""Mask R-CNN 1x with MSVMamba-T, after
YuHengsss/MSVMamba@c394019 detection/configs/ms_vssm/mask_rcnn_ms_vssm_fpn_coco_tiny.py.
"""

_base_ = "./_base_/mask_rcnn_1x.py"

model = dict(
    backbone=dict(
        name="msvmamba_tiny",
        drop_path_rate=0.1,
        init_cfg=dict(type="Pretrained", checkpoint="msvmamba_tiny.in1k"),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
