"""Rewrite what tests/packaging compares with: the public names, and the state dict of every variant.

python dev/update_snapshots.py                 rewrite both
python dev/update_snapshots.py --keys MODEL    print the names and shapes behind a hash, to compare revisions
"""

import argparse
import hashlib
import importlib
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path

import torch

SNAPSHOTS = Path(__file__).parent.parent / "tests" / "packaging" / "snapshots"
API = SNAPSHOTS / "api.txt"
STATE_DICTS = SNAPSHOTS / "state_dicts.json"
PUBLIC_MODULES = ("visionssm", "visionssm.scans", "visionssm_kernels")


class _Bare(str):
    """An annotation that is a string, written without quotes: quoted or not, it is the same annotation."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _bare(annotation: object) -> object:
    return _Bare(annotation) if isinstance(annotation, str) else annotation


def _signature(value: object) -> str:
    try:
        signature = inspect.signature(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):  # a constant, or a class without a Python constructor
        return ""
    parameters = [p.replace(annotation=_bare(p.annotation)) for p in signature.parameters.values()]
    text = str(signature.replace(parameters=parameters, return_annotation=_bare(signature.return_annotation)))
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def _describe(name: str, value: object) -> Iterator[str]:
    if not inspect.isclass(value):
        kind = "def " if callable(value) else f"{type(value).__name__} "
        yield f"{kind}{name}{_signature(value)}"
        return
    yield f"class {name}{_signature(value)}"
    for member, attribute in sorted(vars(value).items()):
        if member.startswith("_"):
            continue
        if isinstance(attribute, property):
            yield f"    {member}: property"
        elif isinstance(attribute, classmethod | staticmethod):
            yield f"    {type(attribute).__name__} {member}{_signature(attribute.__func__)}"
        elif callable(attribute):
            yield f"    def {member}{_signature(attribute)}"
        else:
            yield f"    {member} = {attribute!r}"


def api_surface() -> str:
    """Every public name of the public modules with its signature, one per line."""
    lines = []
    for module_name in PUBLIC_MODULES:
        module = importlib.import_module(module_name)
        lines.append(f"[{module_name}]")
        for name in sorted(module.__all__):
            lines.extend(_describe(name, getattr(module, name)))
        lines.append("")
    return "\n".join(lines)


def state_dict_keys(name: str) -> list[str]:
    """Names, shapes and dtypes of one variant's state dict, in order; no memory is allocated."""
    visionssm = importlib.import_module("visionssm")
    with torch.device("meta"):
        model = visionssm.create_model(name)
    return [f"{key} {tuple(value.shape)} {value.dtype}" for key, value in model.state_dict().items()]


def summarize(keys: list[str]) -> dict[str, int | str]:
    """What the snapshot keeps of a state dict; the order of its entries is free."""
    return {"tensors": len(keys), "sha256": hashlib.sha256("\n".join(sorted(keys)).encode()).hexdigest()[:16]}


def state_dicts() -> dict[str, dict[str, int | str]]:
    """The summary of every registered variant."""
    visionssm = importlib.import_module("visionssm")
    return {name: summarize(state_dict_keys(name)) for name in visionssm.list_models()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", metavar="MODEL", help="print this variant's state dict instead of writing")
    model = parser.parse_args().keys
    if model:
        print("\n".join(state_dict_keys(model)))
        return
    SNAPSHOTS.mkdir(exist_ok=True)
    API.write_text(api_surface())
    entries = [f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in state_dicts().items()]
    STATE_DICTS.write_text("{\n" + ",\n".join(entries) + "\n}\n")  # one variant per line, for diffs


if __name__ == "__main__":
    main()
