"""UperNet on ADE20K with MSVMamba-M, after
YuHengsss/MSVMamba@c394019 segmentation/configs/ms_vssm/upernet_ms_vssm_4xb4-160k_ade20k-512x512_micro.py.
"""

_base_ = "./_base_/upernet_160k_ade20k.py"

model = dict(
    backbone=dict(
        name="msvmamba_micro",
        drop_path_rate=0.1,
        init_cfg=dict(type="Pretrained", checkpoint="msvmamba_micro.in1k"),
    ),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
train_dataloader = dict(batch_size=4)  # on 4 GPUs
