"""Volumes from files to predictions: lists and errors, metrics, patches, training with exact resume, what is written."""

import gzip
import itertools
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from tests.tolerances import TOLERANCES
from visionssm.data.errors import DataError, UserError
from visionssm.data.volume_patches import PatchAugmentConfig, VolumePatches, write_generated
from visionssm.data.volumes import (
    Case,
    CorruptVolume,
    VolumeDataConfig,
    find_cases,
    input_cases,
    read_case,
    split_cases,
)
from visionssm.engine.checkpoint import load_checkpoint
from visionssm.engine.config import ConfigError, build_config, dump_config, load_config
from visionssm.engine.loop import Trainer
from visionssm.engine.volume import VolumeConfig, train_volume
from visionssm.engine.volume_config import VolumeLossConfig
from visionssm.engine.volume_files import predict_volumes
from visionssm.engine.volume_metrics import EMPTY_HD95, dice, hd95, score_regions
from visionssm.engine.volume_models import build_segmenter, load_volume_model, segment

ROOT = Path(__file__).parents[2]
ANATOMICAL = Path(nibabel.__file__).parent / "tests/data/anatomical.nii"  # (33, 41, 25) voxels of 2 mm, big-endian


@pytest.fixture(autouse=True)
def _fresh_accelerate():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    PartialState._reset_state()


def save(path: Path, data: np.ndarray, spacing: tuple[float, ...] = (1, 1, 1)) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(data, np.diag([*spacing, 1.0])), path)
    return str(path)


def brats(folder: Path, name: str = "BraTS-GLI-00000-000", **changes: np.ndarray) -> VolumeDataConfig:
    volumes = {end: np.ones((6, 5, 4), np.float32) for end in ("t2w", "t1c")} | {"seg": np.zeros((6, 5, 4), np.uint8)}
    for end, volume in (volumes | changes).items():
        save(folder / name / f"{name}-{end}.nii.gz", volume)
    return VolumeDataConfig(name="brats", path=str(folder), channels=("t2w", "t1c"), classes=("background", "a", "b"))


def recipe(tmp_path: Path, **changes: dict[str, Any]) -> VolumeConfig:
    write_generated(tmp_path / "data", cases=6, size=20, classes=2)
    tree: dict[str, Any] = {
        "run": {"output": str(tmp_path / "run"), "epochs": 2, "batch_size": 2, "tensorboard": False},
        "model": {"name": "segmamba_nano", "kwargs": {"dims": [4, 8], "depths": [1, 1], "d_state": 2}},
        "data": {"name": "msd", "path": str(tmp_path / "data"), "classes": ["background", "a", "b"], "patch": [16, 16, 16],
                 "validation": 0.2, "test": 0.2, "samples": 4, "crop": False},
        "augment": {"scale": 0.5, "rotate": 0.5, "low_resolution": 0.5},
        "optimizer": {"lr": 1e-3},
    }  # fmt: skip
    for section, values in changes.items():
        tree[section] = {**tree.get(section, {}), **values}
    return build_config(VolumeConfig, tree)


# --- lists and reading ------------------------------------------------------------------------------------------


def test_brats_layout(tmp_path: Path) -> None:
    config = brats(tmp_path, t1c=np.full((6, 5, 4), 7.0, np.float32))
    (case,) = find_cases(config)
    item = read_case(case, config)
    assert item["image"].shape == (2, 6, 5, 4)
    assert item["image"][:, 0, 0, 0].tolist() == [1.0, 7.0]
    (tmp_path / case.name / f"{case.name}-t1c.nii.gz").unlink()
    with pytest.raises(DataError, match=rf"case {case.name}: t1c .*is missing; the folder has .*t2w"):
        find_cases(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"t1c": np.ones((6, 5, 3), np.float32)},
            r"t1c.nii.gz has shape \(6, 5, 3\), but .*t2w.nii.gz has \(6, 5, 4\)",
        ),
        ({"seg": np.zeros((6, 5, 5), np.uint8)}, r"seg.nii.gz has shape"),
        ({"seg": np.full((6, 5, 4), 4, np.uint8)}, r"seg.nii.gz holds the labels \[4.0\], but the classes are 0..2"),
        ({"t2w": np.full((6, 5, 4), np.nan, np.float32)}, r"t2w.nii.gz holds values that are not finite"),
    ],
)
def test_volumes_that_do_not_fit(tmp_path: Path, change: dict[str, np.ndarray], message: str) -> None:
    config = brats(tmp_path, **change)
    with pytest.raises(DataError, match=message):
        read_case(find_cases(config)[0], config)


