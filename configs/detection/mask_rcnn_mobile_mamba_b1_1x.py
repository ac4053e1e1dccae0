"""Mask R-CNN 1x with MobileMamba-B1, after
lewandofskee/MobileMamba@0980f48 downstream/det/configs/mask_rcnn/mask-rcnn_mobilemamba_b1_fpn_1x_coco.py.

The authors' classifier weights must be fetched by hand: give the file as init_cfg's checkpoint.
"""

_base_ = [
    __import__("mmdet").__path__[0] + "/.mim/configs/_base_/" + name
    for name in (
        "models/mask-rcnn_r50_fpn.py",
        "datasets/coco_instance.py",
        "schedules/schedule_1x.py",
        "default_runtime.py",
    )
]

custom_imports = dict(imports=["visionssm.integrations.mmdet"])
model = dict(
    backbone=dict(
        _delete_=True,
        type="VisionSSM",
        name="mobile_mamba_b1",
        out_indices=(0, 1, 2),
        out_norm="none",
        drop_path_rate=0.03,
        norm_eval=True,
        init_cfg=dict(type="Pretrained", checkpoint="mobile_mamba_b1.in1k"),
    ),
    neck=dict(
        _delete_=True,
        type="FinerFPN",
        in_channels=[200, 376, 448],
        out_channels=256,
        num_finer=2,
        num_outs=5,
    ),
)
train_dataloader = dict(batch_size=4)  # on 4 GPUs
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-5, by_epoch=False, begin=0, end=500),
    dict(type="CosineAnnealingLR", by_epoch=True, begin=6, end=12, T_max=6, eta_min=0.0),
]
optim_wrapper = dict(
    constructor="VisionSSMLayerDecay",
    paramwise_cfg=dict(layer_decay_rate=1.0),
    optimizer=dict(_delete_=True, type="AdamW", lr=0.0002, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=dict(max_norm=0.1, norm_type=2),
)
vis_backends = [dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")]
visualizer = dict(vis_backends=vis_backends)
