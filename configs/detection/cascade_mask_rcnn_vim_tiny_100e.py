"""Cascade Mask R-CNN in ViTDet's style with Vim-Ti, after
hustvl/Vim@dd0358a det/projects/ViTDet/configs/COCO/cascade_mask_rcnn_vimdet_t_100ep.py.

As there, the class token is left out; layer decay as in the authors' later settings.
"""

_base_ = "./_base_/cascade_mask_rcnn_vitdet_100e.py"

model = dict(
    backbone=dict(
        name="vim_tiny",
        options=dict(class_token=False),
        drop_path_rate=0.1,
        init_cfg=dict(type="Pretrained", checkpoint="vim_tiny.in1k"),
    ),
    neck=dict(in_channels=192),
)
