"""Published files in all the wrappings they come in, and everything that can be wrong with one."""

import argparse
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import visionssm
from tests.parity.cases import load_cases
from tests.parity.families import HERE, torch_weights
from visionssm.checkpoints import CheckpointError, read_checkpoint
from visionssm.engine.checkpoint import save_checkpoint

CASE = next(case for case in load_cases(HERE / "vim" / "vim_tiny.json") if case.name == "small")


class Config:
    """A class that a reader's machine does not have: pickled by name only."""

    def __init__(self) -> None:
        self.nested = {"a": [1, 2]}


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    return torch_weights(CASE)


@pytest.fixture
def model() -> nn.Module:
    return visionssm.create_model("vim_tiny", img_size=64).eval()


@pytest.fixture(scope="module")
def wanted(published: dict[str, Tensor]) -> dict[str, Tensor]:
    model = visionssm.create_model("vim_tiny", img_size=64)
    return visionssm.load_official(model, published).state_dict()


def assert_loaded(model: nn.Module, wanted: dict[str, Tensor]) -> None:
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name


@pytest.mark.parametrize("wrapper", ["", "model", "state_dict"])
def test_wrappings(wrapper: str, published, wanted, model, tmp_path: Path) -> None:
    file = tmp_path / "file.pth"
    torch.save({wrapper: published, "epoch": 3} if wrapper else published, file)
    assert_loaded(visionssm.load_official(model, file), wanted)


def test_arrays_and_safetensors(published, wanted, model, tmp_path: Path) -> None:
    assert_loaded(visionssm.load_official(model, {n: t.numpy() for n, t in published.items()}), wanted)
    save_file(published, tmp_path / "file.safetensors")
    assert_loaded(visionssm.load_official(model, str(tmp_path / "file.safetensors")), wanted)


def test_our_own_state_dict_is_taken_too(wanted, model) -> None:
    assert_loaded(visionssm.load_official(model, dict(wanted)), wanted)


def test_pickled_objects_are_read_without_their_code(published, wanted, model, tmp_path: Path) -> None:
    file = tmp_path / "file.pth"
    torch.save({"model": published, "args": argparse.Namespace(lr=0.1), "config": Config()}, file)
    assert_loaded(visionssm.load_official(model, file), wanted)
    assert not isinstance(read_checkpoint(file)["config"], Config)


