"""The recipes: all build, with the published number of parameters; every head and every family learns and predicts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample
from skimage.data import astronaut
from torch import Tensor

import visionssm
from dev.update_recipe_tables import TABLES, with_table
from visionssm.integrations.openmmlab import VisionSSM
from visionssm.integrations.openmmlab_optim import spared

ROOT = Path(__file__).parents[2]
TASKS = ("detection", "segmentation")
RECIPES = {path.stem: path for task in TASKS for path in sorted((ROOT / "configs" / task).glob("*.py"))}
SIZE = (95, 131)  # odd and not square
SHOWN = [  # one per head and frame; the others differ in numbers alone
    "cascade_mask_rcnn_vim_tiny_100e",
    "deeplabv3_mobile_mamba_b4_80k_ade20k",
    "dino_vmamba_tiny_s1l8_12e",
    "fpn_mobile_mamba_b4_160k_ade20k",
    "mask_rcnn_local_vim_tiny_100e",
    "mask_rcnn_mamba2d_nano_1x",
    "mask_rcnn_mobile_mamba_b1_1x",
    "mask_rcnn_plain_mamba_l1_1x",
    "mask_rcnn_vmamba_v0_tiny_3x",
    "pspnet_mobile_mamba_b4_80k_ade20k",
    "retinanet_efficient_vmamba_tiny_1x",
    "retinanet_mobile_mamba_b1_1x",
    "retinanet_plain_mamba_l1_1x",
    "retinanet_vmamba_tiny_s1l8_1x",
    "segformer_vmamba_tiny_s1l8_160k_cityscapes",
    "ssdlite_mobile_mamba_b1_512",
    "upernet_local_vim_tiny_160k_ade20k",
    "upernet_plain_mamba_l1_160k_ade20k",
    "upernet_vim_tiny_60k_ade20k",
]


def read(path: Path) -> Any:
    """A recipe in its scope, without weights to download."""
    config = Config.fromfile(str(path))
    init_default_scope(config.default_scope)
    config.model.backbone.pop("init_cfg", None)
    return config


def sample(scope: str) -> tuple[Tensor, Any]:
    """A piece of a photograph with one object, and labels of two classes."""
    image = torch.from_numpy(astronaut()[: SIZE[0], 150 : 150 + SIZE[1]].copy()).permute(2, 0, 1)
    meta = {
        "img_shape": SIZE,
        "ori_shape": SIZE,
        "pad_shape": SIZE,
        "batch_input_shape": SIZE,
        "scale_factor": (1.0, 1.0),
    }
    if scope == "mmseg":
        target: Any = SegDataSample(metainfo=meta)
        target.gt_sem_seg = PixelData(data=(image[:1] > 128).long())
        return image, target
    mask = np.zeros((1, *SIZE), np.uint8)
    mask[0, 20:70, 30:90] = 1
    target = DetDataSample(metainfo=meta)
    target.gt_instances = InstanceData(
        bboxes=torch.tensor([[30.0, 20, 90, 70]]), labels=torch.tensor([3]), masks=BitmapMasks(mask, *SIZE)
    )
    return image, target


def learn_and_predict(config: Any) -> None:
    """One step of training with finite gradients for all that is used, then a prediction in the image's own size."""
    config.model.backbone.pop("drop_path_rate", None)
    model: Any = revert_sync_batchnorm(MODELS.build(config.model))
    image, target = sample(config.default_scope)
    batch = {"inputs": [image, image.flip(2)], "data_samples": [target, target.clone()]}
    optimizer = build_optim_wrapper(model.train(), {**config.optim_wrapper, "type": "OptimWrapper"})
    data = model.data_preprocessor(batch, True)
    loss, parts = model.parse_losses(model(**data, mode="loss"))
    assert torch.isfinite(loss), parts
    loss.backward()
    lost = [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not lost or config.get("find_unused_parameters"), lost
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    optimizer.step()
    with torch.no_grad():
        (found,) = model.eval().test_step({"inputs": [image], "data_samples": [target]})
    if config.default_scope == "mmseg":
        assert found.pred_sem_seg.data.shape == (1, *SIZE)
        return
    assert {"bboxes", "labels", "scores"} <= set(found.pred_instances.keys())
    if "masks" in found.pred_instances:
        assert found.pred_instances.masks.shape[1:] == SIZE
    boxes = found.pred_instances.bboxes
    assert len(boxes) == 0 or (boxes.min() >= 0 and boxes[:, 2].max() <= SIZE[1] and boxes[:, 3].max() <= SIZE[0])


def small(config: Any) -> Any:
    """Fewer pixels and fewer proposals, the same modules."""
    preprocessor = config.model.data_preprocessor
    if config.default_scope == "mmseg":
        preprocessor.size = (128, 160)
        if config.model.test_cfg.mode == "slide":
            config.model.test_cfg.update(crop_size=(96, 96), stride=(64, 64))
        return config
    if "batch_augments" in preprocessor:
        preprocessor.batch_augments[0].size = (128, 160)
        config.model.backbone.img_size = 128
    if config.model.type == "DINO":
        config.model.num_queries = 20
    if "roi_head" in config.model:
        for phase in (config.model.train_cfg.rpn_proposal, config.model.test_cfg.rpn):
            phase.update(nms_pre=50, max_per_img=20)
        stages = config.model.train_cfg.rcnn
        for stage in stages if isinstance(stages, list) else [stages]:
            stage.sampler.num = 8
    return config


@pytest.mark.parametrize("name", sorted(set(RECIPES) - {"demo_mask_rcnn_vmamba_nano", "demo_upernet_vmamba_nano"}))
def test_every_recipe_builds_its_full_model(name: str) -> None:
    """With as many parameters as the authors print, where they do; its optimizer spares what must not be decayed."""
    config = read(RECIPES[name])
    task = RECIPES[name].parent.name
    row = TABLES[task][0][name]
    with torch.device("meta"):
        model: Any = MODELS.build(config.model)
    count = sum(p.numel() for p in model.parameters()) / 1e6
    if row.params is not None and "it has" not in row.note:
        printed = float(row.params.removesuffix("M"))
        wanted = round(count) if row.params.endswith("M") else int(count)
        assert wanted == printed, count
    optimizer = build_optim_wrapper(model, {**config.optim_wrapper, "type": "OptimWrapper"}).optimizer
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    for key, p in model.named_parameters():
        assert (id(p) in decayed) != spared(key, p), key
    maps = model.backbone.channels
    heads = config.model.get("neck") or config.model.decode_head
    if "in_channels" in heads:
        wanted = heads.in_channels
        assert maps[-len(wanted) :] == wanted if isinstance(wanted, list) else maps[-1] == wanted


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:torch.meshgrid")
@pytest.mark.parametrize("name", SHOWN)
def test_every_head_learns_and_predicts(name: str) -> None:
    learn_and_predict(small(read(RECIPES[name])))


@pytest.mark.parametrize("head", ["mask_rcnn", "upernet"])
@pytest.mark.parametrize("name", visionssm.list_models("*_nano", task="classification"))
def test_every_family_under_a_detector_and_a_segmentor(name: str, head: str) -> None:
    """The demos' models with another backbone, and with another scan order; plain ones through the pyramid."""
    task = {"mask_rcnn": "detection", "upernet": "segmentation"}[head]
    config = read(ROOT / "configs" / task / f"demo_{head}_vmamba_nano.py")
    config.model.backbone.update(name=name)
    config.model.backbone.pop("out_indices")
    backbone = VisionSSM(name)
    channels = backbone.channels
    if len(channels) == 1:  # a plain backbone
        width = {"detection": 48, "segmentation": 32}[task]
        neck = {
            "type": "SimplePyramid",
            "in_channels": channels[0],
            "stride": backbone.strides[0],
            "out_channels": width,
        }
        config.model.neck, channels = neck, [width] * 4
    elif task == "detection":
        config.model.neck.in_channels = channels
    if task == "segmentation":
        config.model.decode_head.update(in_channels=channels, in_index=list(range(len(channels))))
        config.model.auxiliary_head.in_channels = channels[2]
    learn_and_predict(config)


def test_another_scan_order_by_name_in_the_config() -> None:
    config = read(ROOT / "configs" / "detection" / "demo_mask_rcnn_vmamba_nano.py")
    config.merge_from_dict({"model.backbone.scan": {"name": "window", "directions": ["h", "v", "w2", "w2_flip"]}})
    learn_and_predict(config)


@pytest.mark.parametrize("task", TASKS)
def test_tables_are_up_to_date_and_complete(task: str) -> None:
    folder = ROOT / "configs" / task
    assert set(TABLES[task][0]) == {path.stem for path in folder.glob("*.py") if not path.stem.startswith("demo_")}
    readme = (folder / "README.md").read_text()
    assert with_table(readme, task) == readme, "run dev/update_recipe_tables.py"


@pytest.mark.parametrize("task", TASKS)
def test_albumentations_is_in_a_recipe(task: str) -> None:
    texts = [path.read_text() for path in (ROOT / "configs" / task).glob("*.py")]
    assert any('type="Albu"' in text for text in texts)
