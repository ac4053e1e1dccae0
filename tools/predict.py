"""Use a trained model as it is for: classify pictures, find things in them, restore them, or segment volumes.

python tools/predict.py runs/demo photo.png folder/ "scans/**/*.png" --sheet sheet.png --json predictions.json
python tools/predict.py runs/demo_detection photo.jpg folder/ --output found --json found.json
python tools/predict.py runs/demo_restoration photo.jpg folder/ film.mp4 --output restored --tile 192 --compare
python tools/predict.py mambairv2_light_x2 photo.jpg --output restored --memory 2G --precision bf16
python tools/predict.py runs/volume_demo scan.nii.gz dicom_folder/ --output labels
python tools/predict.py segmamba_brats2023 BraTS/ --checkpoint weights.pt --recipe RECIPE --output labels

Images to classify are read as timm reads them: EXIF orientation is not applied.

Restored pictures are PNG files of the input's depth (8 or 16 bits), upright, with transparency and, at 8 bits, colour profile;
frames of a video go to a folder. By default pictures are cut as the published figures were made (side // 200 + 1 pieces, a
tenth of overlap); --tile or --memory cut into tiles of one size that fade into each other.

A volume is a NIfTI file (3D, or 4D with all modalities), a folder with one file per modality, or a folder with a DICOM series; a
folder of these works too. Labels are NIfTI on the input's own voxels and affine, with a PNG of slices beside them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.progress import Progress

from visionssm.data.classification import CorruptImage
from visionssm.data.errors import UserError
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
from visionssm.engine.models import load_classifier
from visionssm.engine.plots import plot_contact_sheet
from visionssm.engine.prediction import find_images, predict_images
from visionssm.engine.restoration_files import FileRestorer, find_jobs, parse_bytes
from visionssm.engine.restorers import load_restorer
from visionssm.engine.tiling import Tiling


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="run folder, or a model's name, whose registered weights are used")
    parser.add_argument("inputs", nargs="+", help="image files, folders, glob patterns; videos to restore")
    parser.add_argument(
        "--checkpoint", help="weight file for a model's name, or for a config of detection or segmentation"
    )
    parser.add_argument("--skip-corrupt", action="store_true", help="name unreadable images and go on")
    group = parser.add_argument_group("classification", argument_default=argparse.SUPPRESS)
    group.add_argument("--top", type=positive, help="classes per image (default 3)")
    group.add_argument("--batch-size", type=positive, help="images at a time (default 32)")
    group.add_argument("--sheet", metavar="PNG", help="write the images with their predictions")
    group.add_argument("--sheet-images", type=positive, help="at most so many on the sheet (default 48)")
    group = parser.add_argument_group("classification, detection, segmentation", argument_default=argparse.SUPPRESS)
    group.add_argument("--json", metavar="FILE", help="write all predictions")
    group = parser.add_argument_group("detection", argument_default=argparse.SUPPRESS)
    group.add_argument("--threshold", type=float, metavar="SCORE", help="least score that is drawn (default 0.3)")
    group = parser.add_argument_group("all but classification", argument_default=argparse.SUPPRESS)
    group.add_argument("--output", metavar="FOLDER", help="where to; a file for a single restored picture")
    group = parser.add_argument_group("restoration", argument_default=argparse.SUPPRESS)
    group.add_argument("--tile", type=int, metavar="PIXELS", help="side of the tiles, in the input")
    group.add_argument("--overlap", type=int, metavar="PIXELS", help="of the tiles (default 16)")
    group.add_argument("--blend", choices=("linear", "cut"), help="how tiles join (default linear)")
    group.add_argument("--whole", action="store_true", help="do not cut")
    group.add_argument(
        "--memory",
        metavar="SIZE",
        help="the largest tiles that keep within it (2G), beside the program itself",
    )
    group.add_argument("--ensemble", action="store_true", help="mean over the 8 symmetries: the papers' '+'")
    group.add_argument("--compare", action="store_true", help="also write <name>_compare.png, before and after")
    group.add_argument("--convert", action="store_true", help="take CMYK, palette and 1-bit pictures, as RGB or grey")
    group = parser.add_argument_group("volumes", argument_default=argparse.SUPPRESS)
    group.add_argument(
        "--recipe", metavar="YAML", help="of the model, where it is given by name: channels, classes, windows"
    )
    group.add_argument("--roi", type=int, nargs=3, metavar="VOXELS", help="sliding window, in place of the training's")
    group.add_argument("--window-overlap", type=float, metavar="SHARE", help="of neighbouring windows, 0 to 1")
    group.add_argument("--mirror", action="store_true", help="mean over the 8 flips of every window")
    group.add_argument("--no-picture", action="store_true", help="write no PNG of slices")
    add_device_options(parser)
    return parser.parse_intermixed_args()


def classify(args: argparse.Namespace) -> None:
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
        content = [{"image": p.path, "classes": p.classes, "probabilities": p.probabilities} for p in predictions]
        write_atomic(args.json, json.dumps({"predictions": content, "skipped": problems}, indent=2).encode())
    if args.sheet:
        shown = predictions[: args.sheet_images]
        captions = [f"{p.classes[0]} {p.probabilities[0]:.2f}" for p in shown]
        plot_contact_sheet([p.thumbnail for p in shown], captions, args.sheet)


def tiling_of(args: argparse.Namespace) -> Tiling:
    tiles = any(value is not None for value in (args.tile, args.memory, args.overlap, args.blend))
    if args.whole and tiles:
        raise UserError("--whole does not cut; leave out --tile, --memory, --overlap and --blend")
    if args.tile is not None and args.memory is not None:
        raise UserError("--memory chooses the tile size; leave out --tile")
    if args.whole or not tiles:
        return Tiling(mode="whole" if args.whole else "published")
    wanted = {"tile": args.tile, "overlap": args.overlap, "blend": args.blend}
    return Tiling(mode="tiles", **{name: value for name, value in wanted.items() if value is not None})


def restore(args: argparse.Namespace) -> None:
    if args.output is None:
        raise UserError(f"{args.model} restores pictures: say where to write them, --output FOLDER")
    tiling = tiling_of(args)
    memory = None if args.memory is None else parse_bytes(args.memory)
    jobs = find_jobs(args.inputs, args.output)
    accelerator = open_device(args)
    restorer = load_restorer(args.model, checkpoint=args.checkpoint)
    done = 0
    with Progress(transient=True) as progress:
        files = progress.add_task("files", total=len(jobs))
        tiles = progress.add_task("tiles", total=None)
        run = FileRestorer(
            restorer,
            accelerator=accelerator,
            tiling=tiling,
            ensemble=args.ensemble,
            memory=memory,
            tick=lambda count, total: progress.update(tiles, completed=count, total=total),
        )
        for job in jobs:
            try:
                picture = run.run(job, compare=args.compare, convert=args.convert)
            except CorruptImage as error:
                if not args.skip_corrupt:
                    raise CorruptImage(f"{error} (--skip-corrupt would skip it)") from error
                progress.console.print(f"skipped: {error}", markup=False, highlight=False, soft_wrap=True)
                continue
            done += 1
            note = f" ({picture.note})" if picture.note else ""
            line = f"{job.source} -> {job.target}{note}"
            progress.console.print(line, markup=False, highlight=False, soft_wrap=True)
            progress.advance(files)
    if not done:
        raise UserError("no image could be read")
    print(f"{done} restored, x{restorer.scale}, in {Path(args.output)}")


def segment(args: argparse.Namespace) -> None:
    from visionssm.data.volumes import CorruptVolume, input_cases  # needs visionssm[medical]
    from visionssm.engine.volume_files import check_targets, predict_case
    from visionssm.engine.volume_models import load_volume_model

    if args.output is None:
        raise UserError(f"{args.model} segments volumes: say where to write the labels, --output FOLDER")
    model = load_volume_model(args.model, checkpoint=args.checkpoint, recipe=args.recipe)
    model = model.with_windows(roi=args.roi, overlap=args.window_overlap, mirror=args.mirror)
    cases = input_cases(args.inputs, model.config.data.channels)
    check_targets(cases, args.output)
    accelerator = open_device(args)
    model.net.to(accelerator.device)
    done = 0
    with Progress(transient=True) as progress:
        volumes = progress.add_task("volumes", total=len(cases))
        windows = progress.add_task("windows", total=None)
        for case in cases:
            try:
                found = predict_case(
                    model,
                    case,
                    args.output,
                    accelerator=accelerator,
                    picture=not args.no_picture,
                    tick=lambda count, total: progress.update(windows, completed=count, total=total),
                )
            except CorruptVolume as error:
                if not args.skip_corrupt:
                    raise CorruptVolume(f"{error} (--skip-corrupt would skip it)") from error
                progress.console.print(f"skipped: {error}", markup=False, highlight=False, soft_wrap=True)
                continue
            done += 1
            line = f"{case.name} -> {', '.join(map(str, found.files))}: {found.describe(model.config.data.classes)}"
            progress.console.print(line, markup=False, highlight=False, soft_wrap=True)
            progress.advance(volumes)
    if not done:
        raise UserError("no volume could be read")
    print(f"{done} segmented into {', '.join(model.config.data.classes)}, in {args.output}")


def find(args: argparse.Namespace) -> None:
    from visionssm.engine.openmmlab_command import predict  # needs visionssm[openmmlab]

    for line in predict(args):
        print(line)


JOBS = {
    "detection": Job(find, {"output": None, "json": None, "threshold": 0.3}),
    "segmentation": Job(find, {"output": None, "json": None}),
    "classification": Job(classify, {"top": 3, "batch_size": 32, "json": None, "sheet": None, "sheet_images": 48}),
    "restoration": Job(
        restore,
        {
            "output": None,
            "tile": None,
            "overlap": None,
            "blend": None,
            "whole": False,
            "memory": None,
            "ensemble": False,
            "compare": False,
            "convert": False,
        },
    ),
    "volume": Job(
        segment,
        {
            "output": None,
            "recipe": None,
            "roi": None,
            "window_overlap": None,
            "mirror": None,
            "no_picture": False,
        },
    ),
}


def main() -> None:
    args = parse()
    with user_errors():
        run_job(args, JOBS)


if __name__ == "__main__":
    main()
