"""UperNet on ADE20K with MSVMamba-N, after
YuHengsss/MSVMamba@c394019 segmentation/configs/ms_vssm/upernet_ms_vssm_4xb4-160k_ade20k-512x512_nano.py.
"""

_base_ = "./_base_/upernet_160k_ade20k.py"

model = dict(
    backbone=dict(
        name="msvmamba_nano",
        drop_path_rate=0.1,
        init_cfg=dict(type="Pretrained", checkpoint="msvmamba_nano.in1k"),
    ),
    decode_head=dict(in_channels=[48, 96, 192, 384]),
    auxiliary_head=dict(in_channels=192),
)
train_dataloader = dict(batch_size=4)  # on 4 GPUs
