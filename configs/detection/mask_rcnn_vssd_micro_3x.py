"""Mask R-CNN 3x with VSSD-M, after
YuHengsss/VSSD@87b753b detection/configs/vssd/mask_rcnn_vssd_fpn_coco_micro_3x.py.
"""

_base_ = "./_base_/mask_rcnn_3x.py"

model = dict(
    backbone=dict(
        name="vssd_micro",
        drop_path_rate=0.1,
        init_cfg=dict(type="Pretrained", checkpoint="vssd_micro.in1k"),
    ),
    neck=dict(in_channels=[48, 96, 192, 384]),
)
