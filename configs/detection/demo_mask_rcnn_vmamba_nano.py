"""A small Mask R-CNN that learns to find, name and outline handwritten digits on photographs: minutes on two CPU cores.

python tools/train_detection.py configs/detection/demo_mask_rcnn_vmamba_nano.py
"""

_base_ = "./_base_/mask_rcnn_1x.py"

digit_scenes = dict(root="runs/digit_scenes")  # drawn by the tool where they are not there yet
classes = tuple("0123456789")
side, width, epochs = 128, 48, 10

model = dict(
    backbone=dict(name="vmamba_nano"),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=width, num_outs=4),
    rpn_head=dict(
        in_channels=width,
        feat_channels=width,
        anchor_generator=dict(scales=[6], ratios=[1.0, 1.6], strides=[4, 8, 16, 32]),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=width),
        bbox_head=dict(in_channels=width, fc_out_channels=256, num_classes=10),
        mask_roi_extractor=dict(out_channels=width),
        mask_head=dict(in_channels=width, conv_out_channels=width, num_convs=2, num_classes=10),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=200, max_per_img=100),
        rcnn=dict(sampler=dict(num=64)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=100), rcnn=dict(max_per_img=20)),
)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(
        type="Albu",
        transforms=[dict(type="RandomBrightnessContrast", p=0.5), dict(type="HueSaturationValue", p=0.5)],
        keymap=dict(img="image"),  # colours alone: boxes and masks stay where they are
    ),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(side, side), keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
data = dict(type="CocoDataset", data_root=digit_scenes["root"], metainfo=dict(classes=classes))
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        _delete_=True,
        **data,
        ann_file="instances_training.json",
        data_prefix=dict(img="images/training"),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        _delete_=True,
        **data,
        ann_file="instances_validation.json",
        data_prefix=dict(img="images/validation"),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=digit_scenes["root"] + "/instances_validation.json")
test_evaluator = val_evaluator

train_cfg = dict(max_epochs=epochs, val_interval=5)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type="CosineAnnealingLR", begin=0, end=epochs, T_max=epochs, by_epoch=True, convert_to_iter_based=True),
]
optim_wrapper = dict(optimizer=dict(lr=1e-3), clip_grad=dict(max_norm=10))
default_hooks = dict(
    logger=dict(interval=25), checkpoint=dict(interval=5, max_keep_ckpts=2, save_best="coco/bbox_mAP_50")
)
work_dir = "runs/demo_detection"
randomness = dict(seed=0)