def test_another_spacing_is_named(tmp_path: Path) -> None:
    config = brats(tmp_path)
    (case,) = find_cases(config)
    save(Path(case.images[1]), np.ones((6, 5, 4), np.float32), (1, 1, 2.5))
    with pytest.raises(
        DataError, match=r"t1c.nii.gz has spacing \(1.0, 1.0, 2.5\), but .*t2w.nii.gz has \(1.0, 1.0, 1.0\)"
    ):
        read_case(case, config)


@pytest.mark.parametrize("name", ["cut.nii.gz", "cut.nii", "empty.nii", "text.nii.gz"])
def test_files_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    content = ANATOMICAL.read_bytes()
    content = gzip.compress(content) if name.endswith("gz") else content
    content = {"empty": b"", "text": b"no volume"}.get(name.split(".")[0], content)
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=rf"cannot read volume .*{name}"):
        read_case(Case(name="x", images=(str(tmp_path / name),)), VolumeDataConfig())


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]), "it holds colours"),
        (np.complex64, "it holds complex64 values"),
    ],
)
def test_files_without_a_number_per_voxel(tmp_path: Path, kind: Any, message: str) -> None:
    file = save(tmp_path / "x.nii.gz", np.ones((4, 4, 4), kind))
    with pytest.raises(
        CorruptVolume, match=rf"cannot read volume .*x.nii.gz: {message}, but a volume has one real number"
    ):
        read_case(Case(name="x", images=(file,)), VolumeDataConfig())


def test_channels_that_are_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has 1 channel\(s\) .*but needs t1, t2"):
        read_case(Case(name="x", images=(str(ANATOMICAL),)), VolumeDataConfig(channels=("t1", "t2")))
    four = save(tmp_path / "four.nii.gz", np.arange(48, dtype=np.float32).reshape(2, 3, 4, 2))
    image = read_case(Case(name="x", images=(four,)), VolumeDataConfig(channels=("t1", "t2")))["image"]
    assert image[:, 1, 2, 3].tolist() == [46.0, 47.0]


def write_series(folder: Path) -> None:
    """Four slices, the last first."""
    series = generate_uid()
    for number in range(4):
        slice_ = pydicom.Dataset()
        slice_.file_meta = pydicom.dataset.FileMetaDataset()
        slice_.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        slice_.file_meta.MediaStorageSOPClassUID = slice_.SOPClassUID = CTImageStorage
        slice_.file_meta.MediaStorageSOPInstanceUID = slice_.SOPInstanceUID = generate_uid()
        slice_.SeriesInstanceUID, slice_.Modality, slice_.InstanceNumber = series, "CT", number + 1
        slice_.Rows, slice_.Columns, slice_.PixelSpacing = 6, 5, [0.5, 0.5]
        slice_.ImagePositionPatient, slice_.ImageOrientationPatient = [0, 0, 2 * number], [1, 0, 0, 0, 1, 0]
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation, slice_.PixelRepresentation = 1, "MONOCHROME2", 0
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit = 16, 16, 15
        slice_.RescaleSlope, slice_.RescaleIntercept = 1, -1000
        slice_.PixelData = np.full((6, 5), 100 * number, np.uint16).tobytes()
        folder.mkdir(exist_ok=True)
        slice_.save_as(folder / f"{3 - number}.dcm", enforce_file_format=True)


