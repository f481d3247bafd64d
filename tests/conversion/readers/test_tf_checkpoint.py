"""Proves that the reader that has TensorFlow keeps the promises of the one that does without.

That both give the same bytes, and what both do with damaged files, is in test_tensor_bundle.py.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hf_gpt_scratch.conversion.readers.tf_checkpoint import CheckpointError, open_tf_checkpoint


def test_arrays_are_read_only(tf_checkpoints):
    array = open_tf_checkpoint(tf_checkpoints["openai"])["model/wte"]
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 0


def test_unknown_and_skipped_names(tf_checkpoints):
    tensors = open_tf_checkpoint(tf_checkpoints["dtypes"])
    assert "text" not in tensors
    assert "float32" in tensors
    with pytest.raises(CheckpointError, match="text cannot be read: numpy has no dtype string"):
        tensors["text"]
    with pytest.raises(KeyError):
        tensors["nothing"]


def test_nothing_there(tensorflow, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no TensorFlow checkpoint"):
        open_tf_checkpoint(tmp_path)


def test_one_line_where_tensorflow_is_not_installed(handmade_checkpoint):
    """In an interpreter in which the import fails as it does without the package."""
    program = (
        "import sys; sys.modules['tensorflow'] = None\n"
        "from hf_gpt_scratch.conversion.readers.tf_checkpoint import open_tf_checkpoint\n"
        "try:\n    open_tf_checkpoint(sys.argv[1])\n"
        "except ValueError as error:\n    print(error)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    process = subprocess.run(
        [sys.executable, "-c", program, str(handmade_checkpoint)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert len(process.stdout.splitlines()) == 1
    assert "pip install tensorflow, or use the reader that does without" in process.stdout
