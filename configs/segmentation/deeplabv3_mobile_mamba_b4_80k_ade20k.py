"""DeepLabv3 on ADE20K with MobileMamba-B4, after
lewandofskee/MobileMamba@0980f48 downstream/seg/configs/deeplabv3/deeplabv3_mobilemamba_b4-80k_ade20k-512x512.py.

The authors' classifier weights must be fetched by hand: give the file as init_cfg's checkpoint.
"""

_base_ = [
    __import__("mmseg").__path__[0] + "/.mim/configs/_base_/" + name
    for name in ("models/deeplabv3_r50-d8.py", "datasets/ade20k.py", "default_runtime.py", "schedules/schedule_80k.py")
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
    decode_head=dict(in_channels=448, in_index=2, channels=256, num_classes=150),
    auxiliary_head=dict(in_channels=376, in_index=1, num_classes=150),
)
train_dataloader = dict(batch_size=8)  # on 4 GPUs
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-5, by_epoch=False, begin=0, end=500),
    dict(type="CosineAnnealingLR", by_epoch=False, begin=40000, end=80000, T_max=40000, eta_min=0.0),
]
optim_wrapper = dict(
    constructor="VisionSSMLayerDecay",
    paramwise_cfg=dict(layer_decay_rate=1.0),
    optimizer=dict(_delete_=True, type="AdamW", lr=0.00012, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=dict(_delete_=True, max_norm=0.1, norm_type=2),
)
vis_backends = [dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")]
visualizer = dict(vis_backends=vis_backends)
