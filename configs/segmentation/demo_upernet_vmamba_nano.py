"""A small UperNet that learns to name the pixels of handwritten digits on photographs: mIoU 0.79 after minutes on CPU.

python tools/train_segmentation.py configs/segmentation/demo_upernet_vmamba_nano.py
"""

_base_ = "./_base_/upernet_160k_ade20k.py"

# Drawn by the tool where they are not there yet. Where ink may be lighter or darker than its ground, a loss on pixels long leaves
# the classes at chance (a detector's does not: its boxes align the digits); light ink is learnt much sooner.
digit_scenes = dict(root="runs/light_digit_scenes", training=1200, digits=(2, 5), sizes=(32, 60), ink="light")
classes = ("background", *"0123456789")
palette = [[30, 30, 30], [230, 25, 75], [60, 180, 75], [255, 225, 25], [0, 130, 200], [245, 130, 48]]
palette += [[145, 30, 180], [70, 240, 240], [240, 50, 230], [210, 245, 60], [250, 190, 212]]
size, width, steps = (128, 128), 64, 2000

model = dict(
    data_preprocessor=dict(size=size),
    backbone=dict(name="vmamba_nano"),
    # nine pixels in ten are background
    decode_head=dict(
        in_channels=[32, 64, 128, 256],
        channels=width,
        num_classes=11,
        loss_decode=dict(class_weight=[0.3] + [1.0] * 10),
    ),
    auxiliary_head=dict(
        in_channels=128,
        channels=width,
        num_classes=11,
        loss_decode=dict(class_weight=[0.3] + [1.0] * 10),
    ),
)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", reduce_zero_label=True),
    dict(
        type="Albu",
        transforms=[dict(type="RandomBrightnessContrast", p=0.5), dict(type="HueSaturationValue", p=0.5)],
        keymap=dict(img="image", gt_seg_map="mask"),
    ),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", reduce_zero_label=True),
    dict(type="PackSegInputs"),
]
data = dict(
    type="BaseSegDataset",
    data_root=digit_scenes["root"],
    metainfo=dict(classes=classes, palette=palette),
    img_suffix=".png",
    seg_map_suffix=".png",
    reduce_zero_label=True,
)
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        _delete_=True,
        **data,
        data_prefix=dict(img_path="images/training", seg_map_path="annotations/training"),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=10,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        _delete_=True,
        **data,
        data_prefix=dict(img_path="images/validation", seg_map_path="annotations/validation"),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

train_cfg = dict(max_iters=steps, val_interval=500)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type="CosineAnnealingLR", begin=0, end=steps, T_max=steps, by_epoch=False),
]
optim_wrapper = dict(optimizer=dict(lr=2e-3), clip_grad=dict(max_norm=10))
default_hooks = dict(logger=dict(interval=25), checkpoint=dict(interval=500, max_keep_ckpts=2, save_best="mIoU"))
work_dir = "runs/demo_segmentation"
randomness = dict(seed=0)
