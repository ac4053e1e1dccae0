"""Training, resuming, evaluating and predicting through the tools, on a few embedded scenes; every error in one line."""

import importlib.util
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image
from pycocotools.mask import decode

from visionssm.data.digit_scenes import SceneSettings, write_digit_scenes
from visionssm.engine.openmmlab import Task, open_config
from visionssm.engine.openmmlab_seeding import seed_albumentations

ROOT = Path(__file__).parents[2]
CONFIGS = {
    "detection": ROOT / "configs/detection/demo_mask_rcnn_vmamba_nano.py",
    "segmentation": ROOT / "configs/segmentation/demo_upernet_vmamba_nano.py",
}
SCENES = SceneSettings(training=8, validation=4)
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning")]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digit_scenes(tmp_path_factory.mktemp("scenes"), SCENES)


def command(task: str, scenes: Path, output: Path, *more: object, epochs: int = 1) -> list[str]:
    """Arguments for a short training on these scenes."""
    data = [f"{part}_dataloader.dataset.data_root={scenes}" for part in ("train", "val", "test")]
    words = [f"digit_scenes={dict(asdict(SCENES), root=str(scenes))}", *data]
    if task == "detection":
        words += [f"{part}_evaluator.ann_file={scenes}/instances_validation.json" for part in ("val", "test")]
        words += [f"train_cfg.max_epochs={epochs}", "train_cfg.val_interval=1", "default_hooks.checkpoint.interval=1"]
    else:
        words += [f"train_cfg.max_iters={epochs}", "train_cfg.val_interval=1", "default_hooks.checkpoint.interval=1"]
    return [str(CONFIGS[task]), *words, "--work-dir", str(output), "--pictures", "2", "--cpu", *map(str, more)]


