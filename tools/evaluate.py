"""Measure a trained model: accuracy, COCO AP or mIoU, PSNR and SSIM of restored pictures, Dice and HD95 of volumes.

python tools/evaluate.py runs/demo --data digits --split test
python tools/evaluate.py vmamba_tiny_s1l8 --data /data/imagenet --split val --json scores.json
python tools/evaluate.py runs/demo_restoration --data photographs --split test --pictures compared.png
python tools/evaluate.py mambair_light_x2 --checkpoint weights.pth --data Set5/HR --degraded Set5/LR_bicubic/X2 --template "{}x2"
python tools/evaluate.py runs/demo_detection --pictures found.png
python tools/evaluate.py configs/detection/mask_rcnn_vmamba_tiny_s1l8_1x.py --checkpoint weights.pth --data /data/coco
python tools/evaluate.py runs/segmamba_brats2023 --data /data/BraTS2023 --split test --predictions labels

Restored pictures are compared at 8 bits: on luma unless --rgb is given, and without a border as wide as the scale where the size
changes. They are cut into tiles as the published figures were made. Volumes are compared on their own voxels, region by region.
Detectors and segmentors, a run or a config with its weights, are measured on their config's test split by the packages' metrics.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np

from visionssm.data.classification import DataConfig, LabelledImages, build_loader, open_source
from visionssm.data.degradations import DegradationConfig
from visionssm.data.errors import DataError, UserError
from visionssm.data.restoration import SplitConfig, open_pictures
from visionssm.data.sampling import EvalBatches
from visionssm.data.seeding import seeded
from visionssm.data.transforms import build_plain_transform
from visionssm.engine.checkpoint import write_atomic
from visionssm.engine.command_line import (
    Job,
    add_device_options,
    open_device,
    positive,
    print_table,
    run_job,
    user_errors,
)
from visionssm.engine.evaluation import evaluate_classifier
from visionssm.engine.models import input_stats, load_classifier, task_of
from visionssm.engine.plots import plot_confusion, plot_restoration
from visionssm.engine.restoration import MetricConfig, evaluate_restorer
from visionssm.engine.restorers import load_restorer
from visionssm.engine.tiling import Tiling, self_ensemble


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="run folder, or a model's name, whose registered weights are used")
    parser.add_argument("--checkpoint", help="weight file for a model's name or a config")
    parser.add_argument(
        "--data",
        help='"digits", "hfds/<name>" or a folder that holds the splits; to restore: "photographs" or clean pictures; '
        "volumes: a folder or list as in training; detection, segmentation: data_root, in place of the config's",
    )
    parser.add_argument("--json", metavar="FILE", help="write all figures")
    group = parser.add_argument_group("all but detection, segmentation", argument_default=argparse.SUPPRESS)
    group.add_argument("--split", help="which part (default: validation); volumes: also all")
    group = parser.add_argument_group("classification", argument_default=argparse.SUPPRESS)
    group.add_argument("--batch-size", type=positive)
    group.add_argument("--workers", type=int)
    group.add_argument("--image-size", type=positive, help="in place of the model's own test size")
    group.add_argument("--crop-pct", type=float, help="in place of the model's own")
    group.add_argument("--skip-corrupt", action="store_true", help="name unreadable images and go on")
    group.add_argument("--classes", type=positive, help="print at most so many classes (default 50)")
    group.add_argument("--confusion", metavar="PNG", help="draw the confusion matrix")
    group = parser.add_argument_group("restoration", argument_default=argparse.SUPPRESS)
    group.add_argument("--degraded", metavar="FOLDER", help="the same pictures degraded; else it is done here")
    group.add_argument("--template", help="name of a degraded file, such as {}x2 (default {})")
    group.add_argument("--noise", type=float, help="sigma of 255, in place of the training's")
    group.add_argument("--jpeg", type=int, help="quality, in place of the training's")
    group.add_argument("--rgb", action="store_true", help="compare all channels, as for colour denoising")
    group.add_argument("--border", type=int, help="pixels cut off (default: the scale, 0 where the size stays)")
    group.add_argument("--tiles", choices=("published", "tiles", "whole"), help="how to cut (default published)")
    group.add_argument("--tile", type=int, help="side, with --tiles tiles (default 192)")
    group.add_argument("--overlap", type=int, help="with --tiles tiles (default 16)")
    group.add_argument("--ensemble", action="store_true", help="mean over the 8 symmetries: the papers' '+'")
    group = parser.add_argument_group("restoration, detection, segmentation", argument_default=argparse.SUPPRESS)
    group.add_argument("--pictures", metavar="PNG", help="draw the first pictures side by side")
    group = parser.add_argument_group("detection, segmentation", argument_default=argparse.SUPPRESS)
    group.add_argument("--cfg-options", nargs="+", metavar="KEY=VALUE", help="in place of what the config says")
    group = parser.add_argument_group("volumes", argument_default=argparse.SUPPRESS)
    group.add_argument(
        "--recipe", metavar="YAML", help="of the model, where it is given by name: channels, classes, windows"
    )
    group.add_argument("--layout", choices=("msd", "brats", "list"), help="of --data, in place of the training's")
    group.add_argument("--roi", type=int, nargs=3, metavar="VOXELS", help="sliding window, in place of the training's")
    group.add_argument("--window-overlap", type=float, metavar="SHARE", help="of neighbouring windows, 0 to 1")
    group.add_argument("--mirror", action="store_true", help="mean over the 8 flips of every window")
    group.add_argument("--predictions", metavar="FOLDER", help="also write labels and pictures")
    add_device_options(parser)
    return parser.parse_args()


def classify(args: argparse.Namespace) -> None:
    accelerator = open_device(args)
    model: Any = load_classifier(args.model, checkpoint=args.checkpoint).to(accelerator.device)
    embedded = args.data == "digits" or args.data.startswith("hfds/")
    data = DataConfig(
        name=args.data if embedded else "folder",
        path=None if embedded else args.data,
        crop_pct=args.crop_pct,
        workers=args.workers,
    )
    source = open_source(data, args.split, classes=model.pretrained_cfg.get("label_names"))
    if len(source.classes) != model.num_classes:
        raise DataError(f"{args.data} has {len(source.classes)} classes, {args.model} {model.num_classes} outputs")
    transform = build_plain_transform(input_stats(model, img_size=args.image_size, crop_pct=args.crop_pct))
    loader = build_loader(
        LabelledImages(source, transform=transform),
        EvalBatches(length=len(source), batch_size=args.batch_size),
        workers=args.workers,
        skip_corrupt=args.skip_corrupt,
        report=lambda problem: print(f"skipped: {problem}"),
    )
    start = time.perf_counter()
    scores = evaluate_classifier(model, loader, num_classes=model.num_classes, accelerator=accelerator)
    rate = scores.count / (time.perf_counter() - start)
    rows = scores.per_class(source.classes)
    print_table(("class", "images", "recall", "precision"), [tuple(r.values()) for r in rows], limit=args.classes)
    print(f"{scores.count} images, {rate:,.0f} img/s, {scores.skipped} skipped")
    print(f"{args.split} accuracy: top-1 {scores.top1:.4f}  top-5 {scores.top5:.4f}  loss {scores.loss:.4f}")
    if args.json:
        result = {"model": args.model, "data": args.data, "split": args.split, **scores.summary()}
        result |= {"per_class": rows, "confusion": scores.confusion.tolist()}
        write_atomic(args.json, json.dumps(result, indent=2).encode())
    if args.confusion:
        plot_confusion(scores.confusion.numpy(), source.classes, args.confusion, title=args.model)


def split_of(args: argparse.Namespace) -> SplitConfig:
    if args.split != "validation" and args.data != "photographs":
        raise UserError(f"--split {args.split} is for the embedded photographs; {args.data} is measured as a whole")
    if args.degraded is None:
        if args.template is not None:
            raise UserError("--template names the files of --degraded, which is not given")
        return SplitConfig(clean=(args.data,))
    return SplitConfig(clean=(args.data,), degraded=(args.degraded,), template=args.template or "{}")


def tiling_of(args: argparse.Namespace) -> Tiling:
    given = {name: value for name in ("tile", "overlap") if (value := getattr(args, name)) is not None}
    if given and args.tiles != "tiles":
        raise UserError(f"--{next(iter(given))} needs --tiles tiles")
    return Tiling(mode=args.tiles, **given)


def restore(args: argparse.Namespace) -> None:
    accelerator = open_device(args)
    restorer = load_restorer(args.model, checkpoint=args.checkpoint)
    degradation = restorer.degradation
    if args.noise is not None or args.jpeg is not None:
        degradation = DegradationConfig(noise=args.noise, jpeg=args.jpeg)
    if args.degraded is None and restorer.scale == 1 and degradation == DegradationConfig():
        raise DataError(f"say what {args.model} removes: --degraded FOLDER, --noise SIGMA or --jpeg QUALITY")
    source = open_pictures(split_of(args), args.split, scale=restorer.scale, channels=restorer.channels)
    tiling = tiling_of(args)
    shown: list[Any] = []

    def keep(name: str, *rest: Any) -> None:
        if args.pictures and len(shown) < 6:
            *images, row = rest
            captions = [f"input {row['baseline_psnr']:.2f} dB", f"restored {row['psnr']:.2f} dB", "original"]
            shown.append((name, images, captions))

    with seeded(0):  # for models that draw random numbers in evaluation too
        rows = evaluate_restorer(
            restorer.model.to(accelerator.device),
            source,
            degradation,
            metric=MetricConfig(y_only=not args.rgb, border=args.border, tiling=tiling),
            scale=restorer.scale,
            accelerator=accelerator,
            wrap=self_ensemble if args.ensemble else None,
            keep=keep,
        )
    keys = ("picture", "baseline_psnr", "psnr", "baseline_ssim", "ssim", "seconds")
    print_table(keys, [tuple(row[key] for key in keys) for row in rows])
    means = {key: float(np.mean([row[key] for row in rows])) for key in keys[1:]}
    print(
        f"{len(rows)} pictures: PSNR {means['psnr']:.2f} dB  SSIM {means['ssim']:.4f}  "
        f"(input {means['baseline_psnr']:.2f} dB / {means['baseline_ssim']:.4f})"
    )
    if args.json:
        result = {"model": args.model, "data": args.data, "scores": means, "per_picture": rows}
        write_atomic(args.json, json.dumps(result, indent=2).encode())
    if args.pictures:
        plot_restoration(shown, args.pictures, title=args.model)


def segment(args: argparse.Namespace) -> None:
    from visionssm.data.volumes import labelled_cases  # needs visionssm[medical]
    from visionssm.engine.volume_files import predict_volumes
    from visionssm.engine.volume_metrics import summarise
    from visionssm.engine.volume_models import load_volume_model

    model = load_volume_model(args.model, checkpoint=args.checkpoint, recipe=args.recipe)
    model = model.with_windows(roi=args.roi, overlap=args.window_overlap, mirror=args.mirror)
    cases = labelled_cases(model.config.data, args.data, args.split, layout=args.layout)
    found = predict_volumes(model, cases, args.predictions, accelerator=open_device(args))
    scores = [prediction.scores for prediction in found if prediction.scores is not None]
    names = list(scores[0].dice)
    rows = [
        (prediction.case.name, *(score.dice[name] for name in names), *(score.hd95[name] for name in names))
        for prediction, score in zip(found, scores, strict=True)
    ]
    print_table(("case", *(f"Dice {name}" for name in names), *(f"HD95 {name}" for name in names)), rows)
    means = summarise(scores)
    print_table(("region", "Dice", "HD95 mm"), [(name, means["dice"][name], means["hd95"][name]) for name in names])
    print(f"{len(rows)} cases: mean Dice {means['mean_dice']:.4f}  mean HD95 {means['mean_hd95']:.2f} mm")
    if args.json:
        cells = {p.case.name: {"dice": p.scores.dice, "hd95": p.scores.hd95} for p in found if p.scores is not None}
        result = {"model": args.model, "data": args.data, "split": args.split, "scores": means, "per_case": cells}
        write_atomic(args.json, json.dumps(result, indent=2).encode())


def dense(args: argparse.Namespace) -> None:
    from visionssm.engine.openmmlab_command import evaluate

    scores = evaluate(args)
    print_table(("metric", "value"), list(scores.items()))
    if args.json:
        write_atomic(args.json, json.dumps({"model": args.model, "scores": scores}, indent=2).encode())


JOBS = {
    "classification": Job(
        classify,
        {
            "split": "validation",
            "batch_size": 64,
            "workers": 0,
            "image_size": None,
            "crop_pct": None,
            "skip_corrupt": False,
            "classes": 50,
            "confusion": None,
        },
    ),
    "restoration": Job(
        restore,
        {
            "split": "validation",
            "degraded": None,
            "template": None,
            "noise": None,
            "jpeg": None,
            "rgb": False,
            "border": None,
            "tiles": "published",
            "tile": None,
            "overlap": None,
            "ensemble": False,
            "pictures": None,
        },
    ),
    "detection": Job(dense, {"pictures": None, "cfg_options": None}),
    "segmentation": Job(dense, {"pictures": None, "cfg_options": None}),
    "volume": Job(
        segment,
        {
            "split": "validation",
            "recipe": None,
            "layout": None,
            "roi": None,
            "window_overlap": None,
            "mirror": None,
            "predictions": None,
        },
    ),
}


def main() -> None:
    args = parse()
    with user_errors():
        if args.data is None and task_of(args.model) not in ("detection", "segmentation"):
            raise UserError(f"say what {args.model} shall be measured on: --data")
        run_job(args, JOBS)


if __name__ == "__main__":
    main()
