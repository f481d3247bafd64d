"""Proves that bad indexes and damaged files are refused; test_safetensors_writer.py compares the values."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hf_gpt_scratch.conversion.readers.safetensors_reader import open_safetensors


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
