"""Classify images with a trained model: a table, and on request JSON and an annotated contact sheet.

python tools/predict.py runs/demo photo.png folder/ "scans/**/*.png" --sheet sheet.png --json predictions.json
"""

from __future__ import annotations

import argparse
import json

from visionssm.engine.checkpoint import write_atomic
from visionssm.engine.command_line import add_device_options, open_device, print_table, user_errors
from visionssm.engine.models import load_classifier
from visionssm.engine.plots import plot_contact_sheet
from visionssm.engine.prediction import find_images, predict_images


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="run folder, or timm name whose registered weights are used")
    parser.add_argument("inputs", nargs="+", help="image files, folders, glob patterns")
    parser.add_argument("--checkpoint", help="weight file for a timm name")
    parser.add_argument("--top", type=int, default=3, help="classes per image (default 3)")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--skip-corrupt", action="store_true", help="name unreadable images and go on")
    parser.add_argument("--json", metavar="FILE", help="write all predictions")
    parser.add_argument("--sheet", metavar="PNG", help="write the images with their predictions")
    parser.add_argument(
        "--sheet-images", type=int, default=48, help="at most so many on the sheet (default 48)"
    )
    add_device_options(parser)
    args = parser.parse_args()
    with user_errors():
        accelerator = open_device(args)
        paths = find_images(args.inputs)
        model = load_classifier(args.model, checkpoint=args.checkpoint)
        predictions, problems = predict_images(
            model,
            paths,
            accelerator=accelerator,
            top=args.top,
            batch_size=args.batch_size,
            skip_corrupt=args.skip_corrupt,
        )
        rows = [
            (p.path, *(f"{name} {share:.3f}" for name, share in zip(p.classes, p.probabilities, strict=True)))
            for p in predictions
        ]
        print_table(("image", *(f"#{i + 1}" for i in range(len(rows[0]) - 1))), rows)
        for problem in problems:
            print(f"skipped: {problem}")
        if args.json:
            content = [
                {"image": p.path, "classes": p.classes, "probabilities": p.probabilities} for p in predictions
            ]
            write_atomic(
                args.json, json.dumps({"predictions": content, "skipped": problems}, indent=2).encode()
            )
        if args.sheet:
            shown = predictions[: args.sheet_images]
            captions = [f"{p.classes[0]} {p.probabilities[0]:.2f}" for p in shown]
            plot_contact_sheet([p.thumbnail for p in shown], captions, args.sheet)


if __name__ == "__main__":
    main()
