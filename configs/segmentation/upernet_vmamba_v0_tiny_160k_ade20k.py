"""UperNet on ADE20K with Vanilla-VMamba-T, after
MzeroMiko/VMamba@2ed52ea segmentation/configs/vssm/upernet_vssm_4xb4-160k_ade20k-512x512_tiny.py.
"""

_base_ = "./_base_/upernet_160k_ade20k.py"

model = dict(
    backbone=dict(
        name="vmamba_v0_tiny",
        drop_path_rate=0.1,
        init_cfg=dict(type="Pretrained", checkpoint="vmamba_v0_tiny.in1k"),
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
train_dataloader = dict(batch_size=4)  # on 4 GPUs