def test_a_folder_of_dicom_slices(tmp_path: Path) -> None:
    write_series(tmp_path / "series")
    (case,) = input_cases([str(tmp_path / "series")], ("ct",))
    image = read_case(case, VolumeDataConfig(channels=("ct",)))["image"]
    assert image.shape == (1, 5, 6, 4)
    assert image[0, 0, 0].tolist() == [-1000, -900, -800, -700]
    assert image.pixdim.tolist() == [0.5, 0.5, 2.0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such list"),
        ("[]", "is not a list"),
        ('{"training": [{"image": "a.nii", "label": "b.nii"}]}', "a.nii is missing"),
    ],
)
def test_lists_that_are_refused(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(DataError, match=message):
        find_cases(VolumeDataConfig(path=str(tmp_path)))


def listed(folder: Path, *cases: str) -> VolumeDataConfig:
    rows = [{"image": f"{case}/image.nii.gz", "label": f"{case}/label.nii.gz"} for case in cases]
    for row in rows:
        for file in row.values():
            save(folder / file, np.ones((4, 4, 4), np.uint8))
    (folder / "list.json").write_text(json.dumps({"training": rows}))
    return VolumeDataConfig(name="list", path=str(folder / "list.json"))


def test_cases_of_one_file_name_are_named_after_their_folders(tmp_path: Path) -> None:
    names = [case.name for case in find_cases(listed(tmp_path / "a", "one", "two"))]
    assert names == ["one_image", "two_image"]
    names = [case.name for case in find_cases(listed(tmp_path / "b", "x/t1", "y/t1"))]
    assert names == ["x_t1_image", "y_t1_image"]
    folders = [str(tmp_path / "a" / name) for name in ("one", "two")]
    assert [case.name for case in input_cases(folders, ("image",))] == ["one_image", "two_image"]
    with pytest.raises(DataError, match=r"list.json lists more than one case of .*one/image.nii.gz"):
        find_cases(listed(tmp_path / "a", "one", "two", "one"))


def test_folders_to_predict_give_no_labels_and_no_other_channel(tmp_path: Path) -> None:
    def files(folder: str, channel: str) -> list[str]:
        return [Path(case.images[0]).name for case in input_cases([str(tmp_path / folder)], (channel,))]

    for name in ("c-t1c", "c-t2w", "c-seg"):
        save(tmp_path / "brats" / "c" / f"{name}.nii.gz", np.ones((4, 4, 4), np.uint8))
    assert files("brats", "t2w") == ["c-t2w.nii.gz"]
    with pytest.raises(DataError, match=r"several files of one case \(c-t1c.nii.gz, c-t2w.nii.gz\), none .*-ct.nii.gz"):
        files("brats", "ct")
    for name in ("p_ct", "p_seg", "q_ct", "q_label"):
        save(tmp_path / "flat" / f"{name}.nii.gz", np.ones((4, 4, 4), np.uint8))
    assert files("flat", "ct") == files("flat", "image") == ["p_ct.nii.gz", "q_ct.nii.gz"]
    save(tmp_path / "labels" / "label.nii.gz", np.ones((4, 4, 4), np.uint8))
    with pytest.raises(DataError, match=r"nothing but labels: label.nii.gz"):
        files("labels", "image")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("channels", []),
        ("channels", ["t1", "t1"]),
        ("classes", ["background"]),
        ("classes", ["background", "dark", "dark"]),
        ("window", [100, -100]),
        ("window", [5, 5]),
        ("spacing", [-1, 1, 1]),
        ("spacing", [0, 1, 1]),
        ("samples", 0),
        ("foreground", 2),
        ("cache", 2),
        ("cache", "nan"),
        ("workers", -1),
        ("regions", {"all": 1}),
        ("regions", {"all": [2]}),
    ],
)
def test_values_of_a_recipe_that_are_refused(name: str, value: object) -> None:
    with pytest.raises(UserError, match=rf"data\.{name}.* must be "):
        build_config(VolumeDataConfig, {name: value}, at="data")


@pytest.mark.parametrize("weights", [{"dice": 0, "cross_entropy": 0}, {"dice": -1}, {"deep": -1}])
def test_losses_that_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="must be at least 0"):
        build_config(VolumeLossConfig, weights)


def test_splits_are_fixed_and_complete() -> None:
    cases = [Case(name=f"{i:03d}", images=("x",)) for i in range(50)]
    config = VolumeDataConfig(validation=0.1, test=0.2)
    parts = split_cases(cases, config)
    assert [len(part) for part in parts] == [35, 5, 10]
    assert sorted((case for part in parts for case in part), key=lambda case: case.name) == cases
    assert parts == split_cases(cases, config)
    assert parts != split_cases(cases, VolumeDataConfig(split_seed=7))
    with pytest.raises(DataError, match="too few for a validation split"):
        split_cases(cases[:3], config)


# --- metrics ----------------------------------------------------------------------------------------------------


def test_hd95_is_its_definition() -> None:
    rng = np.random.default_rng(0)
    spacing = (1.0, 2.0, 0.5)
    for _ in range(5):
        masks = [rng.random((7, 6, 8)) > 0.6 for _ in range(2)]
        points = []
        for mask in masks:  # a surface voxel has a face neighbour outside the mask
            padded = np.pad(mask, 1)
            inner = mask.copy()
            for axis, shift in itertools.product(range(3), (-1, 1)):
                inner &= np.roll(padded, shift, axis)[1:-1, 1:-1, 1:-1]
            points.append(np.argwhere(mask & ~inner) * np.array(spacing))
        between = np.linalg.norm(points[0][:, None] - points[1][None], axis=-1)
        wanted = np.percentile(np.concatenate([between.min(0), between.min(1)]), 95)
        assert hd95(*masks, spacing=spacing) == pytest.approx(wanted)


