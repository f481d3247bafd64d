"""Writes checkpoints with TensorFlow, in every form in which it does."""

from pathlib import Path
from types import ModuleType

import numpy as np

from tests.conversion.bundle_writer import gpt2_shapes


def write_with_saver(
    tf: ModuleType,
    folder: Path,
    sizes: dict[str, int],
    *,
    training: bool = False,
    num_devices: int = 1,
    num_slices: int = 0,
) -> Path:
    """Write OpenAI's variables with `tf.compat.v1.train.Saver`, as their checkpoints were written.

    Args:
        tf: TensorFlow.
        folder: to be made.
        sizes: arguments of `gpt2_shapes`.
        training: add global_step and the slots of Adam, after one step so that they are not all zero.
        num_devices: put the variables on several devices in turn, whose parts go to data files of their own.
        num_slices: partition each variable, and its slots, along its longest dimension.
    """
    tf1 = tf.compat.v1
    folder.mkdir(parents=True)
    config = tf1.ConfigProto(device_count={"CPU": 3}, intra_op_parallelism_threads=1)
    with tf.Graph().as_default(), tf1.Session(config=config) as session:
        tf1.set_random_seed(1)
        variables = []
        for i, (name, shape) in enumerate(gpt2_shapes(**sizes).items()):
            with tf.device(f"/cpu:{i % num_devices}"):
                longest = int(np.argmax(shape))
                partitioner = tf1.fixed_size_partitioner(num_slices, axis=longest) if num_slices else None
                values = tf1.random_normal_initializer()
                variables.append(tf1.get_variable(name, shape, initializer=values, partitioner=partitioner))
        if training:
            loss = sum(tf.reduce_sum(tf.convert_to_tensor(v) ** 3) for v in variables)
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


def write_slices(tf: ModuleType, folder: Path, shapes_and_slices: list[str]) -> Path:
    """Write slices of one variable of ones with the operation itself, in its own notation of shape and slice."""
    folder.mkdir(parents=True)
    lengths = [
        [int(part.split(",")[1]) if part != "-" else 4 for part in one.split()[-1].split(":")]
        for one in shapes_and_slices
    ]
    tf.raw_ops.SaveV2(
        prefix=str(folder / "model.ckpt"),
        tensor_names=["model/wte"] * len(lengths),
        shape_and_slices=shapes_and_slices,
        tensors=[tf.reshape(tf.range(np.prod(shape), dtype=tf.float32), shape) for shape in lengths],
    )
    return folder


def write_objects(tf: ModuleType, folder: Path) -> Path:
    """Write what TensorFlow 2 writes: names of attributes, a counter and the graph of the objects."""
    module = tf.Module()
    module.wte = tf.Variable(np.arange(12, dtype=np.float32).reshape(3, 4))
    tf.train.Checkpoint(model=module).save(str(folder / "model.ckpt"))
    return folder
