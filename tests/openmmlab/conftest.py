"""MMDetection and MMSegmentation, imported once: what they warn of when they are imported is theirs."""

import contextlib
import importlib
import io
import warnings

with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
    warnings.simplefilter("ignore")
    for package in ("mmdet", "mmseg"):
        for part in ("datasets", "engine", "evaluation", "models", "visualization"):
            importlib.import_module(f"{package}.{part}")
        importlib.import_module(f"visionssm.integrations.{package}")
