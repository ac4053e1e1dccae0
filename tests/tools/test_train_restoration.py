"""Restoration from the command line: train, kill and resume, evaluate, restore files; errors are one line and leave no file."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image

from tests.tolerances import TOLERANCES
from tests.tools.test_evaluate import run
from tests.tools.test_train_classification import weights
from visionssm.data.photographs import load_photographs
from visionssm.engine.checkpoint import load_checkpoint
from visionssm.engine.config import build_config
from visionssm.engine.image_metrics import psnr
from visionssm.engine.restoration import RestorationConfig
from visionssm.engine.restorers import build_restorer, export_restorer, load_restorer
from visionssm.engine.tiling import Tiling, restore_picture

ROOT = Path(__file__).parents[2]
TOOL = str(ROOT / "tools" / "train_restoration.py")
DEMO = str(ROOT / "configs" / "restoration" / "demo_mambair_nano_x2.yaml")
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "kernels"))),
}


def call(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=ENVIRONMENT, cwd=cwd, capture_output=True, text=True, timeout=280, check=False)


@pytest.fixture(scope="module")
def restorer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model that has seen nothing: twice the size."""
    folder = tmp_path_factory.mktemp("restorer")
    tree = {
        "run": {"output": str(folder)},
        "model": {"name": "mambair_nano_x2", "kwargs": {"dim": 12, "depths": [1], "d_state": 1}},
    }
    config = build_config(RestorationConfig, tree)
    torch.manual_seed(0)
    model = build_restorer(config.model)
    export_restorer(model, model.state_dict(), folder, config=config.model, degradation=config.degradation)
    return folder


@pytest.fixture(autouse=True)
def _fresh_accelerate():
    """accelerate keeps device and precision in class attributes; each run in a test chooses its own."""
    yield
    _forget()


def _forget() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    PartialState._reset_state()


@pytest.fixture
def photo() -> np.ndarray:
    return load_photographs("test")["skimage/chelsea.png"][100:140, 100:150]


def restored(folder: Path, pixels: np.ndarray) -> np.ndarray:
    model = load_restorer(str(folder)).model
    return restore_picture(model, pixels, scale=2, tiling=Tiling())


def test_kinds_of_pictures_stay_what_they_are(restorer, photo, tmp_path, monkeypatch, capsys) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    (source / "sub").mkdir(parents=True)
    alpha = np.full((*photo.shape[:2], 1), 128, np.uint8)
    Image.fromarray(photo).save(source / "rgb.png")
    Image.fromarray(photo[..., 0]).save(source / "sub" / "grey.png")
    Image.fromarray(np.concatenate([photo, alpha], 2)).save(source / "rgba.webp", lossless=True)
    turned = Image.fromarray(photo)
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(source / "turned.png", exif=exif)
    deep = photo.astype(np.uint16) * 257 + 3
    cv2.imwrite(str(source / "deep.png"), deep[..., ::-1])
    cv2.imwrite(str(source / "deep_grey.tif"), deep[..., 0])
    Image.fromarray(photo).convert("CMYK").save(source / "ink.tif")
    Image.fromarray(photo).quantize(16).save(source / "palette.png")
    run("predict", monkeypatch, restorer, source, "--output", out, "--compare", "--convert")
    told = capsys.readouterr().out
    assert "CMYK converted to RGB" in told
    assert "palette converted to RGB" in told
    assert "8 restored, x2" in told

    def read(name: str) -> np.ndarray:
        return np.asarray(Image.open(out / name))

    expected = restored(restorer, photo)
    assert np.array_equal(read("rgb.png"), expected)
    assert np.array_equal(read("rgba.png")[..., :3], expected)
    assert (read("rgba.png")[..., 3] == 128).all()
    grey = restored(restorer, photo[..., :1].repeat(3, 2)).mean(2)
    assert read("sub/grey.png").shape == (80, 100)
    assert np.abs(read("sub/grey.png") - grey).max() <= 0.5
    assert np.array_equal(read("turned.png"), restored(restorer, np.rot90(photo, -1)))
    assert np.array_equal(cv2.imread(str(out / "deep.png"), cv2.IMREAD_UNCHANGED)[..., ::-1], restored(restorer, deep))
    both = cv2.imread(str(out / "deep_grey.png"), cv2.IMREAD_UNCHANGED)
    assert (both.dtype, both.shape) == (np.uint16, (80, 100))
    assert read("ink.png").shape == read("palette.png").shape == (80, 100, 3)
    assert read("rgb_compare.png").shape == (96, 204, 3)
    assert np.array_equal(read("rgb_compare.png")[16:, 104:], expected)


