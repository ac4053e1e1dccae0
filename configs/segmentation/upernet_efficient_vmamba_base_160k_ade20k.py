"""UperNet on ADE20K with EfficientVMamba-B, by the words of arXiv 2403.09977: the recipe for VMamba.

The authors' classifier weights must be fetched by hand: give the file as init_cfg's checkpoint.
"""

_base_ = "./_base_/upernet_160k_ade20k.py"

model = dict(
    backbone=dict(
        name="efficient_vmamba_base",
        drop_path_rate=0.2,
        init_cfg=dict(type="Pretrained", checkpoint="efficient_vmamba_base.in1k"),
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
