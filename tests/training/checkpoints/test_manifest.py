"""Proves that a manifest vouches for every bit of a folder, its own included, and never for a file elsewhere."""

import json
import random
from pathlib import Path

import pytest

from hf_gpt_scratch.training.checkpoints.manifest import (
    MANIFEST,
    digest,
    find_corruption,
    read_manifest,
    unexpected_files,
    write_manifest,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint"
    path.mkdir()
    (path / "a.json").write_text("{}")
    (path / "b.bin").write_bytes(bytes(range(100)))
    write_manifest(path, {"global_step": 3, "settings": {"learning_rate": 4e-4}})
    return path


def test_manifest_says_what_was_written(folder: Path) -> None:
    content = read_manifest(folder)
    assert content["global_step"] == 3
    assert content["settings"] == {"learning_rate": 4e-4}
    assert set(content["files"]) == {"a.json", "b.bin"}
    assert find_corruption(folder) is None
    assert unexpected_files(folder) == []


def test_no_flipped_bit_of_the_manifest_goes_unseen(folder: Path) -> None:
    """But for one that changes nothing of what it says, such as a space that becomes a line break."""
    intact, said = (folder / MANIFEST).read_bytes(), read_manifest(folder)
    draw = random.Random(5)
    harmless = 0
    for _ in range(300):
        content = bytearray(intact)
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        (folder / MANIFEST).write_bytes(content)
        if find_corruption(folder) is None:
            assert read_manifest(folder) == said
            harmless += 1
    assert harmless < 30


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"null", b"\xff", b'{"a.json": 1}', b"[" * 100_000])
def test_damaged_manifest_never_counts(folder: Path, content: bytes | None) -> None:
    (folder / MANIFEST).unlink()
    if content is not None:
        (folder / MANIFEST).write_bytes(content)
    assert find_corruption(folder) == f"{MANIFEST} is {'missing' if content is None else 'truncated or corrupt'}"


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "..", ".", "", "a/b", "..\\secret", "C:\\secret"])
def test_name_outside_the_folder_is_refused(folder: Path, name: str) -> None:
    (folder.parent / "secret").write_text("x")
    content = {"files": {name: "0" * 64}}
    (folder / MANIFEST).write_text(json.dumps({**content, "sha256": digest(content)}))
    assert find_corruption(folder) == f"{MANIFEST} names {name!r}, which is not a file of this folder"


def test_file_that_became_a_folder_is_damage(folder: Path) -> None:
    (folder / "b.bin").unlink()
    (folder / "b.bin").mkdir()
    assert "b.bin" in find_corruption(folder)


def test_unknown_files_are_listed(folder: Path) -> None:
    (folder / "z").write_text("")
    assert find_corruption(folder) is None
    assert unexpected_files(folder) == ["z"]