def test_scores_of_regions_and_of_nothing() -> None:
    truth, guess = np.zeros((4, 4, 4), int), np.zeros((4, 4, 4), int)
    truth[:2], truth[2], guess[:3] = 1, 2, 1
    scores = score_regions(guess, truth, {"one": [1], "two": [2], "both": [1, 2], "none": [3]}, spacing=(1, 1, 1))
    assert scores.dice == {"one": pytest.approx(0.8), "two": 0.0, "both": 1.0, "none": 0.0}
    assert scores.hd95["both"] == 0
    assert scores.hd95["two"] == scores.hd95["none"] == EMPTY_HD95
    assert dice(truth == 3, guess == 3, empty=1.0) == 1.0


# --- patches ----------------------------------------------------------------------------------------------------


def test_patches_depend_on_their_place_alone_and_cases_come_up_equally(tmp_path: Path) -> None:
    config = recipe(tmp_path).data
    cases = find_cases(config)
    patches = VolumePatches(cases, config, PatchAugmentConfig(scale=1.0, rotate=1.0), seed=3)
    one = patches[1, 2]
    names = [patches[epoch, i]["name"] for epoch in range(3) for i in range(4)]
    again = patches[1, 2]
    assert one["image"].shape == (1, 16, 16, 16)
    assert torch.equal(one["image"], again["image"])
    assert torch.equal(one["label"], again["label"])
    assert all(names.count(case.name) == 2 for case in cases)
    assert not torch.equal(one["image"], patches[2, 2]["image"])


def test_augmentation_leaves_the_cached_volumes_alone(tmp_path: Path) -> None:
    config = recipe(tmp_path).data
    patches = VolumePatches(
        find_cases(config), config, PatchAugmentConfig(noise=1.0, gamma=1.0, brightness=1.0), seed=3
    )
    before = [patches.cases[i]["image"].clone() for i in range(len(patches.cases))]
    for i in range(8):
        patches[0, i]
    assert all(torch.equal(volume, patches.cases[i]["image"]) for i, volume in enumerate(before))


# --- training and prediction ------------------------------------------------------------------------------------


class Killed(Exception):
    pass


def test_a_run_resumes_with_the_same_bits_and_leaves_a_complete_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = recipe(tmp_path, run={"output": str(tmp_path / "whole")}, ema={"decay": 0.5}, loss={"deep": 1})
    metrics = train_volume(whole, cpu=True)
    config = recipe(tmp_path, ema={"decay": 0.5}, loss={"deep": 1}, run={"checkpoint_every": 1})
    update = Trainer._update

    def kill(self: Trainer, *args: Any) -> Any:
        if self.updates_done == 3:
            raise Killed
        return update(self, *args)

    monkeypatch.setattr(Trainer, "_update", kill)
    with pytest.raises(Killed):
        train_volume(config, cpu=True)
    monkeypatch.setattr(Trainer, "_update", update)
    with pytest.raises(UserError, match="already holds a run"):
        train_volume(config, cpu=True)
    resumed = train_volume(config, resume="auto", cpu=True)
    one, two = (load_checkpoint(Path(c.run.output) / "checkpoints/last.pt")["model"] for c in (whole, config))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert resumed["scores"] == metrics["scores"]

    folder = Path(config.run.output)
    assert json.loads((folder / "metrics.json").read_text())["scores"]["cases"] == metrics["cases"]["test"] == 1
    assert set(metrics["scores"]["dice"]) == {"a", "b"}
    assert metrics["best_validation_dice"] == max(row["dice"] for row in metrics["history"])
    (written,) = (folder / "predictions").glob("*.nii.gz")
    source = nibabel.load(tmp_path / "data/imagesTr" / written.name)
    truth = np.asarray(nibabel.load(tmp_path / "data/labelsTr" / written.name).dataobj)
    guess = nibabel.load(written)
    assert guess.get_data_dtype() == np.uint8
    assert np.array_equal(guess.affine, source.affine)
    again = score_regions(np.asarray(guess.dataobj), truth, config.data.scored, spacing=(1.5, 1.5, 1.5))
    assert again.dice == metrics["scores"]["dice"]
    with Image.open(written.with_name(written.name.replace(".nii.gz", ".png"))) as picture:
        assert picture.width > 500
    assert not any("heads" in name for name in load_volume_model(folder).net.state_dict())


