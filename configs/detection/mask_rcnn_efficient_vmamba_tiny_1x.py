"""Mask R-CNN 1x with EfficientVMamba-T, after
TerryPei/EfficientVMamba@0bc5ee2 detection/configs/efficient/mask_rcnn_vssm_fpn_coco_efficient_2242_48.py.

The authors' classifier weights must be fetched by hand: give the file as init_cfg's checkpoint.
"""

_base_ = "./_base_/mask_rcnn_1x.py"

model = dict(
    backbone=dict(
        name="efficient_vmamba_tiny",
        drop_path_rate=0.1,
        init_cfg=dict(type="Pretrained", checkpoint="efficient_vmamba_tiny.in1k"),
    ),
    neck=dict(in_channels=[48, 96, 192, 384]),
)
train_dataloader = dict(batch_size=4)  # on 4 GPUs
