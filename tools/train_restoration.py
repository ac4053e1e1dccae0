"""Train an image restoration model by a recipe.

python tools/train_restoration.py configs/restoration/demo_mambair_nano_x2.yaml
python tools/train_restoration.py configs/restoration/mambair_light_x2.yaml 'data.train.clean=[/data/DIV2K/HR]'
accelerate launch --num_processes 8 tools/train_restoration.py RECIPE --resume auto optimizer.lr=1e-4
"""

from __future__ import annotations

import argparse

from accelerate import PartialState

from visionssm.engine.command_line import print_table, user_errors
from visionssm.engine.config import load_config
from visionssm.engine.restoration import RestorationConfig, train_restorer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="YAML file")
    parser.add_argument("overrides", nargs="*", help="dotted.key=value, in place of what the recipe says")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="the same, as an option")
    parser.add_argument("--resume", default="never", metavar="auto|PATH", help="continue from a checkpoint")
    parser.add_argument("--overwrite", action="store_true", help="start anew in a folder that holds a run")
    parser.add_argument("--changed-recipe", action="store_true", help="resume though the recipe has changed")
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU")
    args = parser.parse_intermixed_args()
    overrides = [*args.overrides, *args.set, *(["run.overwrite=true"] if args.overwrite else [])]
    with user_errors():
        config = load_config(RestorationConfig, args.recipe, overrides)
        metrics = train_restorer(config, resume=args.resume, cpu=args.cpu, changed_recipe=args.changed_recipe)
    if PartialState().is_main_process:
        keys = ("picture", "baseline_psnr", "psnr", "baseline_ssim", "ssim", "seconds")
        print_table(keys, [tuple(row[key] for key in keys) for row in metrics["per_picture"]], limit=20)
        scores = metrics["scores"]
        plain = "bicubic" if metrics["scale"] > 1 else "the degraded input"
        print(
            f"{metrics['evaluated_on']}: {scores['psnr']:.2f} dB / {scores['ssim']:.4f}, {plain} "
            f"{scores['baseline_psnr']:.2f} dB / {scores['baseline_ssim']:.4f}: "
            f"{scores['psnr'] - scores['baseline_psnr']:+.2f} dB"
        )
        print(f"restored by the exported model, loaded again from {config.run.output}; see its pictures.png")
        print(f"best at update {metrics['best_update']:,} of {metrics['updates']:,}, {metrics['seconds']:.0f} s")
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main()
