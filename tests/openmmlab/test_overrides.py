"""What may be overridden in a config, and where its data may lie."""

from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

from visionssm.data.errors import UserError
from visionssm.engine.openmmlab import move_data
from visionssm.engine.openmmlab_overrides import check_override

CONFIGS = Path(__file__).parents[2] / "configs"


def read(name: str) -> Any:
    return Config.fromfile(str(CONFIGS / f"{name}.py"))


@pytest.fixture(scope="module")
def config() -> Any:
    return read("detection/mask_rcnn_vmamba_tiny_s1l8_1x")


@pytest.mark.parametrize(
    "key",
    [
        "model.backbone.with_cp",
        "model.backbone.scan",
        "model.backbone.options.merge",
        "model.roi_head.bbox_head.init_cfg",  # of a base class
        "default_hooks.checkpoint.save_best",
        "train_dataloader.dataset.pipeline.0.to_float32",
        "load_from",
        "sync_bn",  # the runner looks for it though no config has it
        "+train_dataloader.drop_last",
    ],
)
def test_arguments_of_what_the_config_names(config: Any, key: str) -> None:
    check_override(config, key)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("model.backbone.with_cpp", r"model\.backbone has no 'with_cpp'; did you mean with_cp\?"),
        ("train_cfg.max_epochs.most", "train_cfg.max_epochs is 12, which has no 'most'"),
        ("train_cg.max_epochs", r"the config has no 'train_cg'; did you mean train_cfg\?"),
        ("resume", "there is the option --resume"),
        ("max_epochs", r"only a variable of the config.*: set train_cfg\.max_epochs$"),
        ("+max_epochs", r"only a variable of the config.*: set train_cfg\.max_epochs$"),
        ("data_root", r"set train_dataloader\.dataset\.data_root, val_dataloader\.dataset\.data_root, test_"),
        ("train_pipeline.0.type", r"set train_dataloader\.dataset\.pipeline$"),
        ("custom_imports", "set what it went into, or derive a config"),
    ],
)
def test_keys_that_nothing_reads_are_refused(config: Any, key: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_override(config, key)


@pytest.mark.parametrize(
    ("name", "key", "message"),
    [
        ("detection/demo_mask_rcnn_vmamba_nano", "epochs", r"set train_cfg\.max_epochs$"),
        ("detection/demo_mask_rcnn_vmamba_nano", "width", r"its value is that of model\.neck\.out_channels, "),
        ("segmentation/upernet_vmamba_tiny_s1l8_160k_ade20k", "crop_size",
         r"set model\.data_preprocessor\.size, train_dataloader\.dataset\.pipeline\.3\.crop_size"),
    ],
)  # fmt: skip
def test_a_variable_is_followed_to_the_keys_that_hold_it(name: str, key: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_override(read(name), key)


def test_data_elsewhere() -> None:
    """All splits move, also those inside other datasets, and metrics with files under the old root."""
    config = read("detection/cascade_mask_rcnn_vim_tiny_100e")
    config.val_evaluator.ann_file = "/mine/of_another_place.json"
    move_data(config, "/data/coco", ("train", "val", "test"))
    assert config.train_dataloader.dataset.dataset.data_root == "/data/coco"
    assert config.val_dataloader.dataset.data_root == config.test_dataloader.dataset.data_root == "/data/coco"
    assert config.val_evaluator.ann_file == "/mine/of_another_place.json"
    assert config.test_evaluator.ann_file == "/data/coco/annotations/instances_val2017.json"
    del config.test_dataloader.dataset["data_root"]
    with pytest.raises(UserError, match=r"test_dataloader\.dataset of the config has no data_root"):
        move_data(config, "/data/coco")
