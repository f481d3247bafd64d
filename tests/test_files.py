"""Proves that hashes are those of hashlib for files of any size, and that files and folders can be flushed."""

import hashlib
from pathlib import Path

import pytest

from hf_gpt_scratch.files import flush, sha256_of


@pytest.mark.parametrize("size", [0, 1, 1_000_003])
def test_hash_is_that_of_the_content(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * (size // 256) + b"x" * (size % 256))
    assert sha256_of(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_files_and_folders_can_be_flushed_and_missing_ones_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    flush(tmp_path / "file")
    flush(tmp_path)
    with pytest.raises(FileNotFoundError, match="nothing"):
        flush(tmp_path / "nothing")
