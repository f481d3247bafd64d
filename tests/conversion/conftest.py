"""What the conversion tests share: checkpoints that TensorFlow wrote, and such as are made by hand."""

import json
import os
from pathlib import Path
from types import ModuleType

import pytest

from tests.conversion.bundle_writer import TINY, TINY_HPARAMS, gpt2_tensors, write_bundle
from tests.conversion.tf_writer import write_all_dtypes, write_objects, write_slices, write_with_saver


@pytest.fixture(scope="session")
def tensorflow() -> ModuleType:
    """TensorFlow; where it is not installed, what it proves is not proved, and the skip says so."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    missing = "TensorFlow is not installed, so nothing is held against it: pip install tensorflow"
    return pytest.importorskip("tensorflow", reason=missing)


@pytest.fixture(scope="session")
def tf_checkpoints(tensorflow: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of checkpoints that TensorFlow wrote, by kind. Copy what you change."""
    folder = tmp_path_factory.mktemp("tensorflow")
    checkpoints = {
        "openai": write_with_saver(tensorflow, folder / "openai", TINY),
        "training": write_with_saver(tensorflow, folder / "training", TINY, training=True),
        "sharded": write_with_saver(tensorflow, folder / "sharded", TINY, training=True, num_devices=3),
        "dtypes": write_all_dtypes(tensorflow, folder / "dtypes"),
        "objects": write_objects(tensorflow, folder / "objects"),
        "partitioned": write_with_saver(
            tensorflow, folder / "partitioned", TINY, training=True, num_devices=2, num_slices=3
        ),
        "tiled": write_slices(tensorflow, folder / "tiled", ["300 4 0,100:0,3", "300 4 0,100:3,1", "300 4 100,200:-"]),
    }
    for kind in ("openai", "training", "sharded", "partitioned"):
        (checkpoints[kind] / "hparams.json").write_text(json.dumps(TINY_HPARAMS, indent=2) + "\n")
    return checkpoints


@pytest.fixture(scope="session")
def handmade_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint of OpenAI's names, written without TensorFlow. Copy what you change."""
    folder = tmp_path_factory.mktemp("handmade")
    write_bundle(folder / "model.ckpt", gpt2_tensors(**TINY), num_shards=2)
    return folder
