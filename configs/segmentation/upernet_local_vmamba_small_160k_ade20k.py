"""UperNet on ADE20K with LocalVMamba-S, after
hunto/LocalMamba@75e5d1f segmentation/configs/local_mamba/upernet_local_vssm_small_8xb2-160k_ade20k-512x512.py.
"""

_base_ = "./_base_/upernet_160k_ade20k.py"

model = dict(
    backbone=dict(
        name="local_vmamba_small",
        drop_path_rate=0.2,
        init_cfg=dict(type="Pretrained", checkpoint="local_vmamba_small.in1k"),
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
