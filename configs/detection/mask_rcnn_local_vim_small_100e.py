"""Mask R-CNN in ViTDet's style with LocalVim-S, after
hunto/LocalMamba@75e5d1f detection/configs/local_mamba/vitdet_cascade_mask-rcnn_local_vim_small_lsj-100e.py.

The file's name there says cascade, its content does not. No classifier weights were released to start from.
"""

_base_ = "./_base_/mask_rcnn_vitdet_100e.py"

model = dict(
    backbone=dict(
        name="local_vim_small",
        drop_path_rate=0.1,
    ),
    neck=dict(in_channels=384),
)
