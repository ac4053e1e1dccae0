"""UperNet on ADE20K with VMamba-T[s2l5], after
MzeroMiko/VMamba@2ed52ea segmentation/configs/vssm1/upernet_vssm_4xb4-160k_ade20k-512x512_tiny1.py.
"""

_base_ = "./_base_/upernet_160k_ade20k.py"

model = dict(
    backbone=dict(
        name="vmamba_tiny_s2l5",
        drop_path_rate=0.2,
        init_cfg=dict(type="Pretrained", checkpoint="vmamba_tiny_s2l5.in1k"),
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
train_dataloader = dict(batch_size=4)  # on 4 GPUs
