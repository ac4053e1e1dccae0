"""Mask R-CNN 1x with Mamba2D-N, after
cocoalex00/Mamba2D@9acb361 downstream/configs/detection/mask-rcnn_M2D-N_fpn_1x_coco.py.
"""

_base_ = "./_base_/mask_rcnn_1x.py"

model = dict(
    backbone=dict(
        name="mamba2d_nano",
        out_norm="none",
        drop_path_rate=0.175,
        init_cfg=dict(type="Pretrained", checkpoint="mamba2d_nano.in1k"),
    ),
    neck=dict(in_channels=[32, 64, 160, 256], norm_cfg=dict(type="GN", num_groups=32, requires_grad=True)),
)
optim_wrapper = dict(clip_grad=dict(max_norm=1.0, norm_type=2))
