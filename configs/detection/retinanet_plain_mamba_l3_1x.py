"""RetinaNet 1x with PlainMamba-L3 in an adapter, after
ChenhongyiYang/PlainMamba@0975a1d downstream/mmdetection/plain_mamba_det_configs/retinanet/l3_retinanet_1x.py.
"""

_base_ = "./_base_/retinanet_1x.py"

model = dict(
    backbone=dict(
        _delete_=True,
        type="VisionSSMAdapter",
        name="plain_mamba_l3",
        interactions=(9, 9, 9, 9),
        heads=8,
        drop_path_rate=0.3,
        init_cfg=dict(type="Pretrained", checkpoint="plain_mamba_l3.in1k"),
    ),
    neck=dict(
        in_channels=[448] * 4,
        start_level=1,
        add_extra_convs="on_output",
        norm_cfg=dict(type="SyncBN", requires_grad=True),
    ),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type="MultiStepLR", begin=0, end=12, by_epoch=True, milestones=[8, 11], gamma=0.1),
]
sync_bn = "torch"
optim_wrapper = dict(clip_grad=dict(max_norm=35, norm_type=2))
find_unused_parameters = True  # the finest map is not read
