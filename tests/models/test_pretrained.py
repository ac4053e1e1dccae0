"""`pretrained=True` through timm's real loaders, against servers on 127.0.0.1."""

import functools
import hashlib
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

import visionssm
from tests.parity.cases import load_cases
from tests.parity.families import HERE, torch_weights
from tests.small import small_models


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files by URL, and a model hub's headers for /<owner>/<repository>/resolve/<revision>/<file>."""

    def log_message(self, *args: object) -> None:
        pass

    def translate_path(self, path: str) -> str:
        return super().translate_path(path.replace("/resolve/main", "").replace(f"/resolve/{'0' * 40}", ""))

    def end_headers(self) -> None:
        file = Path(self.translate_path(self.path))
        if file.is_file():
            self.send_header("ETag", '"' + hashlib.sha256(file.read_bytes()).hexdigest() + '"')
            self.send_header("X-Repo-Commit", "0" * 40)
        super().end_headers()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as http_server:
        threading.Thread(target=http_server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http_server.server_address[1]}", folder
        http_server.shutdown()


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


CASE = next(case for case in load_cases(HERE / "vim" / "vim_tiny.json") if case.name == "small")
EXPECTED = torch.from_numpy(CASE.expected["logits"])
IMAGE = torch.from_numpy(CASE.input())


class Anything:
    """Stands for a training configuration that is pickled into the file."""


def official_file(path: Path) -> Path:
    torch.save({"model": torch_weights(CASE), "args": Anything()}, path)
    return path


def test_url_of_an_official_file(server: tuple[str, Path]) -> None:
    url, folder = server
    official_file(folder / "vim.pth")
    overlay = {"url": f"{url}/vim.pth", "hf_hub_id": None, "custom_load": True}
    model = timm.create_model("vim_tiny", pretrained=True, img_size=64, pretrained_cfg_overlay=overlay).eval()
    with torch.no_grad():
        assert (model(IMAGE) - EXPECTED).abs().max() < 5e-5


def test_file_of_an_official_checkpoint_with_other_channels_classes_and_size(tmp_path: Path) -> None:
    file = official_file(tmp_path / "vim.pth")
    overlay = {"file": str(file), "hf_hub_id": None, "custom_load": True}
    options = {"pretrained": True, "pretrained_cfg_overlay": overlay}
    grey = timm.create_model("vim_tiny", img_size=64, in_chans=1, num_classes=5, **options).eval()
    full = timm.create_model("vim_tiny", img_size=64, **options).eval()
    weight = full.patch_embed.proj.weight.sum(1, keepdim=True)
    torch.testing.assert_close(grey.patch_embed.proj.weight, weight)
    assert grey(torch.randn(1, 1, 64, 64)).shape == (1, 5)
    torch.testing.assert_close(grey.blocks[3].mixer.A_log, full.blocks[3].mixer.A_log)

    wide = timm.create_model("vim_tiny", img_size=(96, 128), **options).eval()
    assert wide.pos_embed.shape[1] == 6 * 8 + 1
    x = torch.randn(1, 3, 96, 128)
    with torch.no_grad():  # resizing at loading time and on the way are the same
        torch.testing.assert_close(wide(x), full(x))
    torch.testing.assert_close(wide.pos_embed[:, 24], full.pos_embed[:, 8])  # the middle is the class token's


def test_published_resizing_takes_the_first_entry_for_the_token(tmp_path: Path) -> None:
    file = official_file(tmp_path / "vim.pth")
    overlay = {"file": str(file), "hf_hub_id": None, "custom_load": True}
    options = {"pretrained": True, "pretrained_cfg_overlay": overlay}
    full = timm.create_model("vim_tiny", img_size=64, **options)
    wide = timm.create_model("vim_tiny", img_size=96, position_resize="published", **options)
    grid = full.pos_embed[:, 1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, size=(6, 6), mode="bicubic", align_corners=False)
    wanted = torch.cat([full.pos_embed[:, :1], grid.flatten(2).transpose(1, 2)], 1)
    torch.testing.assert_close(wide.pos_embed, wanted)


HUB_SCRIPT = """
import sys, torch, timm, visionssm
model = timm.create_model(sys.argv[1], pretrained=True, **eval(sys.argv[2])).eval()
torch.manual_seed(0)
print("sum", model(torch.randn(1, 3, 64, 64)).sum().item())
"""


def run_with_hub(url: str, cache: Path, name: str, options: dict[str, object]) -> subprocess.CompletedProcess:
    environment = {**os.environ, "HF_ENDPOINT": url, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", HUB_SCRIPT, name, repr(options)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)


@pytest.mark.slow
def test_hub_repositories_of_official_and_of_own_files(server: tuple[str, Path], tmp_path: Path) -> None:
    url, folder = server
    (folder / "hustvl" / "Vim-tiny-midclstok").mkdir(parents=True)
    official_file(folder / "hustvl" / "Vim-tiny-midclstok" / "vim_t_midclstok_76p1acc.pth")
    run = run_with_hub(url, tmp_path / "hf", "vim_tiny", {"img_size": 64})
    assert run.returncode == 0, run.stderr[-2000:]

    model = visionssm.create_model("vim_tiny", img_size=64).eval()
    visionssm.load_official(model, torch_weights(CASE))
    torch.manual_seed(0)
    wanted = model(torch.randn(1, 3, 64, 64)).sum().item()
    assert float(run.stdout.split()[-1]) == pytest.approx(wanted, abs=1e-2)

    own = folder / "someone" / "finetuned"
    own.mkdir(parents=True)
    save_file(model.state_dict(), own / "model.safetensors")
    (own / "config.json").write_text(
        '{"architecture": "vim_tiny", "num_classes": 1000, "model_args": {"img_size": 64},'
        ' "pretrained_cfg": {"input_size": [3, 64, 64], "num_classes": 1000, "first_conv": "patch_embed.proj",'
        ' "classifier": "head", "custom_load": false}}'
    )
    run = run_with_hub(url, tmp_path / "hf", "hf-hub:someone/finetuned", {})
    assert run.returncode == 0, run.stderr[-2000:]
    assert float(run.stdout.split()[-1]) == pytest.approx(wanted, abs=1e-2)


UNRELEASED = small_models("classification")


@pytest.mark.parametrize("name", UNRELEASED)
def test_architectures_without_released_weights_say_so(name: str) -> None:
    with pytest.raises(RuntimeError, match=r"[Nn]o pretrained weights exist"):
        timm.create_model(name, pretrained=True)


def test_a_released_file_of_another_variant_is_refused(tmp_path: Path) -> None:
    file = official_file(tmp_path / "vim.pth")
    overlay = {"file": str(file), "hf_hub_id": None, "custom_load": True}
    with pytest.raises(ValueError, match="does not fit"):
        timm.create_model("vim_small", pretrained=True, img_size=64, pretrained_cfg_overlay=overlay)
