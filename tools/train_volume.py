"""Train a segmentation network for volumes by a recipe.

python tools/train_volume.py configs/volume/demo.yaml
python tools/train_volume.py configs/volume/segmamba_brats2023.yaml data.path=/data/BraTS2023
accelerate launch --num_processes 2 tools/train_volume.py RECIPE --resume auto run.precision=bf16
"""

from __future__ import annotations

import argparse

from accelerate import PartialState

from visionssm.engine.command_line import print_table, user_errors
from visionssm.engine.config import load_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="YAML file")
    parser.add_argument("overrides", nargs="*", help="dotted.key=value, in place of what the recipe says")
    parser.add_argument("--resume", default="never", metavar="auto|PATH", help="continue from a checkpoint")
    parser.add_argument("--overwrite", action="store_true", help="start anew in a folder that holds a run")
    parser.add_argument("--changed-recipe", action="store_true", help="resume though the recipe has changed")
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU")
    args = parser.parse_intermixed_args()
    overrides = [*args.overrides, *(["run.overwrite=true"] if args.overwrite else [])]
    with user_errors():
        from visionssm.engine.volume import VolumeConfig, train_volume  # needs visionssm[medical]

        config = load_config(VolumeConfig, args.recipe, overrides)
        metrics = train_volume(config, resume=args.resume, cpu=args.cpu, changed_recipe=args.changed_recipe)
    if PartialState().is_main_process:
        scores = metrics["scores"]
        rows = [(name, scores["dice"][name], scores["hd95"][name]) for name in scores["dice"]]
        print_table(("region", "Dice", "HD95 mm"), [*rows, ("mean", scores["mean_dice"], scores["mean_hd95"])])
        print(f"{metrics['evaluated_on']}: mean Dice {scores['mean_dice']:.4f} over {scores['cases']} cases")
        print(f"best epoch {metrics['best_epoch']} of {metrics['epochs']}, {metrics['seconds']:.0f} s")
        print(f"predictions and pictures: {config.run.output}/predictions")
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main()
