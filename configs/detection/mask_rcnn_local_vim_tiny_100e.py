"""Mask R-CNN in ViTDet's style with LocalVim-T, after
hunto/LocalMamba@75e5d1f detection/configs/local_mamba/vitdet_cascade_mask-rcnn_local_vim_tiny_lsj-100e.py.

The file's name there says cascade, its content does not.
"""

_base_ = "./_base_/mask_rcnn_vitdet_100e.py"

model = dict(
    backbone=dict(
        name="local_vim_tiny",
        drop_path_rate=0.1,
        init_cfg=dict(type="Pretrained", checkpoint="local_vim_tiny.in1k"),
    ),
    neck=dict(in_channels=192),
)
