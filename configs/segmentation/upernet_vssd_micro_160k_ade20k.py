"""UperNet on ADE20K with VSSD-M, after the authors' for VSSD-T; they publish the figures, not the config."""

_base_ = "./_base_/upernet_160k_ade20k.py"

model = dict(
    backbone=dict(
        name="vssd_micro",
        drop_path_rate=0.1,
        init_cfg=dict(type="Pretrained", checkpoint="vssd_micro.in1k"),
    ),
    decode_head=dict(in_channels=[48, 96, 192, 384]),
    auxiliary_head=dict(in_channels=192),
)
