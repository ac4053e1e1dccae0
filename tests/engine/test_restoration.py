"""The restoration trainer: recipes, patches, schedule, losses, exact resume, fine-tuning, what a run leaves behind."""

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

import visionssm
from tests.tolerances import TOLERANCES
from visionssm.data.classification import CorruptImage
from visionssm.data.degradations import DegradationConfig, degrade
from visionssm.data.errors import DataError, UserError
from visionssm.data.pictures import read_picture
from visionssm.data.restoration import PatchSet, SplitConfig, build_patch_loader, load_pair, open_pictures
from visionssm.data.sampling import CropBatches, PatchStage
from visionssm.engine.checkpoint import load_checkpoint
from visionssm.engine.config import build_config, load_config
from visionssm.engine.loop import Place, build_accelerator
from visionssm.engine.models import task_of
from visionssm.engine.restoration import RestorationConfig, RestorationTask, train_restorer
from visionssm.engine.restorers import load_restorer
from visionssm.engine.settings import (
    OptimizerConfig,
    ScheduleConfig,
    UpdatesRunConfig,
    build_optimizer,
    build_schedule,
)

RECIPES = sorted((Path(__file__).parents[2] / "configs" / "restoration").glob("*.yaml"))
SMALL = {"dim": 12, "depths": [1], "d_state": 1}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five small clean pictures, and the same degraded by hand."""
    root = tmp_path_factory.mktemp("pictures")
    for name in ("HR/a", "LR/a"):
        (root / name).mkdir(parents=True)
    random = np.random.default_rng(0)
    for i in range(5):
        coarse = random.integers(0, 256, (6, 7, 3), dtype=np.uint8)
        clean = np.asarray(Image.fromarray(coarse).resize((57, 48), Image.Resampling.BICUBIC))
        Image.fromarray(clean).save(root / "HR" / "a" / f"{i}.png")
        Image.fromarray(clean[:48, :56][::2, ::2]).save(root / "LR" / "a" / f"{i}x2.png")
    return root


@pytest.fixture
def recipe(tmp_path: Path, pictures: Path) -> Callable[..., RestorationConfig]:
    """Two evaluations of three updates each, with some sections changed."""

    def build(**changes: dict[str, Any]) -> RestorationConfig:
        part = {"clean": [str(pictures / "HR")], "limit": 2}
        tree: dict[str, dict[str, Any]] = {
            "run": {
                "output": str(tmp_path / "run"),
                "updates": 6,
                "evaluate_every": 3,
                "batch_size": 4,
                "tensorboard": False,
            },
            "model": {"name": "mambair_nano_x2", "kwargs": SMALL, "drop_path": 0.1},
            "data": {"train": {"clean": part["clean"]}, "validation": part, "patch_size": 16, "workers": 0},
            "optimizer": {"name": "adam", "lr": 1e-3},
            "schedule": {"name": "multistep", "milestones": [4]},
        }
        for section, values in changes.items():
            tree[section] = {**tree.get(section, {}), **values}
        return build_config(RestorationConfig, tree)

    return build


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_whole(path: Path) -> None:
    config = load_config(RestorationConfig, path)
    name = config.model.name
    assert name in visionssm.list_models(task="restoration")
    scale = int(found[1]) if (found := re.search(r"_x(\d)$", name)) else 1
    assert config.stages(scale)[-1].until == config.run.updates
    assert Path(config.run.output).name in (path.stem, "demo_restoration")
    model = torch.nn.Linear(2, 2)
    optimizer = build_optimizer(config.optimizer, model, batch_size=config.run.batch_size)
    build_schedule(
        config.schedule,
        optimizer,
        optimizer_config=config.optimizer,
        run=config.run,
        updates_per_epoch=config.run.evaluate_every,
    )
    assert (config.degradation == DegradationConfig()) == (scale > 1 or bool(config.data.train.degraded))


def test_every_published_model_has_a_recipe() -> None:
    named = {load_config(RestorationConfig, path).model.name for path in RECIPES}
    ours = {name for name in visionssm.list_models(task="restoration") if "nano" in name}
    assert named - ours == set(visionssm.list_models(task="restoration")) - ours


def test_the_rate_falls_after_each_milestone() -> None:
    optimizer = OptimizerConfig(name="adam", lr=1.0)
    inner = build_optimizer(optimizer, torch.nn.Linear(1, 1), batch_size=1)
    run = UpdatesRunConfig(output="", updates=10, evaluate_every=5)
    schedule = build_schedule(
        ScheduleConfig(name="multistep", milestones=(3, 6)),
        inner,
        optimizer_config=optimizer,
        run=run,
        updates_per_epoch=5,
    )
    theirs = torch.optim.Adam(torch.nn.Linear(1, 1).parameters(), lr=1.0)
    multi = torch.optim.lr_scheduler.MultiStepLR(theirs, [3, 6], gamma=0.5)
    for update in range(10):
        schedule.step_update(update)
        assert inner.param_groups[0]["lr"] == theirs.param_groups[0]["lr"] == multi.get_last_lr()[0]
        theirs.step()
        multi.step()


def test_a_rate_that_waits_and_falls_along_a_cosine() -> None:
    optimizer = OptimizerConfig(name="adam", lr=1.0)
    inner = build_optimizer(optimizer, torch.nn.Linear(1, 1), batch_size=1)
    run = UpdatesRunConfig(output="", updates=100, evaluate_every=10)
    config = ScheduleConfig(name="cosine", warmup_epochs=4, warmup_lr=1.0, warmup_prefix=True, min_lr=0.1)
    schedule = build_schedule(config, inner, optimizer_config=optimizer, run=run, updates_per_epoch=10)
    rates = []
    for update in range(100):
        schedule.step_update(update)
        rates.append(inner.param_groups[0]["lr"])
    expected = [1.0] * 40 + [0.1 + 0.45 * (1 + np.cos(np.pi * i / 60)) for i in range(60)]
    np.testing.assert_allclose(rates, expected, rtol=1e-9)


@pytest.mark.parametrize("clean", ["photographs", "HR"])
def test_what_spawned_loader_processes_get_can_be_pickled(pictures: Path, clean: str) -> None:
    config = SplitConfig(clean=(clean if clean == "photographs" else str(pictures / clean),), limit=2)
    source = open_pictures(config, "train", scale=2, channels=3, cache=2)
    patches = PatchSet(source, DegradationConfig(), scale=2, flips=True, seed=0)
    key = (0, 0, 1, 16)
    wanted = patches[key]["degraded"]  # also fills the cache
    assert torch.equal(pickle.loads(pickle.dumps(patches))[key]["degraded"], wanted)


def test_batches_take_every_picture_once_before_any_again() -> None:
    stages = [
        PatchStage(until=4, patch_size=16, batch_size=8),
        PatchStage(until=9, patch_size=32, batch_size=2),
    ]

    def items(rank: int, world: int, accumulate: int = 1) -> list[list[tuple[int, int, int, int]]]:
        batches = CropBatches(
            pictures=7,
            stages=stages,
            updates_per_epoch=3,
            seed=1,
            accumulate=accumulate,
            rank=rank,
            world=world,
        )
        found = []
        for epoch in range(3):
            batches.epoch = epoch
            assert len(batches) == 3 * accumulate
            found += list(batches)
        return found

    whole = items(0, 1)
    flat = [item for batch in whole for item in batch]
    assert [len(batch) for batch in whole] == [8] * 4 + [2] * 5
    assert {size for update, _, _, size in flat if update < 4} == {16}
    assert {size for update, _, _, size in flat if update >= 4} == {32}
    for start in range(0, 42, 7):
        assert sorted(item[2] for item in flat[start : start + 7]) == list(range(7))
    assert flat[:7] != flat[7:14]
    parts = [items(rank, 2) for rank in range(2)]
    for one, two, both in zip(*parts, whole, strict=True):
        assert sorted(one + two) == both
    steps = items(0, 1, accumulate=2)
    assert [sorted(a + b) for a, b in zip(steps[::2], steps[1::2], strict=True)] == whole
    batches = CropBatches(pictures=7, stages=stages, updates_per_epoch=3, seed=1)
    batches.epoch, batches.first_update = 1, 2
    assert list(batches) == [whole[5]]
    assert batches.samples(0, 3) == 8 + 2 + 2
    with pytest.raises(DataError, match="a batch of 2 patches cannot be shared evenly by 4"):
        CropBatches(pictures=7, stages=stages, updates_per_epoch=3, seed=1, world=4)
    with pytest.raises(DataError, match="ends at update 9, but begins at 9"):
        CropBatches(pictures=7, stages=[stages[1], stages[1]], updates_per_epoch=3, seed=1)


def symmetric(patch: np.ndarray, whole: np.ndarray, scale: int) -> set[tuple[int, int, int]]:
    """Where in a picture, and turned how, a patch is found: (y, x, symmetry), in units of the scale."""
    places = set()
    side = patch.shape[0]
    for symmetry in range(8):
        turned = patch[:, ::-1] if symmetry & 1 else patch
        turned = turned[::-1] if symmetry & 2 else turned
        turned = turned.swapaxes(0, 1) if symmetry & 4 else turned
        for y in range(0, whole.shape[0] - side + 1, scale):
            for x in range(0, whole.shape[1] - side + 1, scale):
                if np.array_equal(turned, whole[y : y + side, x : x + side]):
                    places.add((y // scale, x // scale, symmetry))
    return places


@pytest.mark.parametrize("paired", [False, True])
def test_patches_are_of_one_place(pictures: Path, paired: bool) -> None:
    folder = {"degraded": (str(pictures / "LR"),), "template": "{}x2"} if paired else {}
    source = open_pictures(SplitConfig(clean=(str(pictures / "HR"),), **folder), "train", scale=2, channels=3)
    patches = PatchSet(source, DegradationConfig(), scale=2, flips=True, seed=0)
    seen = set()
    for update in range(6):
        sample = patches[update, 0, update % 5, 16]
        again = patches[update, 0, update % 5, 16]
        assert torch.equal(sample["clean"], again["clean"])
        clean = source.clean(update % 5).astype(np.float32) / 255
        low = source.degraded(update % 5)
        low = (
            degrade(source.clean(update % 5), DegradationConfig(), scale=2)
            if low is None
            else low.astype(np.float32) / 255
        )
        both = [
            symmetric(sample[key].numpy().transpose(1, 2, 0), whole, scale)
            for key, whole, scale in (("clean", clean, 2), ("degraded", low, 1))
        ]
        assert len(both[0] & both[1]) == 1
        seen |= both[0] & both[1]
    assert len({place[:2] for place in seen}) > 3
    assert len({place[2] for place in seen}) > 2


def test_pairs_that_do_not_fit_are_named(pictures: Path, tmp_path: Path) -> None:
    clean, other = str(pictures / "HR"), str(pictures / "LR")
    with pytest.raises(DataError, match=r"has no degraded picture 'a/0x3'"):
        open_pictures(SplitConfig(clean=(clean,), degraded=(other,), template="{}x3"), "train", scale=2, channels=3)
    with pytest.raises(DataError, match="give one for each"):
        SplitConfig(clean=(clean, clean), degraded=(other,))
    with pytest.raises(DataError, match=r"must hold \{\}"):
        SplitConfig(template="x2")
    with pytest.raises(DataError, match="holds no pictures"):
        open_pictures(SplitConfig(clean=(str(tmp_path),)), "train", scale=2, channels=3)
    split = SplitConfig(clean=(clean,), degraded=(other,), template="{}x2")
    with pytest.raises(DataError, match=r"0x2\.png is 28x24, which times 3 is not the size"):
        open_pictures(split, "train", scale=3, channels=3).clean(0)
    source = open_pictures(split, "train", scale=2, channels=1)
    image, low = load_pair(source, 1, DegradationConfig(), scale=2, crop=20)
    assert (image.shape, low.shape) == ((20, 20, 1), (10, 10, 1))
    grey = read_picture(pictures / "HR" / "a" / "1.png").pixels @ np.array([0.299, 0.587, 0.114])
    assert np.abs(source.clean(1)[..., 0] - grey[:, :56]).max() <= 0.5 + 1e-9


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_and_small_pictures_stop_the_training(pictures: Path, tmp_path: Path, workers: int) -> None:
    source = open_pictures(SplitConfig(clean=(str(pictures / "HR"),)), "train", scale=2, channels=3)

    def loader(source: Any, size: int) -> Any:
        stages = [PatchStage(until=9, patch_size=size, batch_size=2)]
        batches = CropBatches(pictures=len(source), stages=stages, updates_per_epoch=2, seed=0)
        patches = PatchSet(source, DegradationConfig(), scale=2, flips=False, seed=0)
        return build_patch_loader(patches, batches, workers=workers)

    assert [batch["clean"].shape for batch in loader(source, 16)] == [(2, 3, 16, 16)] * 2
    with pytest.raises(DataError, match=r"is 56x48, smaller than data\.patch_size=50"):
        list(loader(source, 50))
    (tmp_path / "bad.png").write_bytes(b"broken")
    source = open_pictures(SplitConfig(clean=(str(tmp_path),)), "train", scale=2, channels=3)
    with pytest.raises(CorruptImage, match=r"bad\.png"):
        list(loader(source, 16))


def final(output: str) -> dict[str, Any]:
    return load_checkpoint(Path(output) / "checkpoints" / "last.pt")


@pytest.mark.parametrize("stop", [2, 3, 5])
def test_resume_is_exact(recipe, stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sections = {
        "degradation": {"noise": [0, 30], "jpeg": [20, 80]},
        "mix": {"alpha": 1.2},
        "ema": {"decay": 0.9},
        "data": {**_data(recipe), "stages": STAGES},
    }
    whole = recipe(**sections)
    metrics = train_restorer(whole, cpu=True)
    config = recipe(**sections, run={"output": str(tmp_path / "cut"), **RUN, "checkpoint_every": 1})
    loss = RestorationTask.loss

    def fail(self: RestorationTask, model: Any, batch: Any, place: Place, *, teacher: Any) -> torch.Tensor:
        if place.epoch * 3 + place.update == stop:
            raise KeyboardInterrupt
        return loss(self, model, batch, place, teacher=teacher)

    with monkeypatch.context() as patch:
        patch.setattr(RestorationTask, "loss", fail)
        with pytest.raises(KeyboardInterrupt):
            train_restorer(config, cpu=True)
    resumed = train_restorer(config, resume="auto", cpu=True)
    one, two = final(whole.run.output), final(config.run.output)
    assert all(torch.equal(one["model"][name], two["model"][name]) for name in one["model"])
    assert all(torch.equal(one["ema"][name], two["ema"][name]) for name in one["ema"])
    assert metrics["scores"] == resumed["scores"]
    assert [row["psnr"] for row in metrics["history"]] == [row["psnr"] for row in resumed["history"]]


STAGES = [{"until": 4, "patch_size": 16, "batch_size": 4}, {"until": 6, "patch_size": 24, "batch_size": 2}]
RUN = {"updates": 6, "evaluate_every": 3, "batch_size": 4, "tensorboard": False}


def _data(recipe: Callable[..., RestorationConfig]) -> dict[str, Any]:
    data = recipe().data
    clean = list(data.train.clean)
    return {"train": {"clean": clean}, "validation": {"clean": clean, "limit": 2}, "workers": 0}


def test_accumulation_changes_nothing(recipe, tmp_path: Path) -> None:
    weights = []
    for accumulate in (1, 2):
        config = recipe(
            run={**RUN, "output": str(tmp_path / str(accumulate)), "accumulate": accumulate},
            model={"name": "mambair_nano_x2", "kwargs": SMALL, "drop_path": 0.0},
            optimizer={"name": "sgd", "lr": 0.01},
        )
        train_restorer(config, cpu=True)
        weights.append(final(config.run.output)["model"])
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name], **TOLERANCES[torch.float32])


@pytest.mark.parametrize("options", [{"precision": "bf16"}, {"compile": "eager"}], ids=["bf16", "compile"])
@pytest.mark.slow
def test_options_train_like_float32_in_eager_mode(recipe, options: dict[str, str], tmp_path: Path) -> None:
    plain = train_restorer(recipe(), cpu=True)["history"]
    AcceleratorState._reset_state(reset_partial_state=True)
    metrics = train_restorer(recipe(run={**RUN, "output": str(tmp_path / "other"), **options}), cpu=True)
    assert metrics["environment"]["precision"] == options.get("precision", "no")
    for row, wanted in zip(metrics["history"], plain, strict=True):
        assert row["train_loss"] == pytest.approx(wanted["train_loss"], rel=0.05)


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"name": "l1"}, lambda d: d.abs().mean()),
        ({"name": "charbonnier", "eps": 0.01}, lambda d: (d**2 + 0.01).sqrt().mean()),
    ],
)
def test_losses(recipe, section: dict, expected: Callable) -> None:
    config = recipe(loss=section)
    source = open_pictures(config.data.train, "train", scale=2, channels=3)
    accelerator = build_accelerator(config.run, cpu=True)
    task = RestorationTask(config, train=source, validation=source, scale=2, accelerator=accelerator)
    batch = {"degraded": torch.rand(2, 3, 8, 8), "clean": torch.rand(2, 3, 16, 16)}

    def double(x: torch.Tensor) -> torch.Tensor:
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    loss = task.loss(double, batch, Place(0, 0, 0, 0.0), teacher=None)
    torch.testing.assert_close(loss, expected(double(batch["degraded"]) - batch["clean"]))


def test_what_a_run_leaves_behind(recipe) -> None:
    config = recipe(
        data={
            **_data(recipe),
            "test": {"clean": _data(recipe)["train"]["clean"], "limit": 3},
            "patch_size": 16,
        }
    )
    metrics = train_restorer(config, cpu=True)
    folder = Path(config.run.output)
    for name in (
        "config.yaml",
        "log.csv",
        "metrics.json",
        "curves.png",
        "pictures.png",
        "model.safetensors",
        "config.json",
    ):
        assert (folder / name).stat().st_size > 0
    assert json.loads((folder / "metrics.json").read_text())["scores"] == metrics["scores"]
    assert metrics["evaluated_on"] == "test"
    assert len(metrics["per_picture"]) == 3
    assert metrics["best_update"] in (3, 6)
    assert task_of(str(folder)) == "restoration"
    restorer = load_restorer(str(folder))
    assert (restorer.scale, restorer.channels) == (2, 3)
    best = load_checkpoint(folder / "checkpoints" / "best.pt")["model"]
    assert all(torch.equal(value, best[name]) for name, value in restorer.model.state_dict().items())
    with pytest.raises(UserError, match="already holds a run"):
        train_restorer(config, cpu=True)


def test_fine_tuning_for_another_scale_keeps_all_but_the_head(recipe, tmp_path: Path) -> None:
    first = recipe()
    train_restorer(first, cpu=True)
    weights = f"{first.run.output}/model.safetensors"
    still = {"optimizer": {"name": "sgd", "lr": 0.0, "weight_decay": 0.0}}
    config = recipe(
        run={**RUN, "output": str(tmp_path / "x4")},
        model={"name": "mambair_nano_x2", "kwargs": {**SMALL, "upscale": 4}, "checkpoint": weights},
        **still,
    )
    train_restorer(config, cpu=True)
    old, new = final(first.run.output), final(config.run.output)
    best = load_checkpoint(Path(first.run.output) / "checkpoints" / "best.pt")["model"]
    assert old["model"].keys() == new["model"].keys()
    same = {name for name in best if torch.equal(best[name], new["model"][name])}
    assert {name for name in best if name not in same} <= {"head.upsample.0.weight", "head.upsample.0.bias"}
    assert new["model"]["head.upsample.0.weight"].shape[0] == 48
    config = recipe(
        run={**RUN, "output": str(tmp_path / "wide")},
        model={"name": "mambair_nano_x2", "kwargs": {**SMALL, "dim": 24}, "checkpoint": weights},
    )
    with pytest.raises(UserError, match=r"does not fit MambaIR: .*in all"):
        train_restorer(config, cpu=True)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": {"name": "vmamba_nano"}}, "is not a restoration model"),
        ({"model": {"name": "mambair_nano_x2", "kwargs": {"width": 3}}}, "cannot be built: .*width"),
        ({"schedule": {"name": "constant", "milestones": [3]}}, "for schedule.name=multistep only"),
        ({"schedule": {"name": "multistep", "milestones": [5, 4]}}, "must ascend"),
    ],
)
def test_what_does_not_fit_is_named(recipe, sections: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        train_restorer(recipe(**sections), cpu=True)
    with pytest.raises(UserError, match=r"the last of data\.stages must end with the run"):
        recipe(data={**_data(recipe), "stages": STAGES[:1]}).stages(2)


def test_recolouring_permutes_both_pictures_alike(pictures: Path) -> None:
    source = open_pictures(SplitConfig(clean=(str(pictures / "HR"),)), "train", scale=2, channels=3)
    options: dict[str, Any] = {"scale": 2, "flips": True, "seed": 0}
    plain = PatchSet(source, DegradationConfig(), **options)
    coloured = PatchSet(source, DegradationConfig(), recolour=True, **options)
    orders = set()
    for update in range(8):
        one, two = plain[update, 0, 0, 16], coloured[update, 0, 0, 16]
        order = [next(i for i in range(3) if torch.equal(one["clean"][i], channel)) for channel in two["clean"]]
        assert torch.equal(two["degraded"], one["degraded"][order])
        orders.add(tuple(order))
    assert len(orders) > 2
