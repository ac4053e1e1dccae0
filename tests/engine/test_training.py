"""The trainer: exact resume, accumulation, mixing, averaging, divergence, and what a run leaves behind."""

import csv
import json
import math
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

import visionssm
from tests.parity.cases import load_cases
from tests.parity.families import HERE, torch_weights
from tests.tolerances import TOLERANCES
from visionssm.data.classification import CorruptImage
from visionssm.data.errors import UserError
from visionssm.engine import loop
from visionssm.engine.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from visionssm.engine.classification import ClassificationTask, train_classifier
from visionssm.engine.loop import DivergedError, Trainer
from visionssm.engine.models import ModelConfig, build_classifier, load_classifier

STRONG = {  # every source of randomness at once
    "augment": {"auto_augment": "rand-m9-mstd0.5-inc1", "random_erasing": 0.25},
    "mix": {"mixup": 0.8, "cutmix": 1.0},
    "loss": {"smoothing": 0.1},
    "ema": {"decay": 0.9},
    "optimizer": {"clip_grad": 1.0},
    "schedule": {"warmup_epochs": 1},
}
PLAIN = {"optimizer": {"name": "sgd", "lr": 0.05}}  # Adam would blow rounding up to a whole step


def final_state(folder: str, name: str = "last.pt") -> dict[str, Any]:
    return load_checkpoint(Path(folder) / "checkpoints" / name)


def assert_same_bits(one: Any, two: Any) -> None:
    """Equal tensors and values all the way down; speeds may differ."""
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one.keys() - {"images_per_second", "output", "overwrite", "checkpoint_every"}:
            assert_same_bits(one[key], two[key])
    elif isinstance(one, list):
        assert len(one) == len(two)
        for a, b in zip(one, two, strict=True):
            assert_same_bits(a, b)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, two)
    else:
        assert one == two


def assert_same_weights(one: str, two: str) -> None:
    a, b = final_state(one)["model"], final_state(two)["model"]
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], **TOLERANCES[torch.float32])


@pytest.mark.parametrize("wanted", [False, True])
def test_memory_is_kept_on_request(recipe, monkeypatch, wanted: bool) -> None:
    told: list[bool] = []
    monkeypatch.setattr(loop, "keep_memory", lambda: told.append(True) or True)
    loop.build_accelerator(recipe(run={"keep_memory": wanted}).run, cpu=True)
    assert told == [True] * wanted


def test_memory_that_cannot_be_kept_is_an_error(recipe, monkeypatch) -> None:
    monkeypatch.setattr(loop, "keep_memory", lambda: False)
    with pytest.raises(UserError, match="keep_memory=true needs glibc"):
        loop.build_accelerator(recipe(run={"keep_memory": True}).run, cpu=True)


