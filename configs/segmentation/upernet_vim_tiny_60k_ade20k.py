"""UperNet on ADE20K with Vim-Ti, after
hustvl/Vim@dd0358a seg/configs/vim/upernet/upernet_vim_tiny_24_512_slide_60k.py and seg/scripts/ft_vim_tiny_upernet.sh.

Features are the stream of tokens after a block; the published code takes what the block adds to it.
"""

_base_ = "./_base_/upernet_vim_60k_ade20k.py"

model = dict(
    backbone=dict(name="vim_tiny", init_cfg=dict(type="Pretrained", checkpoint="vim_tiny.in1k")),
    neck=dict(embed_dim=192),
    decode_head=dict(in_channels=[192] * 4, channels=192),
    auxiliary_head=dict(in_channels=192),
)
optim_wrapper = dict(
    paramwise_cfg=dict(layer_decay_rate=0.92),
    optimizer=dict(lr=0.0002, weight_decay=0.1),
)