@pytest.mark.slow
def test_half_precision_trains_like_float32(tmp_path: Path) -> None:
    losses = {}
    for precision in ("no", "bf16"):
        config = recipe(tmp_path, run={"output": str(tmp_path / precision), "epochs": 1, "precision": precision})
        metrics = train_volume(config, cpu=True)
        assert metrics["environment"]["precision"] == precision
        losses[precision] = metrics["history"][0]["train_loss"]
        AcceleratorState._reset_state(reset_partial_state=True)
    assert losses["bf16"] != losses["no"]
    assert losses["bf16"] == pytest.approx(losses["no"], rel=0.05)


def launched(tmp_path: Path, output: str, **run: Any) -> tuple[VolumeConfig, list[str]]:
    """A recipe, and the command line that runs it."""
    config = recipe(tmp_path, run={"output": str(tmp_path / output), "threads": 1, **run}, optimizer={"name": "sgd"})
    path = tmp_path / f"{output}.yaml"
    path.write_text(yaml.safe_dump(dump_config(config)))
    return config, [str(ROOT / "tools/train_volume.py"), str(path), "--cpu"]


def final_weights(config: VolumeConfig) -> dict[str, torch.Tensor]:
    return load_checkpoint(Path(config.run.output) / "checkpoints/last.pt")["model"]


@pytest.mark.slow
def test_two_processes_give_the_result_of_one(tmp_path: Path) -> None:
    one, two = launched(tmp_path, "one"), launched(tmp_path, "two")
    metrics = train_volume(one[0], cpu=True)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    done = subprocess.run([sys.executable, *launcher, *two[1]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "2 x cpu" in done.stdout
    single, double = final_weights(one[0]), final_weights(two[0])
    for name in single:
        torch.testing.assert_close(single[name], double[name], **TOLERANCES[torch.float32])
    history = json.loads((tmp_path / "two/metrics.json").read_text())["history"]
    assert history[-1]["dice"] == pytest.approx(metrics["history"][-1]["dice"], abs=1e-3)


@pytest.mark.slow
def test_kill_dash_nine_and_resume_gives_the_same_bits(tmp_path: Path) -> None:
    (whole, _), (config, command) = (launched(tmp_path, name, checkpoint_every=1) for name in ("whole", "killed"))
    train_volume(whole, cpu=True)
    process = subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    last = tmp_path / "killed/checkpoints/last.pt"
    while not last.exists():  # after the first of four updates
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert load_checkpoint(last)["state"]["epoch"] < 2
    train_volume(config, resume="auto", cpu=True)
    one, two = final_weights(whole), final_weights(config)
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
def test_another_encoder_trains_by_a_recipe(tmp_path: Path) -> None:
    changes = {
        "model": {"name": "vmamba_unet", "kwargs": {"encoder": "vmamba_nd_nano"}, "grad_checkpointing": True},
        "run": {"epochs": 1},
        "data": {"patch": [32, 32, 32], "samples": 2},
    }
    config = recipe(tmp_path, **changes, loss={"deep": 1})
    metrics = train_volume(config, cpu=True)
    assert metrics["scores"]["cases"] == 1
    net = load_volume_model(config.run.output).net
    weights = Path(config.run.output) / "model.safetensors"
    again = build_segmenter(replace(config.model, checkpoint=str(weights)), channels=1, classes=3)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in net.state_dict().items())
    with pytest.raises(UserError, match=r"cannot load .*classes|cannot load .*size mismatch"):
        build_segmenter(replace(config.model, checkpoint=str(weights)), channels=1, classes=4)
    with pytest.raises(UserError, match="unknown encoder 'vmamba'"):
        build_segmenter(replace(config.model, kwargs={"encoder": "vmamba"}), channels=1, classes=3)
    assert load_config(VolumeConfig, ROOT / "configs/volume/vmamba_unet_brats2023.yaml").model.name == "vmamba_unet"


@pytest.fixture
def model(tmp_path: Path):
    config = recipe(tmp_path, run={"epochs": 1}, data={"spacing": [3.0, 3.0, 2.0], "crop": True, "axcodes": "SPL"})
    train_volume(config, cpu=True)
    return load_volume_model(config.run.output)


def test_a_real_scan_is_segmented_on_its_own_voxels(model, tmp_path: Path) -> None:
    """Resampled, cropped and turned on the way in, and all of it undone on the way out: a network that copies its input back."""

    class Bright(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([torch.zeros_like(x), x, torch.full_like(x, -1e3)], 1)

    source = nibabel.load(ANATOMICAL)
    model.net.__class__.forward, forward = Bright.forward, model.net.__class__.forward
    cases = input_cases([str(ANATOMICAL)], ("image",))
    try:
        (found,) = predict_volumes(model, cases, tmp_path / "out", accelerator=Accelerator(cpu=True))
    finally:
        model.net.__class__.forward = forward
    guess = nibabel.load(found.files[0])
    assert guess.shape == source.shape
    assert np.allclose(guess.affine, source.affine)
    scan = np.asarray(source.dataobj, dtype=np.float64)
    bright = scan > scan.mean()
    assert dice(np.asarray(guess.dataobj) == 1, bright) > 0.9  # resampling blurs the border
    assert found.scores is None
    with Image.open(found.files[1]) as picture:
        assert picture.height > 300


def test_bad_input_leaves_no_file(model, tmp_path: Path) -> None:
    (tmp_path / "cut.nii").write_bytes(ANATOMICAL.read_bytes()[:5000])
    out = tmp_path / "out"
    with pytest.raises(DataError, match=r"cannot read volume .*cut\.nii"):
        predict_volumes(
            model, input_cases([str(tmp_path / "cut.nii")], ("image",)), out, accelerator=Accelerator(cpu=True)
        )
    assert not out.exists()
    (Path(model.config.run.output) / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match="cannot load"):
        load_volume_model(model.config.run.output)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"name": "segmamba_nani", "kwargs": {}}}, "did you mean segmamba_nano"),
        (
            {"model": {"name": "segmamba_nano", "kwargs": {"slices": "half"}}},
            "cannot be built.*'published' or 'planes'",
        ),
        ({"model": {"name": "segmamba_brats2023", "kwargs": {}}}, r"data.patch: .*\(16, 16, 16\); slices='planes'"),
        ({"loss": {"deep": 5}}, "further decoder levels"),
        ({"loss": {"deep": 1}, "data": {"patch": [18, 16, 16]}}, r"multiples of \(4, 4, 4\)"),
    ],
)
def test_recipes_that_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        train_volume(recipe(tmp_path, **changes), cpu=True)


