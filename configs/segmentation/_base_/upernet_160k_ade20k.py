"""UperNet on ADE20K, crops of 512, AdamW, 160k steps: MMSegmentation's recipe for Swin-T, on which the published ones build."""

# by path: MMEngine looks for "mmseg::..." under another name than that of the maintained distribution
_base_ = (
    __import__("mmseg").__path__[0]
    + "/.mim/configs/swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py"
)

custom_imports = dict(imports=["visionssm.integrations.mmseg"])
model = dict(
    backbone=dict(_delete_=True, type="VisionSSM", name="vmamba_tiny_s1l8", out_indices=(0, 1, 2, 3)),
)
optim_wrapper = dict(
    constructor="VisionSSMLayerDecay",
    paramwise_cfg=dict(_delete_=True, layer_decay_rate=1.0),
)
vis_backends = [dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")]
visualizer = dict(vis_backends=vis_backends)
