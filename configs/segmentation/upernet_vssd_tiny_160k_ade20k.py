"""UperNet on ADE20K with VSSD-T, after
YuHengsss/VSSD@87b753b segmentation/configs/vssd/upernet_vssd_4xb4-160k_ade20k-512x512_tiny.py.
"""

_base_ = "./_base_/upernet_160k_ade20k.py"

model = dict(
    backbone=dict(
        name="vssd_tiny",
        drop_path_rate=0.2,
        init_cfg=dict(type="Pretrained", checkpoint="vssd_tiny.in1k"),
    ),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