def test_ill_sections() -> None:
    for values, message in (
        ({"axcodes": "RAA"}, "axcodes"),
        ({"validation": 0.5, "test": 0.5}, "leave cases"),
        ({"regions": {"x": [2]}}, "labels, 0 to 1"),
    ):
        with pytest.raises(DataError, match=message):
            VolumeDataConfig(**values)  # pyright: ignore
    with pytest.raises(ConfigError, match="overlap"):
        build_config(
            VolumeConfig, {"run": {"output": "x"}, "model": {"name": "x"}, "data": {}, "inference": {"overlap": 1.0}}
        )


def test_published_recipe() -> None:
    config = load_config(VolumeConfig, ROOT / "configs/volume/segmamba_brats2023.yaml")
    assert config.run.epochs * config.data.samples // config.run.batch_size == 250_000  # pyright: ignore
    assert (config.optimizer.lr, config.optimizer.momentum, config.optimizer.weight_decay) == (0.01, 0.99, 3e-5)
    assert config.data.scored == {"TC": [1, 3], "WT": [1, 2, 3], "ET": [3]}


@pytest.mark.slow
def test_demo_recipe_reaches_its_score(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "tools/train_volume.py",
        "configs/volume/demo.yaml",
        "--cpu",
        f"run.output={tmp_path}/run",
    ]
    run = subprocess.run([*command, f"data.path={tmp_path}/data"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    scores = json.loads((tmp_path / "run/metrics.json").read_text())["scores"]
    assert scores["cases"] == 4
    assert scores["mean_dice"] >= 0.85


def test_float_tolerance_of_mirrored_windows(model) -> None:
    """Averaging over flips gives a result that flips with the volume."""
    config = replace(model.config, inference=replace(model.config.inference, mirror=True))
    x, accelerator = torch.randn(1, 16, 16, 16), Accelerator(cpu=True)
    one = segment(model.net, x, config, accelerator)
    two = segment(model.net, x.flip(1), config, accelerator)
    torch.testing.assert_close(two.flip(1), one, **TOLERANCES[torch.float32])
