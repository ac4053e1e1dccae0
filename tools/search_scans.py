"""Search which directions each layer of a local model should scan along (LocalMamba).

python tools/search_scans.py configs/classification/digits_demo.yaml model.name=local_vmamba_nano run.output=runs/search
python tools/search_scans.py RECIPE --keep 4 --resume auto

Writes scan.json into the run folder; its "scan" is an option of the model, in Python or in a recipe:
visionssm.create_model("local_vmamba_nano", scan=json.load(open("runs/search/scan.json"))["scan"])
"""

from __future__ import annotations

import argparse

from accelerate import PartialState

from visionssm.engine.classification import ClassificationConfig
from visionssm.engine.command_line import print_table, user_errors
from visionssm.engine.config import load_config
from visionssm.engine.scan_search import RESULT, search_scans


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="YAML file")
    parser.add_argument("overrides", nargs="*", help="dotted.key=value, in place of what the recipe says")
    parser.add_argument("--keep", type=int, default=4, help="routes per layer (default: 4)")
    parser.add_argument("--resume", default="never", metavar="auto|PATH", help="continue from a checkpoint")
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU")
    args = parser.parse_intermixed_args()
    with user_errors():
        config = load_config(ClassificationConfig, args.recipe, args.overrides)
        result = search_scans(config, keep=args.keep, cpu=args.cpu, resume=args.resume)
    if PartialState().is_main_process:
        rows = [
            (layer["layer"], " ".join(layer["kept"]), min(shares), max(shares))
            for layer in result["layers"]
            for shares in [layer["weights"].values()]
        ]
        print_table(("layer", "kept", "smallest share", "largest share"), rows)
        print(f"written to {config.run.output}/{RESULT}")
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main()
