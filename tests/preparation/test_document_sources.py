"""Proves that files and folders become sources in a fixed order, known by their hash; what is none is named."""

import hashlib
from pathlib import Path

import pytest

from hf_gpt_scratch.preparation.document_sources import Source, dataset_source, file_sources, find_files
from hf_gpt_scratch.preparation.documents import DatasetName, SkippedRows


def test_folders_are_searched_in_order_for_known_kinds(tmp_path: Path) -> None:
    for name in ("b/2.jsonl", "b/1.parquet", "a.md", "c.ds", "c.ds.index", "picture.png", "z.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    files = find_files([tmp_path / "z.txt", tmp_path])
    names = [file.relative_to(tmp_path).as_posix() for file in files]
    assert names == ["z.txt", "a.md", "b/1.parquet", "b/2.jsonl", "c.ds", "z.txt"]
    noted = []
    sources = file_sources([tmp_path / "b"], "validation", 2, noted.append)
    assert [source.kind for source in sources] == ["parquet", "JSON lines"]
    assert {source.split for source in sources} == {"validation"}
    hashes = [hashlib.sha256(content).hexdigest() for content in (b"b/1.parquet", b"b/2.jsonl")]
    assert [source.sha256 for source in sources] == hashes
    assert sorted(noted) == [9, 11]


def test_what_is_no_source_is_named(tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(b"\0")
    with pytest.raises(FileNotFoundError, match=r"none\.txt does not exist"):
        find_files([tmp_path / "none.txt"])
    with pytest.raises(ValueError, match=r"picture\.png is of no known kind: its name must end with one of \.txt"):
        find_files([tmp_path / "picture.png"])
    with pytest.raises(ValueError, match="holds no file that ends with one of"):
        find_files([tmp_path])


def test_local_dataset_is_a_source_without_a_hash(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "one"}')
    source = dataset_source(DatasetName(str(tmp_path)))
    assert [piece.content for piece in source.read("text", SkippedRows(stops=True))] == ["one"]
    dataset = {"path": str(tmp_path), "name": None, "split": "train", "revision": None}
    assert source.identity() == {"name": str(tmp_path), "kind": "dataset", "num_bytes": 0, "dataset": dataset}


def test_every_kind_has_its_reader(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    source = Source(str(tmp_path / "a.txt"), "text", None)
    assert [piece.content for piece in source.read("text", SkippedRows(stops=True))] == ["one"]
    source = Source(str(tmp_path / "b.ds"), "datatrove", None)
    with pytest.raises(FileNotFoundError, match=r"b\.ds"):
        list(source.read("text", SkippedRows(stops=True)))
