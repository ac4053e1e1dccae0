"""Detectors and segmentors by MMEngine: configs with overrides, training that resumes, evaluation, errors a person can mend.

The packages do the work (Runner, hooks, datasets, metrics); this file opens their configs, checks what they would only stumble
over, and writes what every run of this package leaves: `metrics.json`, `predictions.png`, and `config.json`, by which
`tools/evaluate.py` and `tools/predict.py` know the folder.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from visionssm.checkpoints import CheckpointError, read_checkpoint
from visionssm.data.digit_scenes import SceneSettings, write_digit_scenes
from visionssm.data.errors import DataError, UserError
from visionssm.engine.checkpoint import write_atomic
from visionssm.engine.openmmlab_overrides import check_override
from visionssm.engine.openmmlab_seeding import seed_albumentations

__all__ = [
    "Task",
    "WholeModel",
    "build_model",
    "find_model",
    "load_weights",
    "move_data",
    "open_config",
    "open_runner",
    "packages",
    "task_of_config",
    "test",
    "train",
]

Task = Literal["detection", "segmentation"]
SCOPES = {"detection": "mmdet", "segmentation": "mmseg"}
CARD = "config.json"


def open_config(path: str | Path, task: Task, overrides: Sequence[str] = ()) -> Any:
    """A config file of MMEngine, with overrides.

    Args:
        path: Python file.
        task: what it must be for.
        overrides: "dotted.key=value" for keys that are there or are arguments of the class there, "+dotted.key=value" for others;
            values as in Python, else text.

    Raises:
        UserError: no such file, not readable, for another task, an unknown key, or one that nothing would read.
    """
    packages(task)
    from mmengine.config import Config

    if not Path(path).is_file():
        raise UserError(f"no config at {path}")
    try:
        config = Config.fromfile(str(path))
    except Exception as error:  # a config is a program
        raise UserError(f"{path} is not a readable config: {_line(error)}") from error
    scope = config.get("default_scope")
    if scope != SCOPES[task]:
        other = {scope: task for task, scope in SCOPES.items()}.get(scope, f"default_scope={scope!r}")
        raise UserError(f"{path} is for {other}; this is for {task}")
    for text in overrides:
        key, found, value = text.partition("=")
        if not found:
            raise UserError(f"{text!r} is not of the form key=value")
        check_override(config, key)
        try:
            config.merge_from_dict({key.removeprefix("+"): _value(value)})
        except (TypeError, KeyError, IndexError) as error:
            raise UserError(f"{text!r} does not fit the config: {_line(error)}") from error
    return config


def _value(text: str) -> Any:
    words = {"true": True, "false": False, "null": None}
    if text in words:
        return words[text]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def packages(task: Task) -> None:
    """Imports what a task needs and registers it.

    Raises:
        UserError: MMDetection or MMSegmentation is not installed, or has no compiled operators.
    """
    scope = SCOPES[task]
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # the packages print which of their own extras are absent
            importlib.import_module(f"visionssm.integrations.{scope}")
            importlib.import_module(f"{scope}.utils").register_all_modules(init_default_scope=False)
    except ImportError as error:
        raise UserError(str(error)) from error


def open_runner(config: Any) -> Any:
    """MMEngine's Runner: environment, log, model.

    Raises:
        UserError: the model cannot be built.
    """
    from mmengine.runner import Runner

    scenes = config.get("digit_scenes")
    if scenes is not None and int(os.environ.get("LOCAL_RANK", 0)) == 0:
        settings: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in scenes.items()
        }
        write_digit_scenes(settings.pop("root"), SceneSettings(**settings))
    try:
        runner = Runner.from_cfg(config)
    except (ValueError, TypeError, KeyError, AssertionError) as error:
        raise UserError(f"the config cannot be built: {_line(error)}") from error
    return runner


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    """Turns what the packages raise for a user's files into one line."""
    try:
        yield
    except FileNotFoundError as error:
        # a loader's worker hands on its traceback alone, whose end says which
        named = re.findall(r"No such file or directory: ['\"](.+)['\"]", str(error))
        raise DataError(f"no such file: {error.filename or (named or [_line(error)])[-1]}") from error
    except json.JSONDecodeError as error:
        raise DataError(f"annotations that are not JSON: {error}") from error
    except CheckpointError as error:
        raise UserError(str(error)) from error
    except IndexError as error:
        found = re.search(r"Target (\d+) is out of bounds", str(error))
        if found is None:
            raise
        raise DataError(
            f"a label map holds class {found[1]}, which the config's classes do not reach: set metainfo.classes and "
            "num_classes of every head, or reduce_zero_label"
        ) from error
    except Exception as error:
        if "palette does not match classes" in str(error):
            raise DataError(
                "a dataset's metainfo.palette has not one colour for each of its metainfo.classes"
            ) from error
        found = re.search(r"(failed to load image: [^\n'\"]+|cannot identify image file [^\n]+)", str(error))
        if found is None:
            raise
        raise DataError(f"corrupt image: {found[1]}") from error


