"""UperNet on ADE20K with PlainMamba-L3, after
ChenhongyiYang/PlainMamba@0975a1d downstream/mmsegmentation/plain_mamba_seg_configs/l3_upernet.py.
"""

_base_ = "./_base_/upernet_plain_160k_ade20k.py"

model = dict(
    backbone=dict(
        name="plain_mamba_l3",
        out_indices=(8, 17, 26, 35),
        out_norm="model",
        drop_path_rate=0.3,
        init_cfg=dict(type="Pretrained", checkpoint="plain_mamba_l3.in1k"),
    ),
    decode_head=dict(in_channels=[448] * 4),
    auxiliary_head=dict(in_channels=448),
)
sync_bn = "torch"
