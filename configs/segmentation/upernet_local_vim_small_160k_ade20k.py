"""UperNet on ADE20K with LocalVim-S, after
hunto/LocalMamba@75e5d1f segmentation/configs/local_mamba/upernet_local_vim-small_8xb2-160k_ade20k-512x512.py.

No classifier weights were released to start from.
"""

_base_ = "./_base_/upernet_plain_160k_ade20k.py"

model = dict(
    backbone=dict(
        name="local_vim_small",
        out_indices=(4, 9, 14, 19),
        img_size=512,
        drop_path_rate=0.1,
    ),
    decode_head=dict(in_channels=[384] * 4),
    auxiliary_head=dict(in_channels=384),
)
