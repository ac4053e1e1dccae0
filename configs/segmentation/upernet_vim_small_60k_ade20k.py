"""UperNet on ADE20K with Vim-S, after
hustvl/Vim@dd0358a seg/configs/vim/upernet/upernet_vim_small_24_512_slide_60k.py and seg/scripts/ft_vim_small_upernet.sh.

As there, features are the stream of tokens after a block.
"""

_base_ = "./_base_/upernet_vim_60k_ade20k.py"

model = dict(
    backbone=dict(name="vim_small", init_cfg=dict(type="Pretrained", checkpoint="vim_small.in1k")),
    neck=dict(embed_dim=384),
    decode_head=dict(in_channels=[384] * 4, channels=384),
    auxiliary_head=dict(in_channels=384),
)
optim_wrapper = dict(
    paramwise_cfg=dict(layer_decay_rate=0.95),
    optimizer=dict(lr=0.0001, weight_decay=0.05),
)
