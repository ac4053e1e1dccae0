"""UperNet on ADE20K with PlainMamba-L2, after
ChenhongyiYang/PlainMamba@0975a1d downstream/mmsegmentation/plain_mamba_seg_configs/l2_upernet.py.
"""

_base_ = "./_base_/upernet_plain_160k_ade20k.py"

model = dict(
    backbone=dict(
        name="plain_mamba_l2",
        out_indices=(5, 11, 17, 23),
        out_norm="model",
        drop_path_rate=0.2,
        init_cfg=dict(type="Pretrained", checkpoint="plain_mamba_l2.in1k"),
    ),
    decode_head=dict(in_channels=[384] * 4),
    auxiliary_head=dict(in_channels=384),
)
sync_bn = "torch"
