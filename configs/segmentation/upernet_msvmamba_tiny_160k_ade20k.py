"""UperNet on ADE20K with MSVMamba-T, after
YuHengsss/MSVMamba@c394019 segmentation/configs/ms_vssm/upernet_ms_vssm_4xb4-160k_ade20k-512x512_tiny.py.
"""

_base_ = "./_base_/upernet_160k_ade20k.py"

model = dict(
    backbone=dict(
        name="msvmamba_tiny",
        drop_path_rate=0.2,
        init_cfg=dict(type="Pretrained", checkpoint="msvmamba_tiny.in1k"),
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
train_dataloader = dict(batch_size=4)  # on 4 GPUs
