"""UperNet on ADE20K with Mamba2D-T, after
cocoalex00/Mamba2D@9acb361 downstream/configs/segmentation/upernet_M2D-T_ade20k_160k_512x512.py.
"""

_base_ = "./_base_/upernet_160k_ade20k.py"

model = dict(
    backbone=dict(
        name="mamba2d_tiny",
        drop_path_rate=0.175,
        out_norm="none",
        init_cfg=dict(type="Pretrained", checkpoint="mamba2d_tiny.in1k"),
    ),
    decode_head=dict(in_channels=[64, 128, 320, 512]),
    auxiliary_head=dict(in_channels=320),
)
optim_wrapper = dict(optimizer=dict(weight_decay=0.05), clip_grad=dict(max_norm=1.0, norm_type=2))
