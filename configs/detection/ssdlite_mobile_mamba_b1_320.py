"""SSDLite with MobileMamba-B1 on images of 320, 120 epochs of 5 repetitions, after
lewandofskee/MobileMamba@0980f48 downstream/det/configs/ssd/ssdlite_mobilemamba_b1_8gpu_2lr_coco.py.

The authors' classifier weights must be fetched by hand: give the file as init_cfg's checkpoint.
"""

_base_ = __import__("mmdet").__path__[0] + "/.mim/configs/ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py"

custom_imports = dict(imports=["visionssm.integrations.mmdet", "visionssm.integrations.openmmlab_ssd"])
channels = [200, 376, 512, 256, 256, 128]
model = dict(
    backbone=dict(
        _delete_=True,
        type="VisionSSM",
        name="mobile_mamba_b1",
        out_indices=(0, 1),
        out_norm="none",
        drop_path_rate=0.03,
        norm_eval=True,
        init_cfg=dict(type="Pretrained", checkpoint="mobile_mamba_b1.in1k"),
    ),
    neck=dict(in_channels=channels[:2], out_channels=channels),
    bbox_head=dict(type="SSDLiteHead", in_channels=channels),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-5, by_epoch=False, begin=0, end=500),
    dict(type="CosineAnnealingLR", by_epoch=True, begin=60, end=120, T_max=60, eta_min=0.0),
]
optim_wrapper = dict(
    constructor="VisionSSMLayerDecay",
    paramwise_cfg=dict(layer_decay_rate=1.0),
    optimizer=dict(_delete_=True, type="AdamW", lr=0.0024, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=dict(max_norm=0.1, norm_type=2),
)
vis_backends = [dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")]
visualizer = dict(vis_backends=vis_backends)
