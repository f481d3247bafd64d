"""Proves that a file of torch.save is read as weights only: code in it never runs, damage never becomes a weight."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_gpt_scratch.conversion.readers.torch_checkpoint import open_torch_checkpoint


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, evidence: Path) -> None:
        self.evidence = evidence

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.evidence,))


@pytest.mark.parametrize("place", ["alone", "beside", "inside"])
def test_code_in_a_checkpoint_never_runs(place: str, tmp_path: Path) -> None:
    evidence = tmp_path / "evidence"
    bomb = Malicious(evidence)
    content = {
        "alone": bomb,
        "beside": {"model_state_dict": {"w": torch.ones(2)}, "optimizer_state_dict": bomb},
        "inside": {"w": torch.ones(2), "v": bomb},
    }[place]
    path = tmp_path / "model.pth"
    torch.save(content, path)
    torch.load(path, weights_only=False)  # the control: it is a bomb
    assert evidence.exists()
    evidence.unlink()
    with pytest.raises(ValueError, match="cannot be read as weights only .*: save the state dict alone") as refusal:
        open_torch_checkpoint(path)
    assert not evidence.exists()
    assert "\n" not in str(refusal.value)


def test_dtypes(tmp_path: Path) -> None:
    tensors = {
        "f32": torch.randn(3, 2),
        "bf16": torch.randn(4).bfloat16(),
        "f16": torch.randn(4).half(),
        "mask": torch.ones(2, 2).bool(),
        "transposed": torch.randn(3, 2).T,
        "parameter": torch.nn.Parameter(torch.randn(2)),
    }
    torch.save(tensors, tmp_path / "m.pt")
    opened, model_args, others = open_torch_checkpoint(tmp_path / "m.pt")
    assert (model_args, others) == ({}, {})
    assert opened.shapes["transposed"] == (2, 3)
    for name, tensor in tensors.items():
        expected = tensor.detach().float() if name == "bf16" else tensor.detach()
        assert np.array_equal(opened[name], expected.numpy())
        assert opened[name].dtype == opened.dtypes[name] == expected.numpy().dtype
        with pytest.raises(ValueError, match="read-only"):
            opened[name][...] = 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(2)], "holds a list, not a state dict"),
        (torch.ones(2), "holds a Tensor, not a state dict"),
        ({"w": torch.ones(2), "step": 3}, "holds step, which are not plain tensors"),
        ({"model": {"w": torch.ones(2).to_sparse()}}, "holds w, which are not plain tensors"),
    ],
)
def test_what_is_no_state_dict_is_refused(content: object, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(ValueError, match=message):
        open_torch_checkpoint(tmp_path / "m.pt")


def test_every_flipped_bit_of_the_values_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save({"w": torch.randn(500)}, path)
    good = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        entry = next(info for info in archive.infolist() if info.filename.endswith("data/0"))
    start = good.index(torch.load(path)["w"].numpy().tobytes())
    assert entry.file_size == 2000
    for position in range(start, start + 2000, 97):
        path.write_bytes(good[:position] + bytes([good[position] ^ 4]) + good[position + 1 :])
        with pytest.raises(ValueError, match="is corrupt in .*data/0 "):
            open_torch_checkpoint(path)


@pytest.mark.parametrize("content", [b"", b"<html></html>", b"PK\x03\x04 and nothing"])
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_bytes(content)
    with pytest.raises(ValueError, match="not a file of torch.save, or is truncated"):
        open_torch_checkpoint(tmp_path / "m.pt")


def test_the_old_format_of_torch_is_refused_with_advice(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "m.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match="torch before 1.6 must be saved again"):
        open_torch_checkpoint(tmp_path / "m.pt")
