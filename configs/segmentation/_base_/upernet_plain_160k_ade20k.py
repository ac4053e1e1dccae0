"""UperNet on ADE20K over four maps of a plain backbone, all of its own stride, 160k steps: MMSegmentation's recipe for ViT."""

_base_ = __import__("mmseg").__path__[0] + "/.mim/configs/vit/vit_vit-b16_mln_upernet_8xb2-160k_ade20k-512x512.py"

custom_imports = dict(imports=["visionssm.integrations.mmseg"])
model = dict(
    pretrained=None,
    backbone=dict(_delete_=True, type="VisionSSM", name="plain_mamba_l1", out_indices=(5, 11, 17, 23)),
    neck=None,
)
optim_wrapper = dict(
    constructor="VisionSSMLayerDecay",
    paramwise_cfg=dict(_delete_=True, layer_decay_rate=1.0),
)
vis_backends = [dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")]
visualizer = dict(vis_backends=vis_backends)
