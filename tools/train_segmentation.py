"""Train a segmentor by a config of MMEngine.

python tools/train_segmentation.py configs/segmentation/demo_upernet_vmamba_nano.py
python tools/train_segmentation.py configs/segmentation/upernet_vmamba_tiny_s1l8_160k_ade20k.py --precision bf16
torchrun --nnodes 2 --nproc_per_node 8 ... tools/train_segmentation.py CONFIG --launcher pytorch --resume auto

Logs, TensorBoard files and checkpoints go to the config's work_dir; after the last epoch also metrics.json, predictions.png and
config.json, by which tools/evaluate.py and tools/predict.py take the folder. Data is looked for under data/, as the packages
have it, or in the folder that --data names.
"""

from visionssm.engine.openmmlab_command import run

if __name__ == "__main__":
    if summary := run("segmentation", __doc__):
        print(summary)
