"""Mask R-CNN 3x with Vanilla-VMamba-B, with the schedule of its smaller siblings; none is published."""

_base_ = "./_base_/mask_rcnn_3x.py"

model = dict(
    backbone=dict(
        name="vmamba_v0_base",
        drop_path_rate=0.1,
        init_cfg=dict(type="Pretrained", checkpoint="vmamba_v0_base.in1k"),
    ),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
train_dataloader = dict(batch_size=1)  # on 16 GPUs
