"""Cascade Mask R-CNN in ViTDet's style on COCO: a plain backbone, a simple feature pyramid, images of 1024, 100 epochs.

Paper: arXiv 2203.16527. Autocast: --precision fp16.
"""

_base_ = [
    __import__("mmdet").__path__[0] + "/.mim/configs/" + name
    for name in ("_base_/models/cascade-mask-rcnn_r50_fpn.py", "common/lsj-100e_coco-instance.py")
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
        bbox_head=[
            dict(
                type="Shared4Conv1FCBBoxHead",
                in_channels=256,
                conv_out_channels=256,
                fc_out_channels=1024,
                roi_feat_size=7,
                num_classes=80,
                norm_cfg=norm,
                reg_class_agnostic=True,
                bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=stds),
                loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
                loss_bbox=dict(type="SmoothL1Loss", beta=1.0, loss_weight=1.0),
            )
            for stds in ([0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067])
        ],
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
optim_wrapper = dict(
    constructor="VisionSSMLayerDecay",
    paramwise_cfg=dict(layer_decay_rate=0.837),
    optimizer=dict(_delete_=True, type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.1),
)
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=5000, max_keep_ckpts=5))
log_processor = dict(by_epoch=False)
vis_backends = [dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")]
visualizer = dict(vis_backends=vis_backends)