def run(name: str, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    """Runs a tool's main part as its command line would."""
    spec = importlib.util.spec_from_file_location("__main__", ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    if hasattr(tool, "main"):
        tool.main()


@pytest.fixture(scope="module", params=["detection", "segmentation"])
def trained(request: pytest.FixtureRequest, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A run of one epoch or step."""
    output = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as monkeypatch:
        run(f"train_{request.param}", monkeypatch, *command(request.param, scenes, output))
    return request.param, output


def test_a_run_leaves_metrics_pictures_and_tensorboard(trained: tuple[str, Path]) -> None:
    task, output = trained
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["task"] == task
    assert {"detection": "coco/segm_mAP_50", "segmentation": "mIoU"}[task] in metrics["scores"]
    assert json.loads((output / "config.json").read_text())["checkpoint"] == metrics["checkpoint"]
    picture = np.asarray(Image.open(output / "predictions.png"))
    assert picture.shape[1] > 4 * 384
    assert picture[:384].std() > 20
    assert list(output.glob("*/vis_data/events.out.tfevents.*"))


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_augmentation_follows_the_seed(task: Task, scenes: Path) -> None:
    """The pictures of two datasets are the same by one seed, and others by another."""
    config = open_config(CONFIGS[task], task, [f"train_dataloader.dataset.data_root={scenes}"])
    init_default_scope(config.default_scope)

    def pictures(seed: int) -> torch.Tensor:
        dataset = DATASETS.build(config.train_dataloader.dataset)
        seed_albumentations(dataset)
        np.random.seed(seed)  # noqa: NPY002 as MMEngine does
        return torch.stack([dataset[i]["inputs"] for i in range(4)])

    first = pictures(0)
    assert torch.equal(first, pictures(0))
    assert not torch.equal(first, pictures(1))


def test_evaluation_gives_the_figures_of_the_training(trained, monkeypatch, tmp_path: Path) -> None:
    _, output = trained
    run("evaluate", monkeypatch, output, "--json", tmp_path / "scores.json", "--pictures", tmp_path / "p.png", "--cpu")
    scores = json.loads((tmp_path / "scores.json").read_text())["scores"]
    assert scores == json.loads((output / "metrics.json").read_text())["scores"]
    assert (tmp_path / "p.png").is_file()


def test_evaluation_on_other_classes(trained, monkeypatch) -> None:
    """Fewer, or the same in another order."""
    task, output = trained
    names = {"detection": [str(i) for i in range(10)], "segmentation": ["background", *"0123456789"]}[task]
    for classes, message in (
        (names[:2], r"palette has not one colour|has 10 classes, the data 2 \(0, 1\): set .* or test_dataloader"),
        (names[::-1], rf"was trained for the classes .*, in this order; the data has {', '.join(names[::-1])}"),
    ):
        words = f"test_dataloader.dataset.metainfo.classes={classes}"
        with pytest.raises(SystemExit, match=message):
            run("evaluate", monkeypatch, output, "--cfg-options", words, "--cpu")


def test_prediction_draws_and_writes_figures(trained, scenes: Path, monkeypatch, tmp_path: Path, capsys) -> None:
    task, output = trained
    images = tmp_path / "images"
    shutil.copytree(scenes / "images" / "validation", images)
    (images / "broken.png").write_bytes(b"broken")
    more = ["--threshold", "0.0"] if task == "detection" else []
    arguments = [output, images, "--output", tmp_path / "found", "--json", tmp_path / "f.json", "--cpu", *more]
    with pytest.raises(SystemExit, match=r"error: cannot read image .*broken\.png.*--skip-corrupt"):
        run("predict", monkeypatch, *arguments)
    run("predict", monkeypatch, *arguments, "--skip-corrupt")
    assert "skipped: cannot read image" in capsys.readouterr().out
    found = json.loads((tmp_path / "f.json").read_text())
    assert [Path(entry["image"]).name for entry in found] == [f"{i:04}.png" for i in range(4)]
    for entry in found:
        name = Path(entry["image"]).stem
        assert Image.open(tmp_path / "found" / f"{name}.png").width == 384
        if task == "segmentation":
            assert sum(entry["pixels"].values()) == pytest.approx(1)
            labels = np.asarray(Image.open(tmp_path / "found" / f"{name}_labels.png"))
            assert labels.shape == (128, 128)
            assert labels.max() <= 10
    if task == "detection":
        objects = [o for entry in found for o in entry["objects"]]
        assert all(set(o) == {"class", "score", "box", "segmentation"} for o in objects)
        assert all(decode(o["segmentation"]).shape == (128, 128) for o in objects)


def test_turned_photographs_are_drawn_upright(trained, scenes: Path, monkeypatch, tmp_path: Path) -> None:
    """What was found in a picture that its EXIF turns lies where it was found in the picture turned beforehand."""
    _, output = trained
    upright = Image.open(scenes / "images" / "validation" / "0000.png").crop((0, 0, 128, 64))
    upright.save(tmp_path / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # show it turned by 90 degrees clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    found = tmp_path / "found"
    run("predict", monkeypatch, output, tmp_path / "upright.png", tmp_path / "turned.png", "--output", found, "--cpu")
    names = [path.name for path in found.glob("turned*")]
    assert names
    for name in names:
        expected = np.asarray(Image.open(found / name.replace("turned", "upright")))
        np.testing.assert_array_equal(np.asarray(Image.open(found / name)), expected)


def test_prediction_replaces_its_own_pictures_only(trained, scenes: Path, monkeypatch, tmp_path: Path) -> None:
    task, output = trained
    source = scenes / "images" / "validation" / "0000.png"
    one, other, mixed, found = (tmp_path / name for name in ("one", "other", "mixed", "found"))
    for folder in (one, other, mixed):
        folder.mkdir()
        Image.open(source).save(folder / "x.jpg")
    shutil.copy(source, mixed / "x.png")

    def refused(message: str, *arguments: object) -> None:
        with pytest.raises(SystemExit, match=message):
            run("predict", monkeypatch, output, *arguments, "--cpu")

    refused(r"x\.png would replace an input", mixed, "--output", mixed)
    refused(r"x\.png is there and was not drawn by this tool", one / "x.jpg", "--output", mixed)
    refused(r"one/x\.jpg and .*other/x\.jpg would both be written to", one, other, "--output", found)
    assert (mixed / "x.png").read_bytes() == source.read_bytes()
    assert not found.exists()
    if task == "segmentation":
        shutil.copy(one / "x.jpg", one / "x_labels.jpg")
        refused(r"would both be written to .*x_labels\.png", one, "--output", found)
    for _ in range(2):
        run("predict", monkeypatch, output, other / "x.jpg", "--output", found, "--cpu")


def test_options_without_effect_are_refused(trained, monkeypatch, tmp_path: Path) -> None:
    task, output = trained
    tools = [
        ("evaluate", ["--split", "train"]),
        ("evaluate", ["--precision", "bf16"]),
        ("predict", ["--precision", "bf16"]),
    ]
    if task == "segmentation":
        tools.append(("predict", ["--threshold", "0.9"]))
    for tool, words in tools:
        inputs = [output / "predictions.png", "--output", tmp_path] if tool == "predict" else []
        with pytest.raises(SystemExit, match=f"error: {words[0]}"):
            run(tool, monkeypatch, output, *inputs, *words, "--cpu")


def test_a_folder_that_holds_a_run_is_not_overwritten(trained, scenes: Path, monkeypatch) -> None:
    task, output = trained
    with pytest.raises(SystemExit, match=r"error: .* already holds a run; continue it with --resume auto"):
        run(f"train_{task}", monkeypatch, *command(task, scenes, output))


def test_overwriting_discards_the_run_that_was_there(trained, scenes: Path, monkeypatch, tmp_path: Path) -> None:
    """Neither resumed nor measured again, also where the new run is killed at once or keeps no best checkpoint."""
    task, old = trained
    output = tmp_path / "run"
    shutil.copytree(old, output)
    arguments = ["default_hooks.checkpoint.save_best=null", *command(task, scenes, output)[1:]]

    def killed(runner) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("mmengine.runner.Runner.train", killed)
        with pytest.raises(SystemExit, match="interrupted"):
            run(f"train_{task}", patched, CONFIGS[task], *arguments, "--overwrite")
    assert not [*output.glob("*.pth"), *output.glob("*.json"), *output.glob("last_checkpoint")]
    with pytest.raises(SystemExit, match=r"is not an exported model or finished run: it has no config\.json"):
        run("predict", monkeypatch, output, old / "predictions.png", "--output", tmp_path / "found")
    (output / "best_of_another_run.pth").touch()
    run(f"train_{task}", monkeypatch, CONFIGS[task], *arguments, "--resume", "auto", "--pictures", "0")
    assert not (output / "predictions.png").exists()
    only = {"detection": "epoch_1.pth", "segmentation": "iter_1.pth"}[task]
    assert json.loads((output / "metrics.json").read_text())["checkpoint"] == only
    assert (output / "best_of_another_run.pth").is_file()


def test_a_killed_training_resumes(scenes: Path, monkeypatch, tmp_path: Path) -> None:
    """Killed without warning in its second epoch, it goes on from the first and does not train that again."""
    output = tmp_path / "run"
    arguments = command("detection", scenes, output, epochs=50)
    one = "default_hooks.checkpoint.max_keep_ckpts=1"
    arguments.insert(1, one)
    process = subprocess.Popen(
        [sys.executable, ROOT / "tools" / "train_detection.py", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not (output / "last_checkpoint").is_file():
        assert process.poll() is None
        time.sleep(0.2)
    time.sleep(1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    begun = torch.load(Path((output / "last_checkpoint").read_text()), weights_only=False)["meta"]["epoch"]
    arguments = command("detection", scenes, output, "--resume", "auto", epochs=begun + 1)
    arguments.insert(1, one)
    run("train_detection", monkeypatch, *arguments)
    log = max(output.glob("*/*.log")).read_text()
    assert f"Epoch(train) [{begun + 1}]" in log.replace("  ", " ") or f"resumed epoch: {begun}" in log
    assert f"Epoch(train) [{begun}]" not in log.replace("  ", " ")
    assert json.loads((output / "metrics.json").read_text())["scores"]
    # the one before is not taken away until the next is there, so a second is kept
    assert [(output / f"epoch_{epoch}.pth").is_file() for epoch in (begun, begun + 1)] == [True, True]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train_cfg.max_epoch=3"], r"train_cfg has no 'max_epoch'; did you mean max_epochs"),
        (["train_cfg.max_epochs"], "not of the form key=value"),
        (["model.backbone.name=vmamba_nanoo"], "did you mean vmamba_nano"),
        (["train_dataloader.dataset.ann_file=nowhere.json"], r"no such file: .*nowhere\.json"),
        (["val_dataloader.dataset.ann_file=nowhere.json"], r"no such file: .*nowhere\.json"),
        (
            ["model.roi_head.mask_head.num_classes=7"],
            r"roi_head\.mask_head has 7 classes, the data 10 \(0, 1, 2, 3, 4, \.\.\.\): set model\.roi_head\.mask_head",
        ),
        (["train_dataloader.dataset.metainfo.classes=('cat','dog')"], "has 10 classes, the data 2 "),
        (["val_dataloader.dataset.metainfo.classes=('cat','dog')"], r"data 2 \(cat, dog\): set .* or val_dataloader"),
        (["test_dataloader.dataset.metainfo.classes=('cat','dog')"], r"data 2 \(cat, dog\): set .* or test_dataloader"),
        (
            ["train_dataloader.num_workers=1", "train_dataloader.dataset.data_prefix.img=nowhere"],
            r"no such file: .*/nowhere/\d+\.png$",
        ),
        (["--pictures", "-1"], "--pictures -1: must be 0 or more"),
        (["epochs=1"], r"epochs is only a variable of the config.*: set train_cfg\.max_epochs"),
        (["load_from=nowhere.pth"], "no checkpoint file at nowhere.pth"),
        (["--resume", "nowhere.pth"], "--resume nowhere.pth: no such checkpoint"),
        (["--precision", "bf16"], "needs a GPU"),
        (["--launcher", "pytorch"], "several processes on GPUs only"),
    ],
)
def test_errors_are_one_line(words: list[str], message: str, scenes: Path, monkeypatch, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=message) as caught:
        run("train_detection", monkeypatch, *command("detection", scenes, tmp_path / "run"), *words)
    assert str(caught.value).startswith("error: ")
    assert "\n" not in str(caught.value)


def test_the_commands_of_the_readme(monkeypatch, tmp_path: Path) -> None:
    """They find everything but the data."""
    (words,) = re.findall(r"python tools/train_detection\.py (.*=.*)", (ROOT / "README.md").read_text())
    config, *overrides = words.split()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"error: no such file: data/coco/annotations/instances_train2017\.json"):
        run("train_detection", monkeypatch, ROOT / config, *overrides)


def test_a_classifiers_weights_are_no_detectors(scenes: Path, monkeypatch, tmp_path: Path) -> None:
    torch.save({"model": {"stem.conv1.weight": torch.zeros(1)}}, tmp_path / "classifier.pth")
    words = [f"load_from={tmp_path / 'classifier.pth'}"]
    with pytest.raises(SystemExit, match=r"holds no detector .*model\.backbone\.init_cfg"):
        run("train_detection", monkeypatch, *command("detection", scenes, tmp_path / "run"), *words)


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_a_corrupt_image_is_named(task: str, scenes: Path, monkeypatch, tmp_path: Path) -> None:
    broken = tmp_path / "scenes"
    shutil.copytree(scenes, broken)
    for path in (broken / "images" / "training").iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(SystemExit, match=r"error: corrupt image: .*training/\d+\.png"):
        run(f"train_{task}", monkeypatch, *command(task, scenes, tmp_path / "run", "--data", broken))


def test_label_maps_of_more_classes(scenes: Path, monkeypatch, tmp_path: Path) -> None:
    other = tmp_path / "scenes"
    shutil.copytree(scenes, other)
    for path in (other / "annotations" / "training").iterdir():
        Image.fromarray(np.full((128, 128), 31, np.uint8)).save(path)
    with pytest.raises(SystemExit, match=r"error: a label map holds class 30, which the config's classes do not reach"):
        run("train_segmentation", monkeypatch, *command("segmentation", other, tmp_path / "run"))


@pytest.mark.parametrize("lost", ["annotations/training/0003.png", "images/training"])
def test_missing_files_of_segmentors(lost: str, scenes: Path, monkeypatch, tmp_path: Path) -> None:
    other = tmp_path / "scenes"
    shutil.copytree(scenes, other)
    path = other / lost
    path.unlink() if path.is_file() else shutil.rmtree(path)
    with pytest.raises(SystemExit, match=rf"error: .*{lost}") as caught:
        run("train_segmentation", monkeypatch, *command("segmentation", other, tmp_path / "run"))
    assert "\n" not in str(caught.value)


def test_a_config_of_the_other_task(monkeypatch, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="is for segmentation; this is for detection"):
        run("train_detection", monkeypatch, CONFIGS["segmentation"], "--work-dir", tmp_path)
    with pytest.raises(SystemExit, match=r"no config at nowhere\.py"):
        run("train_detection", monkeypatch, "nowhere.py", "--work-dir", tmp_path)
    with pytest.raises(SystemExit, match="is a config: give its weights, --checkpoint FILE"):
        run("evaluate", monkeypatch, CONFIGS["detection"], "--cpu")


def test_benchmark_takes_configs(monkeypatch, capsys) -> None:
    run("benchmark_models", monkeypatch, *CONFIGS.values(), "--no-baselines", "--resolutions", 128, "--modes", "inference",
        "--batch", 2, "--repetitions", 1, "--warmup", 1)  # fmt: skip
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines() if "_vmamba_nano" in line}
    assert set(rows) == {"demo_mask_rcnn_vmamba_nano", "demo_upernet_vmamba_nano"}
    assert all(float(row[2]) > 0.1 and float(row[4]) > 0 for row in rows.values())
