"""SSDLite with MobileMamba-B1 on images of 512, 120 epochs of 5 repetitions, after
lewandofskee/MobileMamba@0980f48 downstream/det/configs/ssd/ssdlite_mobilemamba_b1_8gpu_2lr_512_coco.py.

The authors' classifier weights must be fetched by hand: give the file as init_cfg's checkpoint.
"""

_base_ = "./ssdlite_mobile_mamba_b1_320.py"

size = (512, 512)
train_dataloader = {{_base_.train_dataloader}}
test_dataloader = {{_base_.test_dataloader}}
