"""SegFormer's light head on VMamba-T[s1l8], Cityscapes; MMSegmentation's recipe for MiT, no such figure is published."""

_base_ = "./_base_/segformer_160k_cityscapes.py"

model = dict(
    backbone=dict(
        name="vmamba_tiny_s1l8",
        drop_path_rate=0.2,
        init_cfg=dict(type="Pretrained", checkpoint="vmamba_tiny_s1l8.in1k"),
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
)