def train(
    config: Any, task: Task, *, resume: str = "never", overwrite: bool = False, pictures: int = 8
) -> dict[str, Any]:
    """Trains, tests the best checkpoint, and writes `metrics.json`, `predictions.png` and `config.json` into the work folder.

    Args:
        config: of `open_config`, with `work_dir`.
        task: what it is for.
        resume: "auto" for the folder's last checkpoint if there is one, a file, or "never".
        overwrite: start anew in a folder that holds a run; what that left is removed before the first step.
        pictures: how many are drawn.

    Returns:
        What is in metrics.json.

    Raises:
        UserError: what a person can mend: data, weights, a folder that holds a run.
    """
    from mmengine.dist import barrier, is_main_process

    folder = Path(config.work_dir)
    last = last_checkpoint(folder)
    config.resume = False
    if resume == "auto" and last is not None:
        config.resume, config.load_from = True, str(last)
    elif resume not in ("auto", "never"):
        if not Path(resume).is_file():
            raise UserError(f"--resume {resume}: no such checkpoint")
        config.resume, config.load_from = True, resume
    elif last is not None and not overwrite:
        raise UserError(
            f"{folder} already holds a run; continue it with --resume auto, start anew with --overwrite, "
            "or choose another work_dir"
        )
    saving = config.get("default_hooks", {}).get("checkpoint") or {}
    if saving.get("max_keep_ckpts") == 1:
        saving["max_keep_ckpts"] = 2  # MMEngine removes the oldest before it writes the next: a kill would leave none
    start = time.perf_counter()
    runner = open_runner(config)
    barrier()
    with _readable():
        runner._train_loop = runner.build_train_loop(runner._train_loop)
        for split, loop in (("train", runner.train_loop), ("val", runner.val_loop), ("test", runner.test_loop)):
            if loop is not None:
                check_classes(runner.model, loop.dataloader.dataset, split)
        seed_albumentations(runner.train_loop.dataloader.dataset)
        if config.load_from and not config.resume:
            runner._init_model_weights()  # which training would do after this, over what is loaded
            begun = load_weights(runner.model, config.load_from, fine_tune=True)
            runner.logger.info(f"{len(begun)} parameters start anew: {', '.join(begun[:6])}" if begun else "all loaded")
            runner._load_from = None
        if overwrite and not config.resume and is_main_process():
            _discard_run(folder)
        runner.train()
    best = best_checkpoint(runner)
    scores = test(runner, best)
    metrics = {
        "task": task,
        "scores": scores,
        "checkpoint": best.name,
        "seconds": round(time.perf_counter() - start, 1),
    }
    metrics |= {"torch": torch.__version__, "device": str(next(runner.model.parameters()).device)}
    if is_main_process():
        from visionssm.engine.openmmlab_pictures import draw_examples

        config.dump(str(folder / "config.py"))
        card = {"task": task, "config": "config.py", "checkpoint": best.name}
        write_atomic(folder / CARD, json.dumps(card, indent=2).encode())
        write_atomic(folder / "metrics.json", json.dumps(metrics, indent=2).encode())
        if pictures:
            draw_examples(runner, task, folder / "predictions.png", count=pictures)
    return metrics


