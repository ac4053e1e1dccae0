"""UperNet on ADE20K with Vim: maps of four blocks brought to the strides 4 to 32, 60k steps of 32 crops, tested by windows."""

_base_ = "./upernet_plain_160k_ade20k.py"

model = dict(
    backbone=dict(
        name="vim_tiny",
        options=dict(class_token=False),
        out_norm="none",
        img_size=512,
        drop_path_rate=0.0,
    ),
    neck=dict(_delete_=True, type="Feature2Pyramid", embed_dim=192, rescales=[4, 2, 1, 0.5]),
    auxiliary_head=dict(in_index=2),
    test_cfg=dict(mode="slide", crop_size=(512, 512), stride=(341, 341)),
)
steps = 60000
train_cfg = dict(max_iters=steps, val_interval=6000)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type="PolyLR", eta_min=0.0, power=1.0, begin=1500, end=steps, by_epoch=False),
]
train_dataloader = dict(batch_size=8)  # on 4 GPUs
default_hooks = dict(checkpoint=dict(interval=6000))
