"""Cascade Mask R-CNN in ViTDet's style with Vim-S, after
hustvl/Vim@dd0358a det/projects/ViTDet/configs/COCO/cascade_mask_rcnn_vimdet_s_100ep.py.

As there, the class token is left out; layer decay as in the authors' later settings.
"""

_base_ = "./_base_/cascade_mask_rcnn_vitdet_100e.py"

model = dict(
    backbone=dict(
        name="vim_small",
        options=dict(class_token=False),
        drop_path_rate=0.1,
        init_cfg=dict(type="Pretrained", checkpoint="vim_small.in1k"),
    ),
    neck=dict(in_channels=384),
)
