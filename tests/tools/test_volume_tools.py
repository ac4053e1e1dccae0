"""Volumes from the command line: predict.py writes labels and pictures, evaluate.py scores; errors are one line."""

import gzip
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image

from tests.tools.test_evaluate import run
from tests.tools.test_train_volume import write_series
from visionssm.engine.command_line import user_errors
from visionssm.engine.config import build_config, dump_config
from visionssm.engine.models import task_of
from visionssm.engine.volume_config import VolumeConfig
from visionssm.engine.volume_metrics import score_regions
from visionssm.engine.volume_models import build_segmenter, count_windows, export_volume_model, load_volume_model

SIZE = (18, 14, 11)
AFFINE = np.array([[-1.0, 0, 0, 30], [0, -1.5, 0, 40], [0, 0, 2, -5], [0, 0, 0, 1]])  # LPS, as BraTS stores it
NANO = {"name": "segmamba_nano", "kwargs": {"dims": [4, 8], "depths": [1, 1], "d_state": 2}}


@pytest.fixture(autouse=True)
def _fresh_accelerate():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    PartialState._reset_state()


def export(folder: Path, channels: tuple[str, ...]) -> Path:
    """A network that has seen nothing, as training leaves one."""
    data = {"channels": list(channels), "classes": ["background", "a", "b"], "patch": [20, 16, 12], "name": "brats"}
    data |= {"validation": 0.2, "test": 0.2}
    config = build_config(VolumeConfig, {"run": {"output": str(folder)}, "model": NANO, "data": data})
    torch.manual_seed(0)
    net = build_segmenter(config.model, channels=len(channels), classes=3)
    export_volume_model(folder, net.state_dict(), config)
    return folder


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("network"), ("t2w", "t1c"))


@pytest.fixture
def scan() -> np.ndarray:
    """(*S, C), a brain in an empty margin."""
    volume = np.zeros((*SIZE, 2), np.float32)
    volume[3:15, 2:12, 1:10] = np.random.default_rng(0).random((12, 10, 9, 2)) + 1
    return volume


def save_case(folder: Path, scan: np.ndarray, name: str = "case", ends: tuple[str, ...] = ("t2w", "t1c")) -> Path:
    (folder / name).mkdir(parents=True)
    for i, end in enumerate(ends):
        nibabel.save(nibabel.Nifti1Image(scan[..., i], AFFINE), folder / name / f"{name}-{end}.nii.gz")
    return folder / name


def labels(path: Path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj)


def test_every_form_of_a_case_gives_the_same_labels(network, scan, tmp_path, monkeypatch, capsys) -> None:
    folder = save_case(tmp_path / "cases", scan, "one")
    save_case(tmp_path / "cases", scan[::-1], "two")
    nibabel.save(nibabel.Nifti1Image(scan, AFFINE), tmp_path / "four.nii.gz")
    out = tmp_path / "out"
    run("predict", monkeypatch, network, folder, tmp_path / "four.nii.gz", "--output", out)
    run("predict", monkeypatch, network, tmp_path / "cases", "--output", out / "both", "--no-picture")
    told = capsys.readouterr().out
    assert "2 segmented into background, a, b" in told
    assert "four.nii.gz" in told
    image = nibabel.load(out / "one.nii.gz")
    assert np.array_equal(image.affine, AFFINE)
    assert image.get_data_dtype() == np.uint8
    assert np.array_equal(labels(out / "one.nii.gz"), labels(out / "four.nii.gz"))
    assert np.array_equal(labels(out / "one.nii.gz"), labels(out / "both" / "one.nii.gz"))
    assert sorted(path.name for path in (out / "both").iterdir()) == ["one.nii.gz", "two.nii.gz"]
    with Image.open(out / "one.png") as picture:
        assert picture.width > 500


def test_labels_are_the_networks(network, scan, tmp_path, monkeypatch) -> None:
    """By hand: the brain cut out, turned to RAS, z-scored channel by channel, one window, the largest logit."""
    folder = save_case(tmp_path, scan)
    run("predict", monkeypatch, network, folder, "--output", tmp_path / "out")
    found = labels(tmp_path / "out" / "case.nii.gz")
    brain = np.ascontiguousarray(scan[3:15, 2:12, 1:10][::-1, ::-1])
    x = (brain - brain.mean((0, 1, 2))) / brain.std((0, 1, 2))
    net = load_volume_model(network).net
    padded = torch.zeros(1, 2, 20, 16, 12)
    padded[0, :, 4:16, 3:13, 1:10] = torch.from_numpy(x).movedim(-1, 0)  # sliding windows put the padding on both sides
    with torch.no_grad():
        wanted = net(padded)[0, :, 4:16, 3:13, 1:10].argmax(0).numpy()[::-1, ::-1]
    assert np.mean(found[3:15, 2:12, 1:10] == wanted) > 0.999  # gaussian weights may round
    outside = np.ones(SIZE, bool)
    outside[3:15, 2:12, 1:10] = False
    assert not found[outside].any()