def test(runner: Any, checkpoint: str | Path) -> dict[str, float]:
    """The packages' own metrics on the config's test split, with the weights of a checkpoint.

    Raises:
        UserError: weights or data that are missing, corrupt, or of other classes.
    """
    with _readable():
        runner._test_loop = runner.build_test_loop(runner._test_loop)
        dataset = runner.test_loop.dataloader.dataset
        check_classes(runner.model, dataset, "test")
        load_weights(runner.model, checkpoint, classes=dataset.metainfo.get("classes") or ())
        runner.call_hook("before_run")
        scores = runner.test_loop.run()
        runner.call_hook("after_run")
    return {key: float(value) for key, value in scores.items()}


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a run."""
    note = folder / "last_checkpoint"
    path = _moved(Path(note.read_text().strip()), folder) if note.is_file() else None
    return path if path is not None and path.is_file() else None


def best_checkpoint(runner: Any) -> Path:
    """The best checkpoint of a training if it kept one, else the last.

    Raises:
        UserError: there is none.
    """
    from mmengine.hooks import CheckpointHook

    folder = Path(runner.work_dir)
    noted: list[str | None] = []
    for hook in runner.hooks:
        if isinstance(hook, CheckpointHook):
            noted += [getattr(hook, "best_ckpt_path", None), *getattr(hook, "best_ckpt_path_dict", {}).values()]
    best = [path for name in noted if name and (path := _moved(Path(name), folder)).is_file()]
    path = max(best, key=lambda path: path.stat().st_mtime) if best else last_checkpoint(folder)
    if path is None:
        raise UserError(f"{folder} holds no checkpoint")
    return path


def _moved(path: Path, folder: Path) -> Path:
    """Where a run's file is if its folder was moved."""
    return path if path.is_file() else folder / path.name


def _discard_run(folder: Path) -> None:
    """Removes what an earlier run left and by which it would be resumed, measured or shown."""
    for pattern in (
        "last_checkpoint",
        "best_*.pth",
        "epoch_*.pth",
        "iter_*.pth",
        CARD,
        "metrics.json",
        "predictions.png",
    ):
        for path in folder.glob(pattern):
            path.unlink()


def check_classes(model: nn.Module, dataset: Any, split: str) -> None:
    """Compares the heads with the data of a split.

    Raises:
        DataError: other numbers of classes, or annotations of none of the config's classes.
    """
    classes = dataset.metainfo.get("classes") or ()
    shown = ", ".join(classes[:5]) + ", ..." * (len(classes) > 5)
    for name, module in _unwrapped(model).named_modules():
        head = re.sub(r"\.\d+$", "", name).rpartition(".")[2]
        wanted = getattr(module, "num_classes", None)
        if head not in ("bbox_head", "mask_head", "decode_head", "auxiliary_head") or wanted is None:
            continue
        if wanted != len(classes):
            raise DataError(
                f"{name} has {wanted} classes, the data {len(classes)} ({shown}): "
                f"set model.{name}.num_classes or {split}_dataloader.dataset.metainfo.classes"
            )
    while hasattr(dataset, "dataset"):
        dataset = dataset.dataset
    if getattr(dataset, "cat_ids", None) == []:
        raise DataError(f"{dataset.ann_file} annotates none of the classes {shown}")
    if len(dataset) == 0:
        raise DataError(f"{getattr(dataset, 'ann_file', '') or dataset.data_prefix} holds no images")


