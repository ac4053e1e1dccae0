"""Evaluate a classifier on class folders, a Hugging Face data set or the embedded digits: top-1, top-5, per class.

python tools/evaluate.py runs/demo --data digits --split test
python tools/evaluate.py vmamba_tiny_s1l8 --data /data/imagenet --split val --json scores.json
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from visionssm.data.classification import DataConfig, LabelledImages, build_loader, open_source
from visionssm.data.errors import DataError
from visionssm.data.sampling import EvalBatches
from visionssm.data.transforms import build_eval_transform
from visionssm.engine.checkpoint import write_atomic
from visionssm.engine.command_line import add_device_options, open_device, print_table, user_errors
from visionssm.engine.evaluation import evaluate_classifier
from visionssm.engine.models import input_stats, load_classifier
from visionssm.engine.plots import plot_confusion


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="run folder, or timm name whose registered weights are used")
    parser.add_argument("--checkpoint", help="weight file for a timm name")
    parser.add_argument(
        "--data", required=True, help='"digits", "hfds/<name>", or a folder that holds the splits'
    )
    parser.add_argument("--split", default="validation", help="which part (default: validation)")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--image-size", type=int, help="in place of the model's own test size")
    parser.add_argument("--crop-pct", type=float, help="in place of the model's own")
    parser.add_argument("--skip-corrupt", action="store_true", help="name unreadable images and go on")
    parser.add_argument("--classes", type=int, default=50, help="print at most so many classes (default 50)")
    parser.add_argument("--json", metavar="FILE", help="write all figures")
    parser.add_argument("--confusion", metavar="PNG", help="draw the confusion matrix")
    add_device_options(parser)
    args = parser.parse_args()
    with user_errors():
        accelerator = open_device(args)
        model: Any = load_classifier(args.model, checkpoint=args.checkpoint).to(accelerator.device)
        embedded = args.data == "digits" or args.data.startswith("hfds/")
        data = DataConfig(name=args.data if embedded else "folder", path=None if embedded else args.data)
        source = open_source(data, args.split, classes=model.pretrained_cfg.get("label_names"))
        if len(source.classes) != model.num_classes:
            raise DataError(
                f"{args.data} has {len(source.classes)} classes, {args.model} {model.num_classes} outputs"
            )
        transform = build_eval_transform(input_stats(model, img_size=args.image_size, crop_pct=args.crop_pct))
        loader = build_loader(
            LabelledImages(source, transform=lambda image, seed: transform(image)),
            EvalBatches(length=len(source), batch_size=args.batch_size),
            workers=args.workers,
            skip_corrupt=args.skip_corrupt,
            report=lambda problem: print(f"skipped: {problem}"),
        )
        start = time.perf_counter()
        scores = evaluate_classifier(model, loader, num_classes=model.num_classes, accelerator=accelerator)
        rate = scores.count / (time.perf_counter() - start)
        rows = scores.per_class(source.classes)
        print_table(
            ("class", "images", "recall", "precision"), [tuple(r.values()) for r in rows], limit=args.classes
        )
        print(f"{scores.count} images, {rate:,.0f} img/s, {scores.skipped} skipped")
        print(
            f"{args.split} accuracy: top-1 {scores.top1:.4f}  top-5 {scores.top5:.4f}  loss {scores.loss:.4f}"
        )
        if args.json:
            result = {"model": args.model, "data": args.data, "split": args.split, **scores.summary()}
            result |= {"per_class": rows, "confusion": scores.confusion.tolist()}
            write_atomic(args.json, json.dumps(result, indent=2).encode())
        if args.confusion:
            plot_confusion(scores.confusion.numpy(), source.classes, args.confusion, title=args.model)


if __name__ == "__main__":
    main()