def test_a_series_of_dicom_slices(tmp_path, monkeypatch) -> None:
    write_series(tmp_path / "series")
    network = export(tmp_path / "ct", ("ct",))
    run("predict", monkeypatch, network, tmp_path / "series", "--output", tmp_path / "out")
    assert labels(tmp_path / "out" / "series.nii.gz").shape == (5, 6, 4)
    assert np.allclose(nibabel.load(tmp_path / "out" / "series.nii.gz").header.get_zooms(), (0.5, 0.5, 2))


def test_windows_of_another_size_and_mirrors(network, scan, tmp_path, monkeypatch) -> None:
    folder = save_case(tmp_path, scan)
    found = []
    for name, options in (
        ("plain", ()),
        ("small", ("--roi", 8, 8, 8, "--window-overlap", 0.25)),
        ("mirror", ("--mirror",)),
    ):
        run("predict", monkeypatch, network, folder, "--output", tmp_path / name, *options)
        found.append(labels(tmp_path / name / "case.nii.gz"))
    assert all(np.mean(other != found[0]) > 0 for other in found[1:])
    assert count_windows((18, 14, 11), (8, 8, 8), 0.25) == 3 * 2 * 2
    assert count_windows((8, 7, 9), (8, 8, 8), 0.5) == 2


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("cut", [], r"cannot read volume .*t1c\.nii\.gz.*--skip-corrupt would skip it"),
        ("shape", [], r"t1c\.nii\.gz has shape \(18, 14, 10\), but .*t2w.* has \(18, 14, 11\)"),
        ("spacing", [], r"t1c\.nii\.gz has spacing \(1.0, 1.5, 3.0\), but .*t2w.* has \(1.0, 1.5, 2.0\)"),
        ("missing", [], r"channel 't1c' needs one file \*-t1c\.nii\.gz, found 0"),
        ("single", [], r"has 1 channel\(s\) .*but needs t2w, t1c"),
        ("flat", [], "lies nowhere"),
        ("zeros", [], "case case holds nothing but zeros"),
        ("nothing", [], "no such volume"),
        ("text", [], "is neither a NIfTI file"),
        ("good", ["--roi", 0, 8, 8], "inference.roi=.* must be sizes of at least 1"),
        ("good", ["--roi", 4, 4, 4], r"inference\.roi: .*too small"),
        ("good", ["--window-overlap", 1], "overlap=1.0 must be at least 0 and less than 1"),
        ("good", ["--tile", 32], "--tile is not an option for volume"),
        ("good", ["--recipe", "x.yaml"], "is a run folder, which brings"),
    ],
)
def test_bad_input_is_named_and_leaves_nothing(network, scan, kind, options, message, tmp_path, monkeypatch) -> None:
    path = save_case(tmp_path, scan)
    file = path / "case-t1c.nii.gz"
    image = nibabel.load(file)
    if kind == "cut":
        file.write_bytes(file.read_bytes()[:1500])
    elif kind == "shape":
        nibabel.save(nibabel.Nifti1Image(scan[..., :10, 1], AFFINE), file)
    elif kind == "spacing":
        nibabel.save(nibabel.Nifti1Image(scan[..., 1], AFFINE * [1, 1, 1.5, 1]), file)
    elif kind == "missing":
        file.unlink()
    elif kind == "single":
        path = file
    elif kind == "zeros":
        path = save_case(tmp_path / "zeros", 0 * scan)
    elif kind == "flat":  # written by hand: nibabel refuses
        header = image.header.copy()
        header["sform_code"], header["qform_code"] = 2, 0
        header["srow_x"], header["srow_y"], header["srow_z"] = 0, 0, 0
        data = bytearray(gzip.decompress(file.read_bytes()))
        data[: len(header.binaryblock)] = header.binaryblock
        file = path / "case-t2w.nii.gz"
        file.write_bytes(gzip.compress(bytes(data)))
    elif kind == "nothing":
        path = tmp_path / "nothing.nii.gz"
    elif kind == "text":
        path = tmp_path / "notes.txt"
        path.write_text("x")
    with pytest.raises(SystemExit, match=message) as error:
        run("predict", monkeypatch, network, path, "--output", tmp_path / "out", *options)
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_results_never_meet_inputs(network, scan, tmp_path, monkeypatch) -> None:
    nibabel.save(nibabel.Nifti1Image(scan, AFFINE), tmp_path / "four.nii.gz")
    with pytest.raises(SystemExit, match="would replace an input"):
        run("predict", monkeypatch, network, tmp_path / "four.nii.gz", "--output", tmp_path)
    with pytest.raises(SystemExit, match="several inputs would be written as four"):
        run("predict", monkeypatch, network, *[tmp_path / "four.nii.gz"] * 2, "--output", tmp_path / "out")
    with pytest.raises(SystemExit, match="say where to write the labels"):
        run("predict", monkeypatch, network, tmp_path / "four.nii.gz")
    (tmp_path / "out").write_text("a file")
    with pytest.raises(SystemExit, match="cannot write"):
        run("predict", monkeypatch, network, tmp_path / "four.nii.gz", "--output", tmp_path / "out")