def load_weights(
    model: nn.Module, path: str | Path, *, fine_tune: bool = False, classes: Sequence[str] = ()
) -> list[str]:
    """Loads a whole detector's or segmentor's weights, our own or published, strictly.

    Args:
        model: gets them.
        path: checkpoint.
        fine_tune: parameters of heads that are missing or of another shape start anew.
        classes: of the data, in order; compared with those that the file names.

    Returns:
        Names of the parameters that start anew.

    Raises:
        UserError: the file is missing or unreadable, of a classifier, or fits not; the message names the keys.
    """
    try:
        content: Any = read_checkpoint(path)
    except (FileNotFoundError, CheckpointError) as error:
        raise UserError(str(error)) from error
    _check_order(path, content, classes)
    state = dict(content.get("state_dict", content.get("model", content)))
    model = _unwrapped(model)
    state = {key.removeprefix("module."): value for key, value in state.items() if isinstance(value, torch.Tensor)}
    if not any(key.startswith("backbone.") for key in state):
        raise UserError(
            f"{path} holds no detector or segmentor (no key begins with 'backbone.'); weights of a classifier go into "
            "model.backbone.init_cfg=dict(type='Pretrained', checkpoint=...)"
        )
    ours = model.state_dict()
    heads = [key for key in ours if not key.startswith("backbone.")]
    shapes = [key for key in heads if key in state and state[key].shape != ours[key].shape]
    missing = [key for key in heads if key not in state and not key.endswith("num_batches_tracked")]
    stray = [key for key in state if not key.startswith(("backbone.", "ema_")) and key not in ours]
    counted = [
        key for key in shapes if re.search(r"(fc_cls|conv_cls|conv_seg|cls_branches|retina_cls|conv_logits)", key)
    ]
    if not fine_tune and counted:
        key = counted[0]
        raise UserError(
            f"{path} was trained for other classes: {key} is {tuple(state[key].shape)} there, {tuple(ours[key].shape)} here"
        )
    if not fine_tune and (shapes or missing or stray):
        named = [f"{len(keys)} {what}: {', '.join(keys[:4])}" for what, keys in
                 (("missing", missing), ("unexpected", stray), ("of another shape", shapes)) if keys]  # fmt: skip
        raise UserError(f"{path} does not fit the config's heads; {'; '.join(named)}")
    for key in (*shapes, *stray):
        del state[key]
    state = {key: value for key, value in state.items() if not key.startswith("ema_")}
    try:
        found = model.load_state_dict(state, strict=False)
    except (CheckpointError, RuntimeError) as error:
        raise UserError(f"{path} does not fit the config's backbone: {_line(error)}") from error
    lost = [
        key for key in found.missing_keys if key.startswith("backbone.") and not key.endswith("num_batches_tracked")
    ]
    odd = [key for key in found.unexpected_keys if key.startswith("backbone.")]
    if lost or odd:
        named = f"{len(lost)} missing: {', '.join(lost[:4])}; {len(odd)} unexpected: {', '.join(odd[:4])}"
        raise UserError(f"{path} does not fit the config's backbone; {named}")
    return [*shapes, *missing]


def _check_order(path: str | Path, content: Any, classes: Sequence[str]) -> None:
    """Refuses a checkpoint of the same classes in another order: every figure would be of the wrong class."""
    meta = content.get("meta") or {}
    trained = (meta.get("dataset_meta") or {}).get("classes") or meta.get("CLASSES") or ()
    if tuple(trained) != tuple(classes) and set(trained) == set(classes):
        raise UserError(
            f"{path} was trained for the classes {', '.join(trained)}, in this order; the data has {', '.join(classes)}: "
            "set metainfo.classes of its dataset"
        )


def find_model(
    source: str | Path, *, checkpoint: str | Path | None = None, overrides: Sequence[str] = ()
) -> tuple[Any, Path, Task]:
    """Config, weights and task of a trained detector or segmentor.

    Args:
        source: a run folder, or a config file.
        checkpoint: the weights for a config file; in place of the run's for a folder.
        overrides: as in `open_config`.

    Raises:
        UserError: there is no such thing.
    """
    path = Path(source)
    if path.is_dir():
        card = json.loads((path / CARD).read_text())
        weights = Path(checkpoint or path / card["checkpoint"])
        return open_config(path / card["config"], card["task"], overrides), weights, card["task"]
    task = task_of_config(path)
    if checkpoint is None:
        raise UserError(f"{source} is a config: give its weights, --checkpoint FILE")
    return open_config(path, task, overrides), Path(checkpoint), task


