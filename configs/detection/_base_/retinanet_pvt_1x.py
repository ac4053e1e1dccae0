"""RetinaNet with FPN on COCO, AdamW, 12 epochs: MMDetection's recipe for PVT-T.

Norms, A_log, D and the dt bias are not decayed.
"""

_base_ = __import__("mmdet").__path__[0] + "/.mim/configs/pvt/retinanet_pvt-t_fpn_1x_coco.py"

custom_imports = dict(imports=["visionssm.integrations.mmdet"])
model = dict(
    backbone=dict(_delete_=True, type="VisionSSM", name="efficient_vmamba_tiny", out_indices=(1, 2, 3)),
    neck=dict(start_level=0),
)
optim_wrapper = dict(
    constructor="VisionSSMLayerDecay",
    paramwise_cfg=dict(layer_decay_rate=1.0),
)
vis_backends = [dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")]
visualizer = dict(vis_backends=vis_backends)
