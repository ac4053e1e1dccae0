"""UperNet on ADE20K with LocalVim-T, after
hunto/LocalMamba@75e5d1f segmentation/configs/local_mamba/upernet_local_vim-tiny_8xb2-160k_ade20k-512x512.py.
"""

_base_ = "./_base_/upernet_plain_160k_ade20k.py"

model = dict(
    backbone=dict(
        name="local_vim_tiny",
        out_indices=(4, 9, 14, 19),
        img_size=512,
        drop_path_rate=0.1,
        init_cfg=dict(type="Pretrained", checkpoint="local_vim_tiny.in1k"),
    ),
    decode_head=dict(in_channels=[192] * 4),
    auxiliary_head=dict(in_channels=192),
)
