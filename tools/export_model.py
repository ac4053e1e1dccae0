"""Write a model for other runtimes: a torch.export program (.pt2), ONNX (.onnx) or TorchScript (.pt).

python tools/export_model.py vmamba_tiny_s1l8.in1k --pretrained --out vmamba.onnx
python tools/export_model.py runs/demo --size 64 64 --fixed --out demo.onnx
python tools/export_model.py mambair_light_x2 --checkpoint weights.pth --out mambair.pt2

What the file computes is compared with the model, at two sizes where sizes are open; a file that differs is not written.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from torch import nn

import visionssm
from visionssm.integrations.export import FORMATS, ExportError, export_model


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a name of visionssm.list_models(), a run folder, or hf-hub:OWNER/NAME")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help=f"ends in {', '.join(FORMATS.values())}"
    )
    parser.add_argument(
        "--pretrained", action="store_true", help="with the weights of the name; a run folder always is"
    )
    parser.add_argument(
        "--checkpoint", "--official", metavar="FILE", help="with weights in visionssm's own or the published layout"
    )
    parser.add_argument("--num-classes", type=int, help="of the classifier")
    parser.add_argument("--scan", help="another scan order")
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("H", "W"), help="of the images (default: the model's own)"
    )
    parser.add_argument("--batch", type=int, default=2, help="images at once (default: 2)")
    parser.add_argument("--fixed", action="store_true", help="for this batch and size alone; open otherwise")
    parser.add_argument(
        "--plain", action="store_true", help="a program of ordinary operations, which needs torch alone"
    )
    parser.add_argument("--opset", type=int, default=20, help="of ONNX (default: 20)")
    return parser.parse_args()


def open_model(args: argparse.Namespace) -> nn.Module:
    """The model that the command line names, with its weights."""
    options = {"num_classes": args.num_classes, "scan": args.scan}
    options = {name: value for name, value in options.items() if value is not None}
    if Path(args.model).is_dir():
        if options or args.checkpoint is not None:
            raise ValueError(f"{args.model} is a run folder: leave out --num-classes, --scan and --checkpoint")
        return open_run(args.model)
    model = visionssm.create_model(args.model, pretrained=args.pretrained, **options)
    return model if args.checkpoint is None else visionssm.load_official(model, args.checkpoint)


def open_run(folder: str) -> nn.Module:
    """The model of a trainer's run folder, for which visionssm[train] is needed."""
    from visionssm.engine.models import load_classifier, task_of
    from visionssm.engine.restorers import load_restorer

    task = task_of(folder)
    if task == "classification":
        return load_classifier(folder)
    if task == "restoration":
        return load_restorer(folder).model
    raise ValueError(f"{folder} is for {task}; this tool serves classification and restoration")


def main() -> None:
    args = parse()
    try:
        model: Any = open_model(args)
    except (ValueError, TypeError, OSError, RuntimeError) as error:  # RuntimeError: timm has no weights of that name
        raise SystemExit(f"error: {error}") from None
    channels, *size = model.default_cfg["input_size"]
    try:
        report = export_model(
            model,
            args.out,
            image_shape=(args.batch, getattr(model, "in_chans", channels), *(args.size or size)),
            open_size=not args.fixed,
            plain=args.plain,
            opset=args.opset,
        )
    except (ValueError, OSError, ExportError) as error:
        raise SystemExit(f"error: {error}") from None
    sizes = "any batch and size" if report.open_size else f"batches of {args.batch} of this size alone"
    print(f"{report.path}: {report.format}, {report.path.stat().st_size / 2**20:.1f} MiB, for {sizes}")
    for shape in report.shapes:
        print(f"compared on images of {shape}")
    if report.difference is None:
        print("not compared: onnxruntime is not installed (pip install 'visionssm[export]')")
    else:
        print(f"largest difference from the model: {report.difference:.2e}")


if __name__ == "__main__":
    main()
