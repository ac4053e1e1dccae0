"""Mask R-CNN 3x with Mamba2D-S, after
cocoalex00/Mamba2D@9acb361 downstream/configs/detection/mask-rcnn_M2D-S_fpn_ms_crop_3x_coco.py.
"""

_base_ = "./_base_/mask_rcnn_3x.py"

model = dict(
    backbone=dict(
        name="mamba2d_small",
        out_norm="none",
        drop_path_rate=0.2,
        init_cfg=dict(type="Pretrained", checkpoint="mamba2d_small.in1k"),
    ),
    neck=dict(in_channels=[96, 192, 384, 576], norm_cfg=dict(type="GN", num_groups=32, requires_grad=True)),
)
optim_wrapper = dict(clip_grad=dict(max_norm=1.0, norm_type=2))