def test_a_run_leaves_a_complete_folder(recipe, tmp_path: Path) -> None:
    config = recipe(data={"test_split": "test"}, run={"tensorboard": True, "log_every": 1}, ema={"decay": 0.5})
    metrics = train_classifier(config, cpu=True)
    folder = Path(config.run.output)
    stored = json.loads((folder / "metrics.json").read_text())
    assert stored == json.loads(json.dumps(metrics))
    assert stored["images"] == {"train": 1250, "validation": 183, "test": 364}
    assert stored["evaluated_on"] == "test"
    assert stored["scores"]["images"] == sum(row["images"] for row in stored["per_class"]) == 364
    right = sum(row["images"] * row["recall"] for row in stored["per_class"])
    assert math.isclose(right / 364, stored["scores"]["top1"], rel_tol=1e-6)
    assert stored["updates"] == 2 * (1250 // 128)
    assert stored["best_validation_top1"] == max(row["top1"] for row in stored["history"])
    assert stored["config"]["optimizer"]["lr"] == config.optimizer.lr
    with (folder / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == [1, 2]
    assert float(rows[1]["train_loss"]) < float(rows[0]["train_loss"])
    for picture in ("curves.png", "confusion.png"):
        with Image.open(folder / picture) as image:
            assert image.width > 300
    assert list((folder / "tensorboard").glob("events.*"))

    best = final_state(config.run.output, "best.pt")
    exported = load_file(folder / "model.safetensors")
    assert all(torch.equal(best["ema"][name], exported[name]) for name in exported)
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert model.pretrained_cfg["label_names"] == list("0123456789")
    assert model.pretrained_cfg["input_size"] == (3, 32, 32) or model.pretrained_cfg["input_size"] == [
        3,
        32,
        32,
    ]
    assert all(torch.equal(value, exported[name]) for name, value in model.state_dict().items())


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    "updates",
    [
        pytest.param(3, id="inside the first epoch", marks=pytest.mark.slow),
        pytest.param(9, id="at its end", marks=pytest.mark.slow),
        pytest.param(12, id="inside the second"),
    ],
)
def test_a_resumed_run_ends_with_the_same_bits(recipe, monkeypatch: pytest.MonkeyPatch, updates: int) -> None:
    check_resume(recipe, monkeypatch, updates, {**STRONG, "model": {"kwargs": {"drop_rate": 0.1}, "drop_path": 0.1}})


def test_a_resumed_run_shuffles_the_same_layers(recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    model = {"name": "vim_nano", "kwargs": {"dim": 32, "depth": 3, "d_state": 4, "shuffle_rate": 0.9}}
    check_resume(recipe, monkeypatch, 3, {"model": model, "run": {"epochs": 1}})


def check_resume(recipe, monkeypatch: pytest.MonkeyPatch, updates: int, sections: dict[str, Any]) -> None:
    run = sections.pop("run", {})
    whole = recipe(**sections, run={**run, "output": recipe().run.output + "-whole"})
    train_classifier(whole, cpu=True)

    config = recipe(**sections, run={**run, "checkpoint_every": 3})
    update = Trainer._update

    def kill(self: Trainer, *args: Any) -> Any:
        if self.updates_done == updates + 1:
            raise Killed
        return update(self, *args)

    monkeypatch.setattr(Trainer, "_update", kill)
    with pytest.raises(Killed):
        train_classifier(config, cpu=True)
    monkeypatch.undo()
    torch.manual_seed(99)  # nothing of the process's state may matter
    train_classifier(config, resume="auto", cpu=True)
    assert_same_bits(final_state(config.run.output), final_state(whole.run.output))
    assert_same_bits(final_state(config.run.output, "best.pt"), final_state(whole.run.output, "best.pt"))


@pytest.mark.parametrize("mode", ["plain", "mixed"])
def test_accumulation_equals_the_double_batch(recipe, mode: str) -> None:
    sections = {**PLAIN, **({"mix": STRONG["mix"], "loss": {"smoothing": 0.1}} if mode == "mixed" else {})}
    once = recipe(**sections, run={"output": recipe().run.output + "-once", "epochs": 1})
    split = recipe(**sections, run={"accumulate": 4, "epochs": 1})
    train_classifier(once, cpu=True)
    train_classifier(split, cpu=True)
    assert_same_weights(once.run.output, split.run.output)


def test_the_average_follows_its_formula(recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    weights: list[torch.Tensor] = []
    update = Trainer._update

    def record(self: Trainer, *args: Any) -> Any:
        result = update(self, *args)
        weights.append(self.model.head.weight.detach().clone())
        return result

    monkeypatch.setattr(Trainer, "_update", record)
    config = recipe(run={"epochs": 1}, ema={"decay": 0.7})
    train_classifier(config, cpu=True)
    average = weights[0]
    for value in weights[1:]:
        average = 0.7 * average + 0.3 * value
    torch.testing.assert_close(
        final_state(config.run.output)["ema"]["head.weight"], average, **TOLERANCES[torch.float32]
    )


def test_mixing_blends_images_and_labels_alike(recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    loss = ClassificationTask.loss

    def record(self: ClassificationTask, model: Any, batch: Any, place: Any, *, teacher: Any) -> torch.Tensor:
        batch["image"] = batch["target"].float()[:, None, None, None].expand(-1, 3, 32, 32).clone()

        def spy(images: torch.Tensor) -> torch.Tensor:
            seen.append((images, targets[-1]))
            return model(images)

        return loss(self, spy, batch, place, teacher=teacher)

    targets: list[torch.Tensor] = []
    call = loop.torch.nn.CrossEntropyLoss.forward

    def keep(self: Any, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        targets.append(target)
        return call(self, logits, target)

    targets.append(torch.empty(0))
    monkeypatch.setattr(ClassificationTask, "loss", record)
    monkeypatch.setattr(loop.torch.nn.CrossEntropyLoss, "forward", keep)
    train_classifier(recipe(run={"epochs": 1}, mix={"mixup": 0.8}), cpu=True)
    assert len(seen) == 9
    for (images, _), mixed in zip(seen, targets[1:], strict=True):
        expected = (mixed * torch.arange(10.0)).sum(1)  # an image of its class number, blended, is its label's mean
        torch.testing.assert_close(images[:, 0, 5, 5], expected, **TOLERANCES[torch.float32])
        torch.testing.assert_close(mixed.sum(1), torch.ones(128), **TOLERANCES[torch.float32])
    assert any(((mixed > 0).sum(1) == 2).any() for mixed in targets[1:])


@pytest.mark.slow
def test_mesa_starts_when_told(recipe) -> None:
    losses = {}
    for weight in (0.0, 1.0):
        config = recipe(
            run={"output": f"{recipe().run.output}-{weight}"},
            ema={"decay": 0.9},
            loss={"mesa": weight, "mesa_start": 0.5},
        )
        history = train_classifier(config, cpu=True)["history"]
        losses[weight] = [row["train_loss"] for row in history]
    assert losses[0.0][0] == losses[1.0][0]
    assert losses[1.0][1] > losses[0.0][1] + 0.5
    with pytest.raises(UserError, match=r"loss\.mesa needs a weight average"):
        recipe(loss={"mesa": 1.0})


def test_divergence_names_the_update_and_keeps_the_checkpoint(recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    config = recipe(run={"checkpoint_every": 1})
    loss = ClassificationTask.loss

    def poison(self: ClassificationTask, model: Any, batch: Any, place: Any, *, teacher: Any) -> torch.Tensor:
        value = loss(self, model, batch, place, teacher=teacher)
        return value * math.nan if (place.epoch, place.update) == (0, 6) else value

    monkeypatch.setattr(ClassificationTask, "loss", poison)
    with pytest.raises(DivergedError, match=r"diverged at update 7 \(epoch 1\): loss nan.*last\.pt is the last good"):
        train_classifier(config, cpu=True)
    state = final_state(config.run.output)
    assert state["state"]["update"] == 6
    assert all(torch.isfinite(value).all() for value in state["model"].values())


@pytest.mark.parametrize("epochs", [1, 2])
def test_an_exploding_learning_rate_is_caught(recipe, epochs: int) -> None:
    config = recipe(run={"epochs": epochs}, optimizer={"name": "sgd", "lr": 1e30})
    with pytest.raises(DivergedError, match=r"at update \d+ .*no checkpoint had been written"):
        train_classifier(config, cpu=True)
    assert not list(Path(config.run.output).glob("checkpoints/*.pt"))


def test_a_run_is_not_overwritten_by_accident(recipe) -> None:
    config = recipe(run={"epochs": 1})
    train_classifier(config, cpu=True)
    with pytest.raises(
        UserError, match=r"already holds a run \(checkpoints/last\.pt\); continue it with --resume auto"
    ):
        train_classifier(config, cpu=True)
    changed = recipe(run={"epochs": 1}, optimizer={"lr": 0.5})
    with pytest.raises(CheckpointError, match=r"optimizer\.lr was 0\.001, is 0\.5"):
        train_classifier(changed, resume="auto", cpu=True)
    (Path(config.run.output) / "metrics.json").unlink()
    metrics = train_classifier(config, resume="auto", cpu=True)  # nothing left to train: only the end is made anew
    assert metrics["updates"] == 9


def test_an_interrupted_overwrite_leaves_nothing_of_the_run_before(recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    config = recipe(run={"epochs": 1, "tensorboard": True})
    folder = Path(config.run.output)
    train_classifier(config, cpu=True)
    for wrong in (
        {"model": {"name": "test_vite"}},
        {"augment": {"auto_augment": "bogus"}},
        {"schedule": {"name": "cosin"}},
    ):
        with pytest.raises(UserError):  # what cannot start destroys nothing
            train_classifier(recipe(**wrong, run={"overwrite": True}), cpu=True)
    assert timm.create_model(f"local-dir:{folder}", pretrained=True)

    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_update", stop)
    other = recipe(model={"name": "test_convnext"}, run={"overwrite": True})
    with pytest.raises(KeyboardInterrupt):
        train_classifier(other, cpu=True)
    left = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert left == ["config.yaml", "log.csv"]
    assert not (folder / "log.csv").read_text().strip()
    with pytest.raises(UserError, match="not an exported model"):
        load_classifier(str(folder))


def test_a_model_without_its_checkpoints_is_not_overwritten_by_accident(recipe) -> None:
    config = recipe(run={"epochs": 1})
    folder = Path(config.run.output)
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"kept")
    with pytest.raises(UserError, match=r"holds a run \(model\.safetensors\); start anew with --overwrite"):
        train_classifier(config, resume="auto", cpu=True)
    assert (folder / "model.safetensors").read_bytes() == b"kept"


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": {"name": "vmamba_tyni_s1l8"}}, "did you mean .*vmamba_tiny_s1l8"),
        ({"model": {"name": "test_vit", "kwargs": {"deep": 3}}}, "cannot be built: .*deep"),
        ({"model": {"name": "test_vit", "checkpoint": "none.pth"}}, "none.pth: no such file"),
        ({"optimizer": {"name": "adamv"}}, "did you mean adam"),
        ({"schedule": {"name": "cosin"}}, "did you mean cosine"),
        ({"schedule": {"warmup_epochs": 9}}, "must be less than run.epochs=2"),
        ({"run": {"precision": "fp16"}}, "fp16 needs a GPU"),
        ({"data": {"name": "folder", "path": "nowhere"}}, "nowhere: no such folder"),
        ({"model": {"kwargs": {"num_classes": 5}}}, "model.kwargs.num_classes cannot be set: the data say"),
        ({"model": {"kwargs": {"in_chans": 1}}}, "model.kwargs.in_chans cannot be set: images are read in RGB"),
        ({"run": {"output": __file__}}, "test_training.py is a file; choose a folder"),
        ({"run": {"output": f"{__file__}/run"}}, "test_training.py is a file; choose a folder"),
    ],
)
def test_what_does_not_fit_is_named(recipe, sections: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        train_classifier(recipe(**sections), cpu=True)


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("augment", {"pipeline": [{"HorizontalFlip": {}}]}, "augment.pipeline needs augment.library=albumentations"),
        ("augment", {"hflip": 7}, "augment.hflip=7.0 must be at least 0 and at most 1"),
        ("augment", {"scale": [1.0, 0.1]}, r"augment.scale=\(1.0, 0.1\) must ascend"),
        ("mix", {"mixup": -1}, "mix.mixup=-1.0 must be at least 0"),
        ("mix", {"prob": 7}, "mix.prob=7.0 must be at least 0 and at most 1"),
        ("loss", {"smoothing": 2}, "loss.smoothing=2.0 must be at least 0 and less than 1"),
        ("ema", {"decay": 2}, "ema.decay=2.0 must be at least 0 and less than 1"),
        ("optimizer", {"lr": -1}, "optimizer.lr=-1.0 must be at least 0"),
        ("optimizer", {"betas": [2, 3]}, r"optimizer.betas=\(2.0, 3.0\) must be at least 0 and less than 1"),
        ("optimizer", {"clip_grad": -1}, "optimizer.clip_grad=-1.0 must be more than 0"),
        ("optimizer", {"layer_decay": 0}, "optimizer.layer_decay=0.0 must be more than 0 and at most 1"),
        ("data", {"crop_pct": 0}, "data.crop_pct=0.0 must be more than 0 and at most 1"),
        ("data", {"eval_batch_size": 0}, "data.eval_batch_size=0 must be at least 1"),
        ("data", {"std": [0, 0, 0]}, r"data.std=\(0.0, 0.0, 0.0\) must be more than 0"),
        ("data", {"path": "/nonexistent"}, "data.path=/nonexistent is not read: the digits are embedded"),
    ],
)
def test_values_that_cannot_be_meant_are_refused(recipe, section: str, values: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        recipe(**{section: values})


def test_a_corrupt_training_image_stops_or_is_recorded(recipe, tmp_path: Path) -> None:
    for split in ("train", "validation"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(8):
                Image.effect_noise((32, 32), 50 + i).convert("RGB").save(tmp_path / split / name / f"{i}.png")
    (tmp_path / "train" / "b" / "3.png").write_bytes(b"broken")
    data = {"name": "folder", "path": str(tmp_path), "image_size": 32}
    with pytest.raises(CorruptImage, match=r"train/b/3\.png"):
        train_classifier(recipe(data=data, run={"batch_size": 8}), cpu=True)
    config = recipe(data={**data, "skip_corrupt": True}, run={"batch_size": 8})
    metrics = train_classifier(config, cpu=True)
    assert metrics["classes"] == ["a", "b"]
    assert len(metrics["skipped_images"]) == 1
    assert "b/3.png" in metrics["skipped_images"][0]


@pytest.mark.slow
def test_fine_tuning_starts_from_a_file(recipe) -> None:
    first = recipe(run={"epochs": 1})
    train_classifier(first, cpu=True)
    weights = load_file(Path(first.run.output) / "model.safetensors")
    config = recipe(
        run={"output": first.run.output + "-tuned", "epochs": 1},
        model={"checkpoint": f"{first.run.output}/model.safetensors"},
        optimizer={"name": "sgd", "lr": 0.0, "weight_decay": 0.0},
    )
    train_classifier(config, cpu=True)
    tuned = load_file(Path(config.run.output) / "model.safetensors")
    assert all(torch.equal(weights[name], tuned[name]) for name in weights)


@pytest.fixture(scope="module")
def published() -> dict[str, torch.Tensor]:
    """EfficientViM-M1 in the names and the wrapping of its authors."""
    return torch_weights(load_cases(HERE / "efficient_vim" / "m1.json")[0])


def test_published_files_of_classifiers_are_taken_by_name(published, tmp_path: Path) -> None:
    torch.save({"model": published, "args": Namespace(lr=0.1)}, tmp_path / "m1.pth")
    wanted = visionssm.load_official(visionssm.create_model("efficient_vim_m1"), published).state_dict()
    loaded = load_classifier("efficient_vim_m1", checkpoint=str(tmp_path / "m1.pth")).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in wanted.items())
    config = ModelConfig(name="efficient_vim_m1", checkpoint=str(tmp_path / "m1.pth"))
    tuned = build_classifier(config, num_classes=7, image_size=64).eval()
    assert tuned(torch.zeros(1, 3, 64, 64)).shape == (1, 7)
    found = tuned.state_dict()
    assert all(torch.equal(found[name], value) for name, value in wanted.items() if not name.startswith("head."))


@pytest.mark.parametrize("name", ["efficient_vim_m1", "test_vit"])
def test_a_missing_weight_file_is_named(name: str) -> None:
    with pytest.raises(UserError, match=f"cannot load {name}: .*none.pth"):
        load_classifier(name, checkpoint="none.pth")


@pytest.mark.parametrize("name", ["vssd_nano", "test_vit"])
def test_a_checkpoint_as_weights_is_its_average(name: str, tmp_path: Path) -> None:
    plain, average = (timm.create_model(name).state_dict() for _ in range(2))
    file = tmp_path / "best.pt"
    save_checkpoint(file, {"config": {}, "state": {}, "model": plain, "ema": average, "optimizer": {}, "scaler": None})
    config = ModelConfig(name=name, checkpoint=str(file))
    for model in (
        load_classifier(name, checkpoint=str(file)),
        build_classifier(config, num_classes=1000, image_size=None),
    ):
        assert all(torch.equal(value, average[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    "sections",
    [
        {"run": {"precision": "bf16", "epochs": 1}},
        {"run": {"compile": "eager", "epochs": 1}},
        {"model": {"grad_checkpointing": True}, "run": {"epochs": 1}},
        {"optimizer": {"layer_decay": 0.7}, "run": {"epochs": 1}},
        {"augment": {"library": "albumentations", "pipeline": [{"Resize": {}}]}, "run": {"epochs": 1}},
    ],
    ids=["bf16", "compile", "checkpointing", "layer decay", "albumentations"],
)
def test_options_train(recipe, sections: dict) -> None:
    config = recipe(**sections)
    metrics = train_classifier(config, cpu=True)
    assert metrics["history"][0]["train_loss"] < 2.4
    if sections.get("optimizer"):
        scales = {group.get("lr_scale") for group in final_state(config.run.output)["optimizer"]["param_groups"]}
        assert len(scales) > 2
