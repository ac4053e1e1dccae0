"""Mask R-CNN 3x with VSSD-T, after
YuHengsss/VSSD@87b753b detection/configs/vssd/mask_rcnn_vssd_fpn_coco_tiny_3x.py.
"""

_base_ = "./_base_/mask_rcnn_3x.py"

model = dict(
    backbone=dict(
        name="vssd_tiny",
        drop_path_rate=0.2,
        init_cfg=dict(type="Pretrained", checkpoint="vssd_tiny.in1k"),
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
