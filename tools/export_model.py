"""Write a model for other runtimes: a torch.export program (.pt2), ONNX (.onnx) or TorchScript (.pt).

python tools/export_model.py vmamba_tiny_s1l8.in1k --pretrained --out vmamba.onnx
python tools/export_model.py runs/demo/model.safetensors --model vmamba_nano --out vmamba.pt2 --size 224 224 --fixed

What the file computes is compared with the model, at two sizes where sizes are open.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import visionssm
from visionssm.integrations.export import FORMATS, ExportError, export_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a name of visionssm.list_models(), or hf-hub:OWNER/NAME, or local-dir:FOLDER")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help=f"ends in {', '.join(FORMATS.values())}"
    )
    parser.add_argument("--pretrained", action="store_true", help="with the weights of the name")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="with weights in visionssm's own layout")
    parser.add_argument("--official", type=Path, metavar="FILE", help="with weights in the published layout")
    parser.add_argument("--num-classes", type=int, help="of the classifier")
    parser.add_argument("--scan", help="another scan order")
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("H", "W"), help="of the images (default: the model's own)"
    )
    parser.add_argument("--batch", type=int, default=2, help="images at once (default: 2)")
    parser.add_argument(
        "--fixed", action="store_true", help="for this batch and size alone; open otherwise, TorchScript never"
    )
    parser.add_argument(
        "--plain", action="store_true", help="a program of ordinary operations, which needs torch alone"
    )
    parser.add_argument("--opset", type=int, default=20, help="of ONNX (default: 20)")
    args = parser.parse_args()
    options = {"num_classes": args.num_classes, "scan": args.scan}
    options = {name: value for name, value in options.items() if value is not None}
    if args.checkpoint is not None:
        options["checkpoint_path"] = str(args.checkpoint)
    try:
        model = visionssm.create_model(args.model, pretrained=args.pretrained, **options)
        if args.official is not None:
            visionssm.load_official(model, args.official)
        cfg: Any = model.default_cfg
        channels, *size = cfg["input_size"]
        report = export_model(
            model,
            args.out,
            image_shape=(args.batch, channels, *(args.size or size)),
            open_size=not args.fixed,
            plain=args.plain,
            opset=args.opset,
        )
    except (ValueError, TypeError, OSError, ExportError) as error:
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
