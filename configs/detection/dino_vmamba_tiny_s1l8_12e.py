"""DINO, four scales, 12 epochs, with VMamba-T[s1l8]; MMDetection's recipe for ResNet-50, no such figure is published."""

_base_ = __import__("mmdet").__path__[0] + "/.mim/configs/dino/dino-4scale_r50_8xb2-12e_coco.py"

custom_imports = dict(imports=["visionssm.integrations.mmdet"])
model = dict(
    backbone=dict(
        _delete_=True,
        type="VisionSSM",
        name="vmamba_tiny_s1l8",
        out_indices=(1, 2, 3),
        drop_path_rate=0.2,
        init_cfg=dict(type="Pretrained", checkpoint="vmamba_tiny_s1l8.in1k"),
    ),
    neck=dict(in_channels=[192, 384, 768]),
)
optim_wrapper = dict(
    constructor="VisionSSMLayerDecay",
    paramwise_cfg=dict(_delete_=True, layer_decay_rate=1.0, custom_keys=dict(backbone=dict(lr_mult=0.1))),
)
vis_backends = [dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")]
visualizer = dict(vis_backends=vis_backends)
