"""Mask R-CNN 1x with VSSD-S, after
YuHengsss/VSSD@87b753b detection/configs/vssd/mask_rcnn_vssd_fpn_coco_small.py.
"""

_base_ = "./_base_/mask_rcnn_1x.py"

model = dict(
    backbone=dict(
        name="vssd_small",
        drop_path_rate=0.4,
        init_cfg=dict(type="Pretrained", checkpoint="vssd_small.in1k"),
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
