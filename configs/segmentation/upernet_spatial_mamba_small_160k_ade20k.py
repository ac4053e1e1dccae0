"""UperNet on ADE20K with Spatial-Mamba-S, after
EdwardChasel/Spatial-Mamba@71221eb segmentation/configs/spatialmamba/upernet_spatialmamba_4xb4-160k_ade20k-512x512_small.py.
"""

_base_ = "./_base_/upernet_160k_ade20k.py"

model = dict(
    backbone=dict(
        name="spatial_mamba_small",
        drop_path_rate=0.3,
        init_cfg=dict(type="Pretrained", checkpoint="spatial_mamba_small.in1k"),
    ),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
train_dataloader = dict(batch_size=4)  # on 4 GPUs
