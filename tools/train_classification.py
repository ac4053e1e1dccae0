"""Train an image classifier by a recipe.

python tools/train_classification.py configs/classification/digits_demo.yaml
python tools/train_classification.py configs/classification/vmamba_tiny_s1l8.yaml data.path=/data/imagenet
accelerate launch --num_processes 8 tools/train_classification.py RECIPE --resume auto optimizer.lr=5e-4
"""

from __future__ import annotations

import argparse

from accelerate import PartialState

from visionssm.engine.classification import ClassificationConfig, train_classifier
from visionssm.engine.command_line import print_table, user_errors
from visionssm.engine.config import load_config


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
        config = load_config(ClassificationConfig, args.recipe, overrides)
        metrics = train_classifier(config, resume=args.resume, cpu=args.cpu, changed_recipe=args.changed_recipe)
    if PartialState().is_main_process:
        print_table(
            ("class", "images", "recall", "precision"),
            [tuple(row.values()) for row in metrics["per_class"]],
            limit=20,
        )
        scores = metrics["scores"]
        print(f"{metrics['evaluated_on']} accuracy: {scores['top1']:.4f} (top-5 {scores['top5']:.4f})")
        print(f"predicted by the exported model, loaded again from {config.run.output}")
        print(f"best epoch {metrics['best_epoch']} of {metrics['epochs']}, {metrics['seconds']:.0f} s")
        print(f'load it with timm.create_model("local-dir:{config.run.output}", pretrained=True)')
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main()