def test_corrupt_cases_can_be_skipped(network, scan, tmp_path, monkeypatch, capsys) -> None:
    save_case(tmp_path / "in", scan, "good")
    (save_case(tmp_path / "in", scan, "bad") / "bad-t2w.nii.gz").write_bytes(b"broken")
    run("predict", monkeypatch, network, tmp_path / "in", "--output", tmp_path / "out", "--skip-corrupt")
    assert "skipped: cannot read volume" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["good.nii.gz", "good.png"]


def test_a_model_by_name_needs_weights_and_a_recipe(network, scan, tmp_path, monkeypatch) -> None:
    folder = save_case(tmp_path, scan)
    card = json.loads((network / "config.json").read_text())["recipe"]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(card))
    weights = ("--checkpoint", network / "model.safetensors")
    run("predict", monkeypatch, network, folder, "--output", tmp_path / "one")
    named = ("predict", monkeypatch, "segmamba_nano", folder, "--output", tmp_path / "two", *weights)
    run(*named, "--recipe", tmp_path / "recipe.yaml")
    assert np.array_equal(labels(tmp_path / "one" / "case.nii.gz"), labels(tmp_path / "two" / "case.nii.gz"))
    with pytest.raises(
        SystemExit, match="needs weights and a recipe for its data: --checkpoint FILE and --recipe YAML"
    ):
        run(*named)
    assert task_of("vmamba_unet") == "volume"


def test_scores_of_a_labelled_folder(network, scan, tmp_path, monkeypatch, capsys) -> None:
    truth = {}
    for number in range(5):
        name = f"case{number}"
        folder = save_case(tmp_path / "data", np.roll(scan, number, 0), name)
        truth[name] = np.random.default_rng(number).integers(0, 3, SIZE).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(truth[name], AFFINE), folder / f"{name}-seg.nii.gz")
    out, found = tmp_path / "scores.json", tmp_path / "labels"
    options = ("--data", tmp_path / "data", "--json", out, "--predictions", found)
    run("evaluate", monkeypatch, network, *options, "--split", "all")
    result = json.loads(out.read_text())
    assert sorted(result["per_case"]) == sorted(truth)
    for name, scores in result["per_case"].items():
        regions = {"a": [1], "b": [2]}
        wanted = score_regions(labels(found / f"{name}.nii.gz"), truth[name], regions, spacing=(1, 1.5, 2))
        assert scores == {"dice": wanted.dice, "hd95": wanted.hd95}
    mean = np.mean([list(scores["dice"].values()) for scores in result["per_case"].values()])
    assert result["scores"]["mean_dice"] == pytest.approx(mean)
    assert f"5 cases: mean Dice {mean:.4f}" in capsys.readouterr().out
    run("evaluate", monkeypatch, network, *options[:4], "--split", "test")
    assert len(json.loads(out.read_text())["per_case"]) == 1
    with pytest.raises(SystemExit, match="has the splits train, validation, test and all, not 'val'"):
        run("evaluate", monkeypatch, network, *options, "--split", "val")
    with pytest.raises(SystemExit, match="--rgb is not an option for volume"):
        run("evaluate", monkeypatch, network, *options, "--rgb")


def test_every_case_of_a_list_is_scored_under_its_own_name(network, scan, tmp_path, monkeypatch) -> None:
    rows = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        nibabel.save(nibabel.Nifti1Image(scan, AFFINE), tmp_path / name / "image.nii.gz")
        nibabel.save(nibabel.Nifti1Image(np.ones(SIZE, np.uint8), AFFINE), tmp_path / name / "label.nii.gz")
        rows.append({"image": f"{name}/image.nii.gz", "label": f"{name}/label.nii.gz"})
    (tmp_path / "list.json").write_text(json.dumps({"training": rows}))
    data, out = ("--data", tmp_path / "list.json", "--layout", "list", "--split", "all"), tmp_path / "out"
    run("evaluate", monkeypatch, network, *data, "--json", tmp_path / "scores.json", "--predictions", out)
    assert list(json.loads((tmp_path / "scores.json").read_text())["per_case"]) == ["one_image", "two_image"]
    assert sorted(path.name for path in out.glob("*.nii.gz")) == ["one_image.nii.gz", "two_image.nii.gz"]


def test_what_is_missing_is_named_in_a_line() -> None:
    with pytest.raises(SystemExit, match=r"monai is not installed: pip install 'visionssm\[medical\]'"), user_errors():
        raise ModuleNotFoundError("No module named 'monai'", name="monai")
    with pytest.raises(ModuleNotFoundError), user_errors():
        raise ModuleNotFoundError("No module named 'ours'", name="ours")


def test_the_card_keeps_the_recipe(network) -> None:
    card = json.loads((network / "config.json").read_text())
    assert task_of(str(network)) == card["task"] == "volume"
    assert dump_config(build_config(VolumeConfig, card["recipe"])) == card["recipe"]
