"""UperNet on ADE20K with Spatial-Mamba-B, after
EdwardChasel/Spatial-Mamba@71221eb segmentation/configs/spatialmamba/upernet_spatialmamba_4xb4-160k_ade20k-512x512_base.py.
"""

_base_ = "./_base_/upernet_160k_ade20k.py"

model = dict(
    backbone=dict(
        name="spatial_mamba_base",
        drop_path_rate=0.5,
        init_cfg=dict(type="Pretrained", checkpoint="spatial_mamba_base.in1k"),
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
train_dataloader = dict(batch_size=4)  # on 4 GPUs
