"""UperNet on ADE20K with GroupMamba-T, by the words of arXiv 2407.13772: the recipe for Swin-T.

The authors' classifier weights must be fetched by hand: give the file as init_cfg's checkpoint.
"""

_base_ = "./_base_/upernet_160k_ade20k.py"

model = dict(
    backbone=dict(
        name="group_mamba_tiny",
        drop_path_rate=0.2,
        init_cfg=dict(type="Pretrained", checkpoint="group_mamba_tiny.in1k"),
    ),
    decode_head=dict(in_channels=[64, 128, 348, 448]),
    auxiliary_head=dict(in_channels=348),
)
