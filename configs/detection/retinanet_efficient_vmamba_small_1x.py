"""RetinaNet 1x with EfficientVMamba-S, by the words of arXiv 2403.09977: the recipe for PVT.

The authors' classifier weights must be fetched by hand: give the file as init_cfg's checkpoint.
"""

_base_ = "./_base_/retinanet_pvt_1x.py"

model = dict(
    backbone=dict(
        name="efficient_vmamba_small",
        drop_path_rate=0.2,
        init_cfg=dict(type="Pretrained", checkpoint="efficient_vmamba_small.in1k"),
    ),
    neck=dict(in_channels=[128, 256, 512]),
)
