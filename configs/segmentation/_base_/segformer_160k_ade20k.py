"""SegFormer's head on ADE20K, crops of 512, AdamW, 160k steps: MMSegmentation's recipe for MiT-B0."""

_base_ = __import__("mmseg").__path__[0] + "/.mim/configs/segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py"

custom_imports = dict(imports=["visionssm.integrations.mmseg"])
model = dict(
    backbone=dict(_delete_=True, type="VisionSSM", name="vmamba_tiny_s1l8", out_indices=(0, 1, 2, 3)),
)
optim_wrapper = dict(
    constructor="VisionSSMLayerDecay",
    paramwise_cfg=dict(_delete_=True, layer_decay_rate=1.0, custom_keys=dict(decode_head=dict(lr_mult=10.0))),
)
vis_backends = [dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")]
visualizer = dict(vis_backends=vis_backends)
