"""Command lines of detectors and segmentors: what their two training tools share, and their part in evaluate and predict."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from visionssm.data.classification import CorruptImage
from visionssm.data.errors import UserError
from visionssm.engine.checkpoint import write_atomic
from visionssm.engine.command_line import print_table, user_errors
from visionssm.engine.openmmlab import Task, find_model, move_data, open_config, open_runner, test, train
from visionssm.engine.openmmlab_pictures import Finder, draw_examples
from visionssm.engine.prediction import find_images

__all__ = ["evaluate", "predict", "run"]


def parse(task: Task, description: str | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="Python file of MMEngine")
    parser.add_argument(
        "overrides", nargs="*", help="dotted.key=value, in place of what the config says; +key adds one"
    )
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="the same, as an option")
    parser.add_argument("--data", metavar="FOLDER", help="data_root of all splits, in place of the config's")
    parser.add_argument("--work-dir", metavar="FOLDER", help=f"in place of the config's (default runs/{task}/<config>)")
    parser.add_argument("--resume", default="never", metavar="auto|PATH", help="continue from a checkpoint")
    parser.add_argument(
        "--overwrite", action="store_true", help="start anew in a folder that holds a run, and remove that"
    )
    parser.add_argument("--precision", choices=("no", "bf16", "fp16"), default="no", help="autocast (default: no)")
    parser.add_argument("--auto-scale-lr", action="store_true", help="fit the learning rate to the total batch size")
    parser.add_argument("--launcher", choices=("none", "pytorch", "slurm", "mpi"), default="none")
    parser.add_argument("--pictures", type=int, default=8, help="images on predictions.png (default 8)")
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU")
    return parser.parse_intermixed_args()


def run(task: Task, description: str | None) -> str:
    """Parses, trains, prints a table of the metrics.

    Returns:
        What else there is to print; empty in all processes but the first.
    """
    args = parse(task, description)
    _use_cpu(args)
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # otherwise it asks the network for its newest version
    with user_errors():
        config = open_config(args.config, task, [*args.overrides, *args.cfg_options])
        if args.work_dir or not config.get("work_dir"):
            config.work_dir = args.work_dir or f"runs/{task}/{Path(args.config).stem}"
        if args.data is not None:
            move_data(config, args.data, ("train", "val", "test"))
        if args.launcher != "none" and not torch.cuda.is_available():
            raise UserError(f"--launcher {args.launcher}: MMEngine runs several processes on GPUs only")
        config.launcher = args.launcher
        if args.precision != "no":
            _autocast(config, args.precision)
        if args.auto_scale_lr:
            if "base_batch_size" not in config.get("auto_scale_lr", {}):
                raise UserError(f"--auto-scale-lr: {args.config} has no auto_scale_lr.base_batch_size")
            config.auto_scale_lr.enable = True
        if args.pictures < 0:
            raise UserError(f"--pictures {args.pictures}: must be 0 or more")
        metrics = train(config, task, resume=args.resume, overwrite=args.overwrite, pictures=args.pictures)
    if int(os.environ.get("RANK", 0)) != 0:
        return ""
    print_table(("metric", "value"), list(metrics["scores"].items()))
    return f"of {metrics['checkpoint']}, {metrics['seconds']:.0f} s; metrics and pictures are in {config.work_dir}"


def _autocast(config: object, precision: str) -> None:
    if not torch.cuda.is_available():
        raise UserError(f"--precision {precision}: MMEngine's autocast needs a GPU")
    wrapper = config.optim_wrapper  # pyright: ignore[reportAttributeAccessIssue]
    wrapper.type = "AmpOptimWrapper"
    wrapper.dtype = {"bf16": "bfloat16", "fp16": "float16"}[precision]
    wrapper.loss_scale = "dynamic"


def evaluate(args: argparse.Namespace) -> dict[str, float]:
    """What tools/evaluate.py does with a detector or segmentor: its config's test split, by the packages' metrics.

    Raises:
        UserError: no such run, config or weights; data that is missing or corrupt.
    """
    import tempfile

    _use_cpu(args)
    config, checkpoint, task = find_model(args.model, checkpoint=args.checkpoint, overrides=args.cfg_options or ())
    if args.data is not None:
        move_data(config, args.data)
    if args.precision != "no":
        raise UserError("--precision: MMEngine evaluates in float32")
    with tempfile.TemporaryDirectory() as scratch:
        config.work_dir, config.launcher = scratch, "none"
        runner = open_runner(config)
        scores = test(runner, checkpoint)
        if args.pictures:
            draw_examples(runner, task, args.pictures, count=8)
    return scores


def predict(args: argparse.Namespace) -> Iterator[str]:
    """What tools/predict.py does with a detector or segmentor: pictures with what was found, and JSON or label maps.

    Returns:
        A line per image, while it goes.

    Raises:
        UserError: no such run, config, weights or images; files that would be lost.
    """
    if args.output is None:
        raise UserError(f"{args.model} finds things in pictures: say where to draw them, --output FOLDER")
    if args.precision != "no":
        raise UserError("--precision: detectors and segmentors predict in float32")
    _use_cpu(args)
    paths = find_images(args.inputs)
    config, checkpoint, task = find_model(args.model, checkpoint=args.checkpoint)
    folder = Path(args.output)
    targets = _targets(paths, folder, task)
    finder = Finder(config, checkpoint, task)
    folder.mkdir(parents=True, exist_ok=True)
    threshold = vars(args).get("threshold", 0.0)  # an option for detection only
    found = []
    for path, (target, *labels) in targets.items():
        try:
            picture, result = finder.draw(path, threshold=threshold)
        except CorruptImage as error:
            if not args.skip_corrupt:
                raise CorruptImage(f"{error} (--skip-corrupt would skip it)") from error
            yield f"skipped: {error}"
            continue
        _save(picture, target)
        found.append({"image": path, **result.summary})
        if result.labels is not None:
            _save(Image.fromarray(result.labels), *labels)
        yield f"{path} -> {target}: {result.describe()}"
    if not found:
        raise UserError("no image could be read")
    if args.json:
        write_atomic(args.json, json.dumps(found, indent=2).encode())


def _targets(paths: Sequence[str], folder: Path, task: Task) -> dict[str, list[Path]]:
    """The files that are drawn from each image: the picture, and a segmentor's labels.

    Raises:
        UserError: one would replace another, an input, or a picture that is none of ours.
    """
    endings = (".png", "_labels.png") if task == "segmentation" else (".png",)
    targets = {path: [folder / f"{Path(path).stem}{ending}" for ending in endings] for path in paths}
    inputs = {Path(path).resolve() for path in paths}
    drawn: dict[Path, str] = {}
    for path, files in targets.items():
        for file in files:
            place = file.resolve()
            if place in inputs:
                raise UserError(f"{file} would replace an input; choose another --output")
            if place in drawn:
                raise UserError(
                    f"{drawn[place]} and {path} would both be written to {file}; predict them into two folders"
                )
            if file.exists() and not _is_ours(file):
                raise UserError(
                    f"{file} is there and was not drawn by this tool; choose another --output, or move it away"
                )
            drawn[place] = path
    return targets


_MARK = ("Software", "visionssm")  # in a PNG, by which a later call knows that it may replace it


def _save(picture: Image.Image, target: Path) -> None:
    text = PngInfo()
    text.add_text(*_MARK)
    picture.save(target, pnginfo=text)


def _is_ours(file: Path) -> bool:
    try:
        with Image.open(file) as picture:
            return picture.info.get(_MARK[0]) == _MARK[1]
    except OSError:
        return False


def _use_cpu(args: argparse.Namespace) -> None:
    if args.cpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
