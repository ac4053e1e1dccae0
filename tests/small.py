"""The models of our own that tests run on."""

import visionssm
from visionssm.models.reported import REPORTED


def small_models(task: str) -> list[str]:
    """`<family>_nano`, or `<family>_pico` where the authors have a nano themselves; about 1 M parameters or fewer."""
    names = visionssm.list_models("*_nano*", task=task) + visionssm.list_models("*_pico*", task=task)
    return sorted(name for name in names if name not in REPORTED)