class Attack:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("attacked"),))


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_file_is_never_run(legacy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(
        {"model": {"w": torch.ones(3)}, "config": Attack()},
        "file.pth",
        _use_new_zipfile_serialization=not legacy,
    )
    content = read_checkpoint("file.pth")
    assert torch.equal(content["model"]["w"], torch.ones(3))
    assert not Path("attacked").exists()


def test_bare_pickles_are_refused_or_inert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file.pth").write_bytes(pickle.dumps(Attack()))
    with pytest.raises(CheckpointError):
        read_checkpoint("file.pth")
    assert not Path("attacked").exists()


def test_vmamba_old_names_and_four_dimensional_linears() -> None:
    case = next(case for case in load_cases(HERE / "vmamba" / "v0_tiny.json") if case.name == "small")
    state = torch_weights(case)
    wanted = visionssm.load_official(visionssm.create_model("vmamba_v0_tiny"), state).state_dict()
    old = {}
    for name, tensor in state.items():
        for now, then in (
            ("patch_embed.0.", "patch_embed.proj."),
            ("patch_embed.2.", "patch_embed.norm."),
            (".op.", ".self_attention."),
            ("classifier.norm.", "norm."),
            ("classifier.head.", "head."),
        ):
            name = name.replace(now, then)
        if ".blocks." in name:
            name = name.replace(".norm.", ".ln_1.")
        if name.endswith("in_proj.weight"):
            tensor = tensor[:, :, None, None]
        old[name] = tensor
    assert set(old) & set(state) != set(state)
    assert_loaded(visionssm.load_official(visionssm.create_model("vmamba_v0_tiny"), {"model": old}), wanted)


def test_the_averaged_weights_are_preferred_where_published_figures_are_theirs() -> None:
    case = next(case for case in load_cases(HERE / "vmamba" / "tiny_s2l5.json") if case.name == "small")
    state = torch_weights(case)
    model = visionssm.create_model("vmamba_tiny_s2l5")
    visionssm.load_official(model, {"model": {n: t * 0 for n, t in state.items()}, "model_ema": state})
    assert model.stages[0].blocks[0].mixer.in_proj.weight.any()


@pytest.mark.parametrize("average", [True, False])
def test_a_checkpoint_of_our_trainers_gives_what_they_export(average: bool, wanted, model, tmp_path: Path) -> None:
    raw = {name: tensor * 0 for name, tensor in wanted.items()} if average else dict(wanted)
    weights = {"model": raw, "ema": dict(wanted) if average else None}
    save_checkpoint(
        tmp_path / "best.pt", {"config": {}, "state": {"epoch": 3}, **weights, "optimizer": {}, "scaler": None}
    )
    assert_loaded(visionssm.load_official(model, tmp_path / "best.pt"), wanted)


def test_a_checkpoint_of_our_trainers_is_known_in_every_family(tmp_path: Path) -> None:
    restorer = visionssm.create_model("mambair_nano_x2", dim=12, depths=(1,), d_state=1)
    content = {"format": 1, "state": {}, "model": restorer.state_dict(), "ema": None}
    visionssm.load_official(restorer, content)


# --- what can be wrong --------------------------------------------------------------------------------------------


def test_missing_unexpected_and_misshapen_keys_are_all_named(published, model) -> None:
    state = dict(published)
    del state["layers.3.mixer.in_proj.weight"]
    state["surplus"] = torch.zeros(1)
    state["head.bias"] = torch.zeros(10)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        visionssm.load_official(model, state)
    message = str(error.value)
    assert "1 missing: blocks.3.mixer.in_proj.weight" in message
    assert "1 unexpected: surplus" in message
    assert "head.bias: file (10,), model (1000,)" in message
    assert_loaded(model, before)  # nothing was loaded half-way


def test_half_of_a_stack_is_named(published, model) -> None:
    state = {name: tensor for name, tensor in published.items() if name != "layers.0.mixer.D"}
    with pytest.raises(
        CheckpointError, match=r"blocks\.0\.mixer\.D' is stacked from routes, but the file only holds \[1\]"
    ):
        visionssm.load_official(model, state)


def test_another_variant(published) -> None:
    with pytest.raises(CheckpointError, match=r"(?s)does not fit Vim.*vim_small.*it fits vim_tiny, vim_tiny_stride8$"):
        visionssm.load_official(visionssm.create_model("vim_small", img_size=64), published)


def test_a_damaged_file_of_ours_is_told_by_its_own_names(wanted, model) -> None:
    state = {name: tensor for name, tensor in wanted.items() if name != "norm.weight"} | {"surplus": torch.zeros(1)}
    with pytest.raises(CheckpointError) as error:
        visionssm.load_official(model, state)
    assert str(error.value).splitlines()[1:] == ["  1 missing: norm.weight", "  1 unexpected: surplus"]


def test_another_family(published) -> None:
    with pytest.raises(CheckpointError, match="missing"):
        visionssm.load_official(visionssm.create_model("vmamba_nano"), published)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_truncated_files(suffix: str, published, model, tmp_path: Path) -> None:
    file = tmp_path / f"file{suffix}"
    save_file(published, file) if suffix == ".safetensors" else torch.save(published, file)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=r"truncated|not a complete safetensors"):
        visionssm.load_official(model, file)


def test_damage_inside_a_tensor_is_found(published, model, tmp_path: Path) -> None:
    file = tmp_path / "file.pth"
    torch.save(published, file)
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4096] = bytes(4096)
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"file\.pth is damaged: wrong checksum in"):
        visionssm.load_official(model, file)


def test_files_that_are_no_checkpoints(model, tmp_path: Path) -> None:
    file = tmp_path / "file.pth"
    file.write_text("<html>not found</html>")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        visionssm.load_official(model, file)
    torch.save([1, 2], file)
    with pytest.raises(CheckpointError, match="holds a list"):
        visionssm.load_official(model, file)
    with pytest.raises(CheckpointError, match="found no tensors"):
        visionssm.load_official(model, {"epoch": 3})
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        visionssm.load_official(model, tmp_path / "nowhere.pth")
    with pytest.raises(TypeError, match="path or a mapping"):
        visionssm.load_official(model, 3)
    with pytest.raises(TypeError, match="no published layout"):
        visionssm.load_official(nn.Linear(2, 2), {})