def build_model(config: Any, task: Task) -> Any:
    """The model of a config, with random weights.

    Raises:
        UserError: it cannot be built.
    """
    from mmengine.model import revert_sync_batchnorm
    from mmengine.registry import MODELS, init_default_scope

    init_default_scope(SCOPES[task])
    try:
        return revert_sync_batchnorm(MODELS.build(config.model))
    except (ValueError, TypeError, KeyError, AssertionError) as error:
        raise UserError(f"the config cannot be built: {_line(error)}") from error


def move_data(config: Any, root: str | Path, splits: Sequence[str] = ("test",)) -> None:
    """Points splits, and their metrics, at another `data_root`.

    Args:
        config: of `open_config`.
        root: in place of the datasets' own.
        splits: of "train", "val" and "test"; those that the config lacks are left out.

    Raises:
        UserError: a split that has no data_root.
    """
    config.pop("digit_scenes", None)  # they are drawn for the config's own root
    for split in splits:
        loader = config.get(f"{split}_dataloader")
        if not loader:
            continue
        datasets = list(_with_root(loader.dataset))
        if not datasets:
            raise UserError(
                f"--data: {split}_dataloader.dataset of the config has no data_root; set its ann_file and data_prefix instead"
            )
        old = datasets[0].data_root
        for dataset in datasets:
            dataset.data_root = str(root)
        evaluators = config.get(f"{split}_evaluator") or []
        for evaluator in evaluators if isinstance(evaluators, list) else [evaluators]:
            for key, value in evaluator.items():
                if isinstance(value, str) and Path(value).is_relative_to(old):
                    evaluator[key] = str(Path(root) / Path(value).relative_to(old))


def _with_root(node: Any) -> Iterator[Any]:
    """The datasets of a config that have a data_root, also those inside others."""
    if isinstance(node, list):
        for part in node:
            yield from _with_root(part)
    elif isinstance(node, dict):
        if node.get("data_root"):
            yield node
        else:
            yield from _with_root(node.get("dataset", node.get("datasets")))


def task_of_config(path: Path) -> Task:
    """What a config file is for.

    Raises:
        UserError: neither detection nor segmentation.
    """
    from mmengine.config import Config

    if not path.is_file():
        raise UserError(f"no config at {path}")
    scope = Config.fromfile(str(path)).get("default_scope")
    for task, wanted in SCOPES.items():
        if scope == wanted:
            return task  # pyright: ignore[reportReturnType]
    raise UserError(f"{path} is for neither detection nor segmentation: its default_scope is {scope!r}")


class WholeModel(nn.Module):
    """A config's detector or segmentor as a function of images alone, for measuring; heads run on their own proposals.

    Args:
        path: config file; its weights are random, and nothing is downloaded.

    Raises:
        UserError: it cannot be read or built.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.task: Task = task_of_config(Path(path))
        config = open_config(path, self.task)
        config.model.backbone.pop("init_cfg", None)
        self.model = build_model(config, self.task)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W), normalised -> the mean of every output."""
        size = (x.shape[2], x.shape[3])
        shapes = dict.fromkeys(("img_shape", "ori_shape", "pad_shape", "batch_input_shape"), size)
        sample = importlib.import_module(f"{SCOPES[self.task]}.structures")
        kind = sample.DetDataSample if self.task == "detection" else sample.SegDataSample
        samples = [kind(metainfo={**shapes, "scale_factor": (1.0, 1.0)}) for _ in x]
        outputs = self.model(x, samples, mode="tensor")
        return torch.stack([part.float().mean() for part in _tensors(outputs) if part.numel()])


def _tensors(outputs: Any) -> Iterator[torch.Tensor]:
    if isinstance(outputs, torch.Tensor):
        if outputs.is_floating_point():
            yield outputs
    elif isinstance(outputs, dict):
        yield from _tensors(list(outputs.values()))
    elif isinstance(outputs, (list, tuple)):
        for output in outputs:
            yield from _tensors(output)


def _unwrapped(model: Any) -> Any:
    return model.module if hasattr(model, "module") else model


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:400] or type(error).__name__
