"""UperNet on ADE20K with PlainMamba-L1, after
ChenhongyiYang/PlainMamba@0975a1d downstream/mmsegmentation/plain_mamba_seg_configs/l1_upernet.py.
"""

_base_ = "./_base_/upernet_plain_160k_ade20k.py"

model = dict(
    backbone=dict(
        name="plain_mamba_l1",
        out_indices=(5, 11, 17, 23),
        out_norm="model",
        drop_path_rate=0.1,
        init_cfg=dict(type="Pretrained", checkpoint="plain_mamba_l1.in1k"),
    ),
    decode_head=dict(in_channels=[192] * 4),
    auxiliary_head=dict(in_channels=192),
)
sync_bn = "torch"