def test_a_checkpoint_replaces_the_weights_of_a_run(restorer, photo, tmp_path, monkeypatch) -> None:
    other = load_restorer(str(restorer)).model
    with torch.no_grad():
        other.conv_first.weight.mul_(-1)
    torch.save(other.state_dict(), tmp_path / "other.pth")
    loaded = load_restorer(str(restorer), checkpoint=str(tmp_path / "other.pth")).model
    assert torch.equal(loaded.conv_first.weight, other.conv_first.weight)
    Image.fromarray(photo).save(tmp_path / "in.png")
    with pytest.raises(SystemExit, match=r"error: .*none\.pth"):
        run(
            "predict",
            monkeypatch,
            restorer,
            tmp_path / "in.png",
            "--output",
            tmp_path / "out",
            "--checkpoint",
            "none.pth",
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--tile", 8, "--overlap", 2), "--tile needs --tiles tiles"),
        (("--tiles", "whole", "--overlap", 2), "--overlap needs --tiles tiles"),
        (("--template", "{}x2"), "--template names the files of --degraded"),
        (("--split", "bogus"), "--split bogus is for the embedded photographs"),
        (("--border", -1), "border=-1 must be at least 0"),
    ],
)
def test_options_without_effect_are_refused(restorer, photo, options, message, tmp_path, monkeypatch) -> None:
    Image.fromarray(photo).save(tmp_path / "in.png")
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        run("evaluate", monkeypatch, restorer, "--data", tmp_path, *options)


