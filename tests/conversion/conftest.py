"""What the conversion tests share: checkpoints that TensorFlow wrote, and such as are made by hand."""

import json
import os
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from bundle_writer import gpt2_shapes, gpt2_tensors, write_bundle


TINY = {"hidden_size": 8, "num_layers": 2, "vocab_size": 11, "context_length": 6}
TINY_HPARAMS = {"n_vocab": 11, "n_ctx": 6, "n_embd": 8, "n_head": 2, "n_layer": 2}


@pytest.fixture(scope="session")
def tensorflow() -> ModuleType:
    """TensorFlow; where it is not installed, what it proves is not proved, and the skip says so."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    missing = "TensorFlow is not installed, so nothing is held against it: pip install 'hf_gpt_scratch[tensorflow]'"
    return pytest.importorskip("tensorflow", reason=missing)


def write_with_saver(
    tf: ModuleType, folder: Path, sizes: dict[str, int], *, training: bool = False, num_devices: int = 1
) -> Path:
    """Write OpenAI's variables with `tf.compat.v1.train.Saver`, as their checkpoints were written.

    Args:
        tf: TensorFlow.
        folder: to be made.
        sizes: arguments of `gpt2_shapes`.
        training: add global_step and the slots of Adam, after one step so that they are not all zero.
        num_devices: put the variables on several devices in turn, whose parts go to data files of their own.
    """
    tf1 = tf.compat.v1
    folder.mkdir(parents=True)
    config = tf1.ConfigProto(device_count={"CPU": 3}, intra_op_parallelism_threads=1)
    with tf.Graph().as_default(), tf1.Session(config=config) as session:
        tf1.set_random_seed(1)
        variables = []
        for i, (name, shape) in enumerate(gpt2_shapes(**sizes).items()):
            with tf.device(f"/cpu:{i % num_devices}"):
                variables.append(tf1.get_variable(name, shape, initializer=tf1.random_normal_initializer()))
        if training:
            loss = sum(tf.reduce_sum(v**3) for v in variables)
            step = tf1.train.AdamOptimizer().minimize(loss, global_step=tf1.train.get_or_create_global_step())
        session.run(tf1.global_variables_initializer())
        if training:
            session.run(step)
        saver = tf1.train.Saver(sharded=num_devices > 1)
        saver.save(session, str(folder / "model.ckpt"), write_meta_graph=False)
    return folder


def write_all_dtypes(tf: ModuleType, folder: Path) -> Path:
    """Write one variable of each dtype that a checkpoint may hold, an empty one and a scalar."""
    tf1 = tf.compat.v1
    folder.mkdir(parents=True)
    dtypes = (tf.float16, tf.bfloat16, tf.float32, tf.float64, tf.complex64, tf.complex128, tf.bool)
    dtypes += (tf.int8, tf.int16, tf.int32, tf.int64, tf.uint8, tf.uint16, tf.uint32, tf.uint64)
    with tf.Graph().as_default(), tf1.Session() as session:
        for dtype in dtypes:
            tf1.get_variable(dtype.name, initializer=tf.cast(tf.constant([[1, 0, 3]]), dtype))
        tf1.get_variable("empty", [0, 3])
        tf1.get_variable("scalar", [])
        tf1.get_variable("text", initializer=tf.constant("any"))
        session.run(tf1.global_variables_initializer())
        tf1.train.Saver().save(session, str(folder / "model.ckpt"), write_meta_graph=False)
    return folder


def write_partitioned(tf: ModuleType, folder: Path) -> Path:
    """Write a variable in slices."""
    tf1 = tf.compat.v1
    folder.mkdir(parents=True)
    with tf.Graph().as_default(), tf1.Session() as session:
        tf1.get_variable("model/wte", [10, 4], partitioner=tf1.fixed_size_partitioner(2))
        session.run(tf1.global_variables_initializer())
        tf1.train.Saver().save(session, str(folder / "model.ckpt"), write_meta_graph=False)
    return folder


def write_objects(tf: ModuleType, folder: Path) -> Path:
    """Write what TensorFlow 2 writes: names of attributes, a counter and the graph of the objects."""
    module = tf.Module()
    module.wte = tf.Variable(np.arange(12, dtype=np.float32).reshape(3, 4))
    tf.train.Checkpoint(model=module).save(str(folder / "model.ckpt"))
    return folder


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
        "partitioned": write_partitioned(tensorflow, folder / "partitioned"),
    }
    for kind in ("openai", "training", "sharded"):
        (checkpoints[kind] / "hparams.json").write_text(json.dumps(TINY_HPARAMS, indent=2) + "\n")
    return checkpoints


@pytest.fixture(scope="session")
def handmade_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint of OpenAI's names, written without TensorFlow. Copy what you change."""
    folder = tmp_path_factory.mktemp("handmade")
    write_bundle(folder / "model.ckpt", gpt2_tensors(**TINY), num_shards=2)
    return folder
