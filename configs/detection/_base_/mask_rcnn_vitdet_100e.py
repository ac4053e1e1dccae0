"""Mask R-CNN in ViTDet's style on COCO: a plain backbone, a simple feature pyramid, images of 1024, 100 epochs.

Paper: arXiv 2203.16527. Autocast: --precision fp16.
"""

_base_ = [
    __import__("mmdet").__path__[0] + "/.mim/configs/" + name
    for name in ("_base_/models/mask-rcnn_r50_fpn.py", "common/lsj-100e_coco-instance.py")
]

custom_imports = dict(imports=["visionssm.integrations.mmdet"])
norm = dict(type="LayerNorm2d")
size = (1024, 1024)

model = dict(
    data_preprocessor=dict(batch_augments=[dict(type="BatchFixedSizePad", size=size, pad_mask=True)]),
    backbone=dict(_delete_=True, type="VisionSSM", name="vim_tiny", img_size=1024),
    neck=dict(_delete_=True, type="SimplePyramid", in_channels=192, out_channels=256, num_outs=5),
    rpn_head=dict(num_convs=2),
    roi_head=dict(
        bbox_head=dict(type="Shared4Conv1FCBBoxHead", conv_out_channels=256, norm_cfg=norm),
        mask_head=dict(norm_cfg=norm),
    ),
)

test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=size, keep_ratio=True),
    dict(type="Pad", size=size, pad_val=dict(img=(114, 114, 114))),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
train_dataloader = dict(batch_size=4, dataset=dict(times=1))  # on 16 GPUs
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

steps = 184375
train_cfg = dict(_delete_=True, type="IterBasedTrainLoop", max_iters=steps, val_interval=5000)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=250),
    dict(type="MultiStepLR", begin=0, end=steps, by_epoch=False, milestones=[163889, 177546], gamma=0.1),
]
# LocalVim's: 0.7 over the depth of a ViT-B; here the rate that gives the same sum over 20 blocks
optim_wrapper = dict(
    constructor="VisionSSMLayerDecay",
    paramwise_cfg=dict(layer_decay_rate=0.807),
    optimizer=dict(_delete_=True, type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=dict(max_norm=35, norm_type=2),
)
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=5000, max_keep_ckpts=5))
log_processor = dict(by_epoch=False)
vis_backends = [dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")]
visualizer = dict(vis_backends=vis_backends)
