"""Turn a published classification file of any family into a folder that timm and visionssm load, on disk or on the hub.

python tools/convert_checkpoint.py vssm_tiny_0230_ckpt_epoch_262.pth --out vmamba_tiny_s2l5/
python -c "import timm, visionssm; timm.create_model('local-dir:vmamba_tiny_s2l5', pretrained=True)"

The variant is recognised from the names and shapes in the file; every one must fit.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from visionssm.analysis.recognise import convert_file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="a .pth, .pt, .ckpt, .bin or .safetensors file, as published")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--model", help="the variant, where the file fits several or is to be checked against one")
    parser.add_argument(
        "--source", default="", help="where the file is from, for the record (default: the variant's page)"
    )
    parser.add_argument("--licence", default="", help="of the weights (default: the one known of the variant)")
    args = parser.parse_args()
    try:
        record = convert_file(args.file, args.out, name=args.model, origin=args.source, licence=args.licence)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    for key, value in record.items():
        print(f"{key}: {value}")
    print(f"load with: timm.create_model('local-dir:{args.out}', pretrained=True)")


if __name__ == "__main__":
    main()
