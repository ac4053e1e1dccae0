"""Mask R-CNN 1x with Vanilla-VMamba-B, after
MzeroMiko/VMamba@2ed52ea detection/configs/vssm/mask_rcnn_vssm_fpn_coco_base.py.
"""

_base_ = "./_base_/mask_rcnn_1x.py"

model = dict(
    backbone=dict(
        name="vmamba_v0_base",
        drop_path_rate=0.1,
        init_cfg=dict(type="Pretrained", checkpoint="vmamba_v0_base.in1k"),
    ),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
train_dataloader = dict(batch_size=1)  # on 16 GPUs
