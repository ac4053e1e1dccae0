"""RetinaNet with FPN on COCO, AdamW, 12 epochs."""

_base_ = __import__("mmdet").__path__[0] + "/.mim/configs/swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py"

custom_imports = dict(imports=["visionssm.integrations.mmdet"])
model = dict(
    backbone=dict(_delete_=True, type="VisionSSM", name="vmamba_tiny_s1l8", out_indices=(1, 2, 3)),
)
optim_wrapper = dict(
    constructor="VisionSSMLayerDecay",
    paramwise_cfg=dict(layer_decay_rate=1.0),
    optimizer=dict(_delete_=True, type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
)
vis_backends = [dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")]
visualizer = dict(vis_backends=vis_backends)
