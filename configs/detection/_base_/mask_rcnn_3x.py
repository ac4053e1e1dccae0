"""Mask R-CNN with FPN on COCO, AdamW, 36 epochs, crops of many scales: MMDetection's recipe for Swin-T, as the published ones.

Norms, A_log, D and the dt bias are not decayed; the published runs spare the norms alone.
"""

# by path: MMEngine reads the index of all models of a package for every "mmdet::..."
_base_ = __import__("mmdet").__path__[0] + "/.mim/configs/swin/mask-rcnn_swin-t-p4-w7_fpn_ms-crop-3x_coco.py"

custom_imports = dict(imports=["visionssm.integrations.mmdet"])
model = dict(
    backbone=dict(_delete_=True, type="VisionSSM", name="vmamba_tiny_s1l8", out_indices=(0, 1, 2, 3)),
)
optim_wrapper = dict(
    constructor="VisionSSMLayerDecay",
    paramwise_cfg=dict(_delete_=True, layer_decay_rate=1.0),
)
vis_backends = [dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")]
visualizer = dict(vis_backends=vis_backends)
