"""The command line that training a detector and training a segmentor share."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from visionssm.data.errors import UserError
from visionssm.engine.command_line import print_table, user_errors
from visionssm.engine.openmmlab import Task, open_config, train

__all__ = ["run"]


def parse(task: Task, description: str | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="Python file of MMEngine")
    parser.add_argument(
        "overrides", nargs="*", help="dotted.key=value, in place of what the config says; +key adds one"
    )
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="the same, as an option")
    parser.add_argument("--work-dir", metavar="FOLDER", help=f"in place of the config's (default runs/{task}/<config>)")
    parser.add_argument("--resume", default="never", metavar="auto|PATH", help="continue from a checkpoint")
    parser.add_argument("--overwrite", action="store_true", help="start anew in a folder that holds a run")
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
    if args.cpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # otherwise it asks the network for its newest version
    with user_errors():
        config = open_config(args.config, task, [*args.overrides, *args.cfg_options])
        if args.work_dir or not config.get("work_dir"):
            config.work_dir = args.work_dir or f"runs/{task}/{Path(args.config).stem}"
        config.launcher = args.launcher
        if args.precision != "no":
            _autocast(config, args.precision)
        if args.auto_scale_lr:
            if "base_batch_size" not in config.get("auto_scale_lr", {}):
                raise UserError(f"--auto-scale-lr: {args.config} has no auto_scale_lr.base_batch_size")
            config.auto_scale_lr.enable = True
        metrics = train(config, task, resume=args.resume, overwrite=args.overwrite, pictures=args.pictures)
    if int(os.environ.get("RANK", 0)) != 0:
        return ""
    print_table(("metric", "value"), list(metrics["scores"].items()))
    return f"of {metrics['checkpoint']}, {metrics['seconds']:.0f} s; metrics and pictures are in {config.work_dir}"


def _autocast(config: object, precision: str) -> None:
    import torch

    if not torch.cuda.is_available():
        raise UserError(f"--precision {precision}: MMEngine's autocast needs a GPU")
    wrapper = config.optim_wrapper  # pyright: ignore[reportAttributeAccessIssue]
    wrapper.type = "AmpOptimWrapper"
    wrapper.dtype = {"bf16": "bfloat16", "fp16": "float16"}[precision]
    wrapper.loss_scale = "dynamic"
