"""Mask R-CNN 1x with MSVMamba-N, after
YuHengsss/MSVMamba@c394019 detection/configs/ms_vssm/mask_rcnn_ms_vssm_fpn_coco_nano.py.
"""

_base_ = "./_base_/mask_rcnn_1x.py"

model = dict(
    backbone=dict(
        name="msvmamba_nano",
        drop_path_rate=0.1,
        init_cfg=dict(type="Pretrained", checkpoint="msvmamba_nano.in1k"),
    ),
    neck=dict(in_channels=[48, 96, 192, 384]),
)
