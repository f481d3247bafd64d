"""Proves that whatever a user may point at is opened as what it is, or refused with what to give instead."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hf_gpt_scratch.conversion.readers.sources import open_source
from tests.conversion.bundle_writer import gpt2_tensors, write_bundle


@pytest.fixture
def openai(tmp_path: Path) -> Path:
    folder = tmp_path / "openai"
    write_bundle(folder / "model.ckpt", gpt2_tensors(hidden_size=8, num_layers=1, vocab_size=5, context_length=4))
    (folder / "hparams.json").write_text('{"n_head": 2}')
    (folder / "checkpoint").write_text('model_checkpoint_path: "model.ckpt"\n')
    return folder


@pytest.mark.parametrize("name", ["", "model.ckpt", "model.ckpt.index", "checkpoint"])
def test_every_name_of_a_tensorflow_checkpoint(name: str, openai: Path) -> None:
    source = open_source(openai / name)
    assert (source.reader, source.hint, source.settings) == ("bundle", "openai", {"n_head": 2})
    assert source.path == openai / "model.ckpt"
    names = ["hparams.json", "model.ckpt.data-00000-of-00001", "model.ckpt.index"]
    assert [file.name for file in source.files] == names


def test_folders_and_files_of_torch_and_safetensors(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "model.pth")
    for path in (tmp_path, tmp_path / "model.pth"):
        source = open_source(path)
        assert (source.reader, source.hint, dict(source.tensors.shapes)) == ("torch", None, {"w": (2,)})
    torch.save({"model": {"w": torch.ones(2)}, "model_args": {"n_head": 3}}, tmp_path / "ckpt.pt")
    assert (source := open_source(tmp_path / "ckpt.pt")).hint == "nanogpt"
    assert source.settings == {"n_head": 3}
    # safetensors win over the other formats that a repository holds beside them
    save_file({"w": torch.ones(3)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    source = open_source(tmp_path)
    assert (source.reader, source.hint, source.tensors.shapes) == ("safetensors", "gpt2", {"w": (3,)})


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        ({}, FileNotFoundError, "holds no checkpoint: no model.ckpt.index, no model.safetensors"),
        ({"a.pth": b"", "b.pt": b""}, ValueError, r"several checkpoints \(a.pth, b.pt\): give the one that is meant"),
        ({"model.ckpt.data-00000-of-00001": b"1"}, FileNotFoundError, "holds no checkpoint"),
        (
            {"history.jsonl": b"", "model/config.json": b"{}"},
            FileNotFoundError,
            "output folder of a run: give .*model",
        ),
    ],
)
def test_folders_without_a_clear_checkpoint(files: dict, error: type, message: str, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=message):
        open_source(tmp_path)


def test_a_path_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere does not exist: give a checkpoint's folder or file"):
        open_source(tmp_path / "nowhere")
