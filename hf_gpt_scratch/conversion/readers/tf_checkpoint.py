"""TensorFlow checkpoints read by TensorFlow itself: the reference for `tensor_bundle`, for rare kinds too."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from hf_gpt_scratch.conversion.readers.leveldb_table import parse_table
from hf_gpt_scratch.conversion.readers.named_tensors import NamedTensors
from hf_gpt_scratch.conversion.readers.tensor_bundle import (
    NUMPY_DTYPES,
    CheckpointError,
    checkpoint_errors,
    find_checkpoint_prefix,
    skip_reason,
)


class TFCheckpoint(NamedTensors):
    """A checkpoint opened by TensorFlow, as `TensorBundle` otherwise; arrays are read-only copies in memory."""

    def __init__(self, prefix: Path, tf: ModuleType) -> None:
        self._prefix = prefix
        self._tf = tf
        with self._one_line():
            self._reader: Any = tf.train.load_checkpoint(str(prefix))
            found, shapes = self._reader.get_variable_to_dtype_map(), self._reader.get_variable_to_shape_map()
        # The reader's maps have no order; the index has that of the UTF-8 bytes.
        dtypes = {name: found[name].as_datatype_enum for name in sorted(found, key=str.encode)}
        self.shapes = {name: tuple(shapes[name]) for name, number in dtypes.items() if number in NUMPY_DTYPES}
        self.dtypes = {name: NUMPY_DTYPES[dtypes[name]] for name in self.shapes}
        self.skipped = {name: skip_reason(number) for name, number in dtypes.items() if number not in NUMPY_DTYPES}

    @contextmanager
    def _one_line(self) -> Iterator[None]:
        """Say in one line what TensorFlow says in many."""
        try:
            yield
        except (self._tf.errors.OpError, RuntimeError, ValueError, IndexError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{self._prefix} cannot be read by TensorFlow: {reason}") from None

    def __getitem__(self, name: str) -> np.ndarray:
        if name in self.skipped:
            raise CheckpointError(f"{name} cannot be read: {self.skipped[name]}")
        if name not in self.shapes:
            raise KeyError(name)
        with self._one_line():
            array = np.asarray(self._reader.get_tensor(name))
        array.flags.writeable = False
        return array


def import_tensorflow() -> ModuleType:
    """Import TensorFlow, which takes seconds; ValueError says that it is not installed."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # no lines about instruction sets
    try:
        import tensorflow as tf
    except ImportError as error:
        wanted = "pip install tensorflow, or use the reader that does without"
        raise ValueError(f"TensorFlow cannot be imported ({error}): {wanted}") from None
    return tf


def open_tf_checkpoint(path: str | Path) -> TFCheckpoint:
    """Open a checkpoint through TensorFlow; ValueError: it is not installed, and those of `open_tensor_bundle`."""
    prefix = find_checkpoint_prefix(path)
    index = Path(f"{prefix}.index")
    # Where a block is damaged, TensorFlow takes the index for ended.
    with checkpoint_errors(index), suppress(NotImplementedError):
        parse_table(index.read_bytes())
    return TFCheckpoint(prefix, import_tensorflow())
