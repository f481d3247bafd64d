"""Proves that bad indexes and damaged files are refused; test_safetensors_writer.py compares the values."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_gpt_scratch.conversion.readers.safetensors_reader import open_safetensors
from tests.conversion.light_interpreter import run_light


def test_bad_indexes_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "one.safetensors")
    save_file({"a": torch.ones(2), "b": torch.ones(3)}, tmp_path / "two.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    for weight_map, error, message in (
        (
            {"a": "one.safetensors", "b": "two.safetensors"},
            ValueError,
            "a is in one.safetensors and in two.safetensors",
        ),
        ({"a": "one.safetensors", "c": "one.safetensors"}, ValueError, "disagree about c"),
        ({"a": "gone.safetensors"}, FileNotFoundError, "names gone.safetensors, which is not there"),
        ({"a": "../one.safetensors"}, ValueError, "must lie beside the index"),
        ({"a": str(tmp_path / "one.safetensors")}, ValueError, "must lie beside the index"),
        ({"a": 3}, ValueError, "not an index|must lie beside"),
        ([1], ValueError, "not an index of safetensors files"),
    ):
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(error, match=message):
            open_safetensors(index)
    index.write_text("<html>")
    with pytest.raises(ValueError, match="not an index of safetensors files"):
        open_safetensors(index)
    (tmp_path / "html.safetensors").write_text("<!DOCTYPE html><html></html>")
    with pytest.raises(ValueError, match="is truncated or corrupt"):
        open_safetensors(tmp_path / "html.safetensors")


def test_a_file_that_is_written_anew_leaves_a_map_its_values(tmp_path: Path) -> None:
    """From 0.8 on the library writes beside and renames: a map sees the old file, no mixture, and no SIGBUS."""
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(1 << 20)}, path)
    mapped = open_safetensors(path)["a"]
    save_file({"a": torch.full((4,), 2.0)}, path)
    assert mapped.shape == (1 << 20,)
    assert (mapped == 1).all()
    assert (open_safetensors(path)["a"] == 2).all()


CHANGED_IN_PLACE = """
import os
import resource
import sys
from pathlib import Path

import numpy as np

from hf_gpt_scratch.conversion.readers.safetensors_reader import open_safetensors

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
path = Path(sys.argv[1])
mapped = open_safetensors(path)["a"]
with path.open("r+b") as file:
    file.seek(-4, os.SEEK_END)
    file.write(np.float32(7).tobytes())
os.truncate(path, int(sys.argv[2]))
print(mapped[0], flush=True)
print(mapped[-1], flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="as Linux maps files")
def test_a_map_follows_a_file_that_is_changed_in_place(tmp_path: Path) -> None:
    """New values are seen, and a page behind the new end ends the process; our writers replace a file."""
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(1 << 20)}, path)
    size = path.stat().st_size
    assert run_light(CHANGED_IN_PLACE, str(path), str(size)).stdout == "1.0\n7.0\n"
    with pytest.raises(subprocess.CalledProcessError) as ended:
        run_light(CHANGED_IN_PLACE, str(path), "4096")
    assert ended.value.returncode == -signal.SIGBUS
    assert ended.value.stdout == "1.0\n"


@pytest.mark.parametrize("length", range(1, 10))
def test_the_library_pads_its_header(tmp_path: Path, length: int) -> None:
    """To a multiple of 8 bytes, with spaces; and what goes beside the tensors has to be text."""
    path = tmp_path / "model.safetensors"
    save_file({"a" * length: torch.ones(2)}, path)
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    assert size % 8 == 0
    header = content[8 : 8 + size]
    assert header == header.rstrip(b" ").ljust(size)
    assert size - len(header.rstrip(b" ")) < 8
    with pytest.raises(TypeError, match="'int' object is not an instance of 'str'"):
        save_file({"a": torch.ones(2)}, path, metadata={"epoch": 3})


def test_a_header_without_padding_is_read(tmp_path: Path) -> None:
    """By the library as well as here: the values then begin at a place that no multiple of 4 is."""
    header = b'{"ab":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    values = np.array([1.5, -2], np.float32)
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + values.tobytes())
    assert (8 + len(header)) % 4 == 3
    assert load_file(path)["ab"].tolist() == open_safetensors(path)["ab"].tolist() == values.tolist()


BFLOAT16_PROGRAM = """
import sys
from pathlib import Path

from safetensors import safe_open
from safetensors.numpy import load_file

from hf_gpt_scratch.conversion.readers.safetensors_reader import open_safetensors

def read_by_the_library(path):
    with safe_open(path, framework="numpy") as file:
        for way in (lambda: file.get_slice("a")[:1], lambda: file.get_tensor("a"), lambda: load_file(path)["a"]):
            try:
                print(way().dtype.name)
            except TypeError as error:
                print(error)

path = Path(sys.argv[1])
print(open_safetensors(path)["a"].tolist())
read_by_the_library(path)
import ml_dtypes
read_by_the_library(path)
"""


def test_bfloat16_as_numpy(tmp_path: Path) -> None:
    """The library reads it once ml_dtypes is imported, by anybody; ours always, as float32."""
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.tensor([[1.5], [-3.0]], dtype=torch.bfloat16)}, path)
    printed = run_light(BFLOAT16_PROGRAM, str(path)).stdout.splitlines()
    assert printed == ["[[1.5], [-3.0]]", *["data type 'bfloat16' not understood"] * 3, *["bfloat16"] * 3]
