"""The SegMamba bundle: its properties, and train, evaluate and infer on generated volumes."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from visionssm.data.volume_patches import write_generated

pytest.importorskip("ignite")

from monai.bundle import ConfigWorkflow

CONFIGS = Path(__file__).parents[2] / "configs/volume/segmamba_bundle/configs"


@pytest.mark.filterwarnings("ignore")  # MONAI's and ignite's own
def test_train_evaluate_infer(tmp_path: Path) -> None:
    write_generated(tmp_path / "data", cases=3, size=20, classes=1)
    (tmp_path / "data/imagesTs").mkdir()
    source = nibabel.load(tmp_path / "data/imagesTr/volume_001.nii.gz")
    nibabel.save(
        nibabel.Nifti1Image(np.asarray(source.dataobj)[:17], source.affine), tmp_path / "data/imagesTs/new.nii.gz"
    )
    small = {"bundle_root": str(tmp_path), "dataset_dir": str(tmp_path / "data"), "feature_size": [4, 8], "depths": [1, 1],
             "patch": [16, 16, 16], "device": "$torch.device('cpu')"}  # fmt: skip
    for kind, more in (("train", {"train#trainer#max_epochs": 1}), ("evaluate", {}), ("inference", {})):
        workflow = ConfigWorkflow(
            CONFIGS / f"{kind}.json",
            meta_file=CONFIGS / "metadata.json",
            logging_file=False,
            workflow_type="train" if kind == "train" else "infer",
            **small,
            **more,
        )
        workflow.initialize()
        assert not workflow.check_properties(), kind
        workflow.run()
        workflow.finalize()
        if kind == "train":
            assert (tmp_path / "models/model.pt").is_file()
    assert (tmp_path / "eval/metrics.csv").is_file()
    (written,) = (tmp_path / "predictions").glob("*.nii.gz")
    assert nibabel.load(written).shape == (17, 20, 20)
    assert np.allclose(nibabel.load(written).affine, source.affine)


def test_metadata_is_what_monai_asks_for() -> None:
    metadata = json.loads((CONFIGS / "metadata.json").read_text())
    assert {"version", "monai_version", "pytorch_version", "numpy_version", "network_data_format"} <= set(metadata)
