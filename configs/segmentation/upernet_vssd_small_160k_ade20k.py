"""UperNet on ADE20K with VSSD-S, after
YuHengsss/VSSD@87b753b segmentation/configs/vssd/upernet_vssd_4xb4-160k_ade20k-512x512_small.py.
"""

_base_ = "./_base_/upernet_160k_ade20k.py"

model = dict(
    backbone=dict(
        name="vssd_small",
        drop_path_rate=0.4,
        init_cfg=dict(type="Pretrained", checkpoint="vssd_small.in1k"),
    ),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
