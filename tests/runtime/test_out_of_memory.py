"""Proves that memory that is not there is told from other errors, and said in one line."""

import json
import mmap
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_gpt_scratch.runtime.out_of_memory import is_out_of_memory, out_of_memory_line


def ask_torch() -> None:
    torch.empty(2**56, dtype=torch.uint8)


def ask_torch_for_more_than_can_be_said() -> None:
    torch.empty(2**40, 2**40)


def ask_numpy() -> None:
    np.empty(2**56, dtype=np.uint8)


def ask_system() -> None:
    mmap.mmap(-1, 2**56)


def ask_gpu() -> None:
    raise torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 8 GiB"
    )


@pytest.mark.parametrize(
    ("ask", "asked"),
    [
        (ask_torch, "72,057,594.04 GB"),
        (ask_numpy, "64.0 PiB"),
        (ask_torch_for_more_than_can_be_said, None),
        (ask_system, None),
    ],
)
def test_real_errors_become_one_line(ask: object, asked: str | None) -> None:
    with pytest.raises((RuntimeError, MemoryError, OSError)) as caught:
        ask()
    assert is_out_of_memory(caught.value)
    line = out_of_memory_line(caught.value, "take less")
    assert "\n" not in line
    assert line.startswith(f"out of memory: {asked} more asked for, " if asked else "out of memory: ")
    assert line.endswith(" GB are free: take less")


def test_error_of_a_gpu_is_one_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2_000_000_000, 8_000_000_000))
    with pytest.raises(RuntimeError) as caught:
        ask_gpu()
    assert is_out_of_memory(caught.value)
    expected = "out of memory: 20.00 GiB more asked for, 2.00 GB are free on the GPU: take less"
    assert out_of_memory_line(caught.value, "take less") == expected


def test_other_errors_are_left_alone() -> None:
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))


CODE = """
import torch
from hf_gpt_scratch.runtime.cli import run
run(lambda: torch.empty(2**56, dtype=torch.uint8))
"""


@pytest.mark.parametrize(
    ("argument", "advice"),
    [
        ("", "turn down the batch, the length of the texts or the size of the model"),
        (", memory_advice='turn down --num_workers'", "turn down --num_workers"),
    ],
)
def test_any_script_ends_in_one_line(tmp_path: Path, argument: str, advice: str) -> None:
    code = CODE.replace("uint8))", f"uint8){argument})")
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: out of memory: 72,057,594.04 GB more asked for, ")
    assert line.endswith(f": {advice}")


LIMIT = 40 * 2**30  # of which PyTorch takes 2 GiB, or with CUDA 12


@pytest.mark.skipif(shutil.which("prlimit") is None, reason="sets the limit")
@pytest.mark.parametrize(
    "command",
    [
        ["generate.py", "--prompt", "The lamp", "--model"],
        pytest.param(["evaluate.py", "--file", "text.txt", "--model"], id="evaluate.py", marks=pytest.mark.nightly),
        pytest.param(["demo.py", "--port", "0", "--model"], id="demo.py", marks=pytest.mark.nightly),
        ["convert_gpt2.py", "--export-stock", "--output", "stock", "--from-dir"],
    ],
    ids=lambda command: command[0],
)
def test_model_that_does_not_fit_is_one_line(
    finished_folder: Path, project_root: Path, tmp_path: Path, command: list[str]
) -> None:
    """A file with a hole of 64 GB, read by a process that may have less."""
    folder = tmp_path / "model"
    shutil.copytree(finished_folder, folder)
    for path in folder.glob("model*"):
        path.unlink()
    size = 64 * 10**9
    header = {"lm_head.weight": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}
    packed = json.dumps(header | {"__metadata__": {"format": "pt"}}).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(packed)) + packed)
        file.truncate(8 + len(packed) + size)
    (tmp_path / "text.txt").write_text("The lamp went round", encoding="utf-8")
    script, *arguments = command
    command = [sys.executable, str(project_root / "scripts" / script), *arguments, str(folder)]
    limited = ["prlimit", f"--as={LIMIT}", *command]
    result = subprocess.run(limited, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 1
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: out of memory: ")
    assert "turn down" in line
    assert not (tmp_path / "stock").exists()
