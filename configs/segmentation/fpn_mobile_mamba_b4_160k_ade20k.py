"""Semantic FPN on ADE20K with MobileMamba-B4, after
lewandofskee/MobileMamba@0980f48 downstream/seg/configs/sem_fpn/fpn_mobilemamba_b4-160k_ade20k-512x512.py.

The authors' classifier weights must be fetched by hand: give the file as init_cfg's checkpoint.
"""

_base_ = [
    __import__("mmseg").__path__[0] + "/.mim/configs/_base_/" + name
    for name in ("models/fpn_r50.py", "datasets/ade20k.py", "default_runtime.py", "schedules/schedule_160k.py")
]

custom_imports = dict(imports=["visionssm.integrations.mmseg"])
size = (512, 512)
model = dict(
    data_preprocessor=dict(size=size),
    pretrained=None,
    backbone=dict(
        _delete_=True,
        type="VisionSSM",
        name="mobile_mamba_b4",
        out_indices=(0, 1, 2),
        out_norm="none",
        drop_path_rate=0.03,
        init_cfg=dict(type="Pretrained", checkpoint="mobile_mamba_b4.in1k"),
    ),
    neck=dict(in_channels=[200, 376, 448], num_outs=3),
    decode_head=dict(in_channels=[256] * 3, in_index=[0, 1, 2], feature_strides=[16, 32, 64], num_classes=150),
)
train_dataloader = dict(batch_size=8)  # on 4 GPUs
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type="CosineAnnealingLR", by_epoch=False, begin=80000, end=160000, T_max=80000, eta_min=0.0),
]
optim_wrapper = dict(
    constructor="VisionSSMLayerDecay",
    paramwise_cfg=dict(layer_decay_rate=1.0, custom_keys=dict(head=dict(lr_mult=10.0))),
    optimizer=dict(_delete_=True, type="AdamW", lr=0.00012, betas=(0.9, 0.999), weight_decay=0.05),
)
vis_backends = [dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")]
visualizer = dict(vis_backends=vis_backends)
