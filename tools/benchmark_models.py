"""Time models of visionssm, timm and MONAI in one run, in turn: throughput, latency, memory, parameters, operations.

python tools/benchmark_models.py vim_tiny "vmamba_*_tiny" --resolutions 224 384 512 768 1024 1248
python tools/benchmark_models.py vim_tiny --device cuda --precision bfloat16 --batch 64 --modes inference training
python tools/benchmark_models.py segmamba_brats2023 --resolutions 64 96 128 --modes inference training checkpointed
python tools/benchmark_models.py configs/detection/mask_rcnn_*_1x.py --no-baselines --resolutions 1024
python tools/benchmark_models.py --targets        one image, float32, CPU, against the loop over the scan's steps; 1 training step
python tools/benchmark_models.py --targets mambair_light_x2 segmamba_brats2023 --repetitions 2 --warmup 1
python tools/benchmark_models.py --zoo --json zoo.json --accuracy-plot zoo.png      every published classifier; goes on if cut off

The baselines swin_tiny, convnext_tiny, deit_tiny, deit_small and mambaout_tiny run along with classifiers, MONAI's swin_unetr
(feature size 48) and segresnet (16 filters, as for BraTS) with networks for volumes, unless --no-baselines is given.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

import visionssm
from visionssm.analysis import CONVENTIONS
from visionssm.analysis.baselines import fitting_baselines
from visionssm.analysis.speed import MODES, Mode, Result, Setting, limit_memory, measure, resolve_models
from visionssm.analysis.speed_report import (
    Target,
    chosen_modes,
    chosen_targets,
    loop_ratios,
    to_accuracy_plot,
    to_csv,
    to_json,
    to_plots,
    to_table,
)
from visionssm.analysis.zoo_speed import family_of, measure_zoo, zoo_parts


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def whole(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is not 0 or more")
    return value


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "models", nargs="*", help="names of visionssm or timm, shell patterns over visionssm's, configs"
    )
    parser.add_argument("--no-baselines", action="store_true", help="only the models that are named")
    parser.add_argument("--resolutions", type=positive, nargs="+", default=[224], metavar="PIXELS")
    parser.add_argument(
        "--modes", nargs="+", choices=[m for m in MODES if m != "loop"], default=["latency", "inference"]
    )
    parser.add_argument("--loop", action="store_true", help="also run visionssm's models with the per-step loop")
    parser.add_argument(
        "--targets",
        action="store_true",
        help="only what has a target, of the models if some are named: loops over steps and training steps take minutes",
    )
    parser.add_argument(
        "--zoo",
        action="store_true",
        help="published classifiers (those named, or all), each at the size of its reported accuracy, a family at a time beside "
        "swin_tiny and deit_tiny; the file of --json is written after each family, and a run that finds it does only the rest",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--precision", choices=("float32", "bfloat16", "float16"), default="float32", help="other: autocast"
    )
    parser.add_argument("--tf32", action="store_true", help="let a GPU round float32 products to TF32")
    parser.add_argument("--channels-last", action="store_true", help="memory format of images and convolutions")
    parser.add_argument("--compile", action="store_true", help="run everything through torch.compile")
    parser.add_argument(
        "--batch",
        type=positive,
        help="images per pass of inference and training (default 8; zoo: 4; volumes and targets: 1)",
    )
    parser.add_argument("--repetitions", type=positive, default=5)
    parser.add_argument("--warmup", type=whole, default=2)
    parser.add_argument("--json", metavar="FILE", type=Path)
    parser.add_argument("--csv", metavar="FILE", type=Path)
    parser.add_argument("--plots", metavar="FOLDER", type=Path, help="PNG files; needs matplotlib")
    parser.add_argument(
        "--accuracy-plot", metavar="FILE", type=Path, help="PNG of reported accuracy against throughput, by family"
    )
    args = parser.parse_args(arguments)
    if args.zoo and args.targets:
        parser.error("choose one of --zoo and --targets")
    if args.accuracy_plot and "inference" not in args.modes:
        parser.error("--accuracy-plot shows the throughput of inference, which --modes leaves out")
    if args.targets:
        args.no_baselines, args.device, args.precision = True, "cpu", "float32"
    elif not args.models and args.no_baselines and not args.zoo:
        parser.error("name at least one model")
    return args


def make_room(*files: Path | None) -> None:
    """Makes the folders of files that are written when all is measured.

    Raises:
        OSError: one cannot be made, or a file would replace a folder.
    """
    for file in filter(None, files):
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.is_dir():
            raise IsADirectoryError(f"{file} is a folder, name a file in it")


def main() -> None:
    args = parse()
    try:
        make_room(args.json, args.csv, args.accuracy_plot)
        named = [] if args.targets else resolve_models(args.models)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    volumes = set(visionssm.list_models(task="volume"))
    batch = args.batch or (1 if args.targets or volumes & set(named) else 4 if args.zoo else 8)
    setting = Setting(
        device=args.device, precision=args.precision, tf32=args.tf32, channels_last=args.channels_last, compile=args.compile,
        batch=batch, repetitions=args.repetitions, warmup=args.warmup, loop_once=args.zoo,
    )  # fmt: skip

    command = f"python tools/benchmark_models.py {shlex.join(sys.argv[1:])}"

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def run(names: Sequence[str], resolutions: Sequence[int], modes: Sequence[Mode]) -> list[Result]:
        return measure(names, resolutions, modes, setting, report=say)

    targets: tuple[Target, ...] = ()
    try:
        if args.device == "cpu":
            limit_memory()
        if args.targets:
            targets = chosen_targets(args.models)
            results = [r for target in targets for r in run(target.models, [target.resolution], target.modes)]
        elif args.zoo:
            modes = chosen_modes(args.modes, loop=args.loop)
            parts = zoo_parts(named or None)
            results = measure_zoo(parts, modes, setting, file=args.json, command=command, report=say)
        else:
            names = resolve_models([*([] if args.no_baselines else fitting_baselines(named)), *named])
            results = run(names, args.resolutions, chosen_modes(args.modes, loop=args.loop))
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    print(
        f"{setting.hardware}\n{setting.versions}\n{setting.arithmetic}; median of {args.repetitions}, models in turn\n"
    )
    print(to_table(results))
    print(f"MACs: {CONVENTIONS['macs']}.\nFLOPs: {CONVENTIONS['papers']}.")
    for target in targets:
        print(*target.verdicts(results), sep="\n")
    for model, resolution, ratio in () if args.targets else loop_ratios(results):
        print(f"{model} at {resolution}: {ratio:.1f} times as fast as with the per-step loop")
    if args.json and not args.zoo:
        args.json.write_text(to_json(results, setting, command))
    if args.csv:
        args.csv.write_text(to_csv(results))
    if args.plots:
        to_plots(results, setting, args.plots)
    if not any(result.seconds for result in results):
        raise SystemExit("error: nothing could be measured")
    if args.accuracy_plot:
        try:
            to_accuracy_plot(results, setting, args.accuracy_plot, family_of)
        except ValueError as error:
            raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