def test_frames_of_a_video(restorer, photo, tmp_path, monkeypatch) -> None:
    writer = cv2.VideoWriter(str(tmp_path / "film.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 5, (50, 40))
    for shift in range(3):
        writer.write(np.ascontiguousarray(np.roll(photo, shift, 1)[..., ::-1]))
    writer.release()
    run("predict", monkeypatch, restorer, tmp_path / "film.avi", "--output", tmp_path / "out")
    frames = sorted((tmp_path / "out" / "film").iterdir())
    assert [frame.name for frame in frames] == ["000001.png", "000002.png", "000003.png"]
    with Image.open(frames[0]) as image:
        assert image.size == (100, 80)


def test_tiles_ensemble_and_memory(restorer, photo, tmp_path, monkeypatch) -> None:
    Image.fromarray(photo).save(tmp_path / "in.png")

    def restore(name: str, *options: object) -> np.ndarray:
        run("predict", monkeypatch, restorer, tmp_path / "in.png", "--output", tmp_path / name, *options)
        return np.asarray(Image.open(tmp_path / name)).astype(int)

    whole = restore("whole.png", "--whole")
    assert np.array_equal(restore("published.png"), whole)  # one piece below 200 pixels
    tiled = restore("tiles.png", "--tile", 24, "--overlap", 8)
    assert np.abs(tiled - whole).max() > 0
    assert np.array_equal(restore("memory.png", "--memory", "1G"), whole)  # room for the whole picture
    model = load_restorer(str(restorer)).model
    x = torch.from_numpy(photo.transpose(2, 0, 1)[None] / np.float32(255))
    with torch.no_grad():
        turned = [model(torch.rot90(y, turn, (2, 3))) for y in (x, x.flip(3)) for turn in range(4)]
    back = [torch.rot90(y, -(i % 4), (2, 3)) for i, y in enumerate(turned)]
    mean = sum(y.flip(3) if i >= 4 else y for i, y in enumerate(back)) / 8
    expected = (mean[0].permute(1, 2, 0).clamp(0, 1) * 255).numpy()
    assert np.abs(restore("ensemble.png", "--ensemble") - expected).max() < 0.51
    _forget()
    assert np.abs(restore("half.png", "--precision", "bf16") - whole).max() <= 8


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("bad.png", [], r"cannot read image .*bad\.png"),
        ("cut.png", [], r"cannot read image .*cut\.png"),
        ("float.tif", [], "mode 'F' cannot be restored"),
        ("ink.tif", [], r"ink\.tif: pixels of mode 'CMYK' are neither grey nor RGB; convert the file, or .*--convert"),
        ("palette.png", [], r"palette\.png: pixels of mode 'P' are neither"),
        ("good.png", ["--tile", "0"], "tile=0 must be at least 1 pixel"),
        ("good.png", ["--tile", "8", "--overlap", "5"], "overlap=5 must be 0 to 4"),
        ("good.png", ["--memory", "lots"], "'lots' is not a size"),
        ("good.png", ["--memory", "10K"], "too small for a picture of 50x40"),
        ("good.png", ["--memory", "1G", "--tile", "32"], "leave out --tile"),
        ("good.png", ["--top", "3"], "--top is not an option for restoration"),
        ("none.png", [], "no such image"),
    ],
)
def test_bad_input_is_named_and_leaves_nothing(restorer, photo, name, options, message, tmp_path, monkeypatch) -> None:
    Image.fromarray(photo).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"broken")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:2000])
    Image.fromarray(photo[..., 0].astype(np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(photo).convert("CMYK").save(tmp_path / "ink.tif")
    Image.fromarray(photo).quantize(16).save(tmp_path / "palette.png")
    with pytest.raises(SystemExit, match=message) as error:
        run("predict", monkeypatch, restorer, tmp_path / name, "--output", tmp_path / "out", *options)
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").rglob("*"))


def test_outputs_never_meet(restorer, photo, tmp_path, monkeypatch) -> None:
    for name in ("a.png", "a.webp"):
        Image.fromarray(photo).save(tmp_path / name)
    with pytest.raises(SystemExit, match="would both be written"):
        run("predict", monkeypatch, restorer, tmp_path, "--output", tmp_path / "out")
    with pytest.raises(SystemExit, match="would replace an input"):
        run("predict", monkeypatch, restorer, tmp_path / "a.png", "--output", tmp_path)
    with pytest.raises(SystemExit, match="say where to write"):
        run("predict", monkeypatch, restorer, tmp_path / "a.png")
    with pytest.raises(SystemExit, match="cannot be written to the one file"):
        run("predict", monkeypatch, restorer, tmp_path, "--output", tmp_path / "one.png")


def test_corrupt_files_can_be_skipped(restorer, photo, tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(photo).save(tmp_path / "in" / "good.png")
    (tmp_path / "in" / "bad.png").write_bytes(b"broken")
    run("predict", monkeypatch, restorer, tmp_path / "in", "--output", tmp_path / "out", "--skip-corrupt")
    assert "skipped: cannot read image" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.png"]


def test_evaluation_of_folders(restorer, photo, tmp_path, monkeypatch, capsys) -> None:
    clean, degraded = tmp_path / "HR", tmp_path / "LR"
    clean.mkdir()
    degraded.mkdir()
    Image.fromarray(photo).save(clean / "cat.png")
    small = np.asarray(Image.fromarray(photo).resize((25, 20), Image.Resampling.BOX))
    Image.fromarray(small).save(degraded / "catx2.png")
    out = tmp_path / "scores.json"
    paired = ("--data", clean, "--degraded", degraded, "--template", "{}x2")
    run("evaluate", monkeypatch, restorer, *paired, "--json", out, "--pictures", tmp_path / "seen.png")
    row = json.loads(out.read_text())["per_picture"][0]
    expected = psnr(restored(restorer, small), photo, border=2, y_only=True)
    assert row["psnr"] == pytest.approx(expected, abs=0.01)  # rounded from floats and from 8 bits
    assert "1 pictures: PSNR" in capsys.readouterr().out
    assert (tmp_path / "seen.png").stat().st_size > 1000
    with pytest.raises(SystemExit, match="has no degraded picture 'cat'"):
        run("evaluate", monkeypatch, restorer, "--data", clean, "--degraded", degraded)
    with pytest.raises(SystemExit, match="--classes is not an option for restoration"):
        run("evaluate", monkeypatch, restorer, "--data", clean, "--classes", 5)


@pytest.mark.slow
def test_kill_dash_nine_and_resume_gives_the_same_bits(tmp_path: Path, photo: np.ndarray) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(3):
        Image.fromarray(np.roll(photo, 9 * i, 1)).save(pictures / f"{i}.png")
    options = [
        "model.kwargs={dim: 12, depths: [1], d_state: 1}",
        f"data.train.clean=[{pictures}]",
        f"data.validation.clean=[{pictures}]",
        "data.patch_size=16",
        "run.tensorboard=false",
        "--cpu",
        "run.updates=24",
        "run.evaluate_every=12",
        "run.checkpoint_every=3",
        "degradation.noise=[0, 20]",
        "degradation.jpeg=[30, 90]",
        "mix.alpha=1.2",
        "model.drop_path=0.1",
        "data.test=null",
    ]
    whole = call(TOOL, DEMO, *options, f"run.output={tmp_path / 'whole'}")
    assert whole.returncode == 0, whole.stderr
    killed = tmp_path / "killed"
    command = [sys.executable, TOOL, DEMO, *options, f"run.output={killed}"]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    last = killed / "checkpoints" / "last.pt"
    while not last.exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = load_checkpoint(last)["state"]
    assert (done["epoch"], done["update"]) < (2, 0)
    resumed = call(TOOL, DEMO, *options, f"run.output={killed}", "--resume", "auto")
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed" in resumed.stdout
    one, two = weights(tmp_path / "whole"), weights(killed)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert (tmp_path / "whole" / "model.safetensors").read_bytes() == (killed / "model.safetensors").read_bytes()
    scores = [json.loads((tmp_path / name / "metrics.json").read_text())["scores"] for name in ("whole", "killed")]
    assert scores[0] == scores[1]


@pytest.mark.slow
def test_two_processes_give_the_result_of_one(tmp_path: Path, photo: np.ndarray) -> None:
    pictures = tmp_path / "pictures"  # apart from the runs, which write pictures too
    pictures.mkdir()
    for i in range(3):
        Image.fromarray(np.roll(photo, 9 * i, 1)).save(pictures / f"{i}.png")
    options = [
        "model.kwargs={dim: 12, depths: [1], d_state: 1}", "model.drop_path=0.0", f"data.train.clean=[{pictures}]",
        f"data.validation.clean=[{pictures}]", "data.patch_size=16", "data.test=null", "degradation.noise=[0, 20]",
        "run.updates=6", "run.evaluate_every=3", "run.batch_size=4", "run.tensorboard=false", "schedule.warmup_epochs=0",
        "optimizer.name=sgd", "optimizer.lr=0.01", "--cpu",
    ]  # fmt: skip
    one = call(TOOL, DEMO, *options, f"run.output={tmp_path / 'one'}")
    assert one.returncode == 0, one.stderr
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    two = call(*launcher, TOOL, DEMO, *options, f"run.output={tmp_path / 'two'}")
    assert two.returncode == 0, two.stderr
    assert "2 x cpu" in two.stdout
    single, double = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in single:
        torch.testing.assert_close(single[name], double[name], **TOLERANCES[torch.float32])


@pytest.mark.slow
def test_the_demo_learns(tmp_path: Path) -> None:
    """A fifth of the demo's schedule: far above where it starts, and the pictures are drawn."""
    options = [
        "run.updates=120",
        "run.evaluate_every=60",
        "run.tensorboard=false",
        "schedule.warmup_epochs=0",
        "data.test=null",
        f"run.output={tmp_path}",
    ]
    result = call(TOOL, DEMO, *options, "--cpu")
    assert result.returncode == 0, result.stderr
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["history"][-1]["psnr"] > metrics["history"][0]["psnr"] + 1
    assert metrics["scores"]["psnr"] > 24
    assert metrics["scores"]["baseline_psnr"] > 26
    with Image.open(tmp_path / "pictures.png") as image:
        assert image.width > 1000


@pytest.mark.slow
@pytest.mark.serial
def test_a_large_photograph_within_its_bound(restorer, tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8).repeat(10, 0).repeat(10, 1)
    Image.fromarray(picture).save(tmp_path / "large.png")
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "small.png")
    code = """
import resource, sys
sys.path.insert(0, sys.argv[1])
import predict
sys.argv = ["predict", sys.argv[2], "", "--output", "out", "--memory", "300M", "--cpu"]
for name in ("small.png", "large.png"):
    sys.argv[2] = name
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    predict.main()
print("grown by", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    result = call("-c", code, str(ROOT / "tools"), str(restorer), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    with Image.open(tmp_path / "out" / "large.png") as image:
        assert image.size == (4000, 3000)
    grown = int(result.stdout.split()[-1]) * (1 if sys.platform == "linux" else 2**-10)
    assert grown < 300 * 2**10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.name=mambair_nana_x2"], "did you mean mambair_nano_x2"),
        (["data.patch_size=63"], "a patch size of 63 must be a multiple of the model's scale, 2"),
        (["run.updates=150"], "run.updates=150 must be a multiple of run.evaluate_every=100"),
        (["data.train.clean=[nowhere]"], "no such folder of pictures: nowhere"),
    ],
)
def test_user_errors_are_one_line(arguments, message, tmp_path, monkeypatch) -> None:
    with pytest.raises(SystemExit, match=message):
        run("train_restoration", monkeypatch, DEMO, f"run.output={tmp_path}", *arguments)
