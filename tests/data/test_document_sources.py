"""Proves that files and folders become sources in a fixed order, known by their hash; what is none is named."""

import hashlib
import os
from pathlib import Path

import pytest

from hf_gpt_scratch.data.document_sources import (
    Source,
    dataset_source,
    file_sources,
    find_files,
    hashes_of_equal_size,
    refuse_unused_column,
    warn_of_copies,
    warn_of_shared,
)
from hf_gpt_scratch.data.documents import DatasetName, SkippedRows
from hf_gpt_scratch.data.windows import find_text_files


def test_folders_are_searched_in_order_for_known_kinds(tmp_path: Path) -> None:
    for name in ("b/2.jsonl", "b/1.parquet", "a.md", "c.ds", "c.ds.index", "picture.png", "z.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    files = find_files([tmp_path / "z.txt", tmp_path])
    names = [file.relative_to(tmp_path).as_posix() for file in files]
    assert names == ["z.txt", "a.md", "b/1.parquet", "b/2.jsonl", "c.ds"]
    noted = []
    sources = file_sources([tmp_path / "b"], "validation", 2, noted.append)
    assert [source.kind for source in sources] == ["parquet", "JSON lines"]
    assert {source.split for source in sources} == {"validation"}
    hashes = [hashlib.sha256(content).hexdigest() for content in (b"b/1.parquet", b"b/2.jsonl")]
    assert [source.sha256 for source in sources] == hashes
    assert sorted(noted) == [9, 11]


MIXED = {
    "a.jsonl": '{"text": "one"}', "b.JSONL": '{"text": "two"}', "c.TXT": "three", "d.json": "{}", "e.text": "four",
    "f.jsonl.gz": "", "g.parquet.gz": "", "h.ds": "", "h.ds.index": "", "README": "",
    "._c.txt": "of macOS", ".venv/lib/x.txt": "", ".git/y.md": "",
    "sub/.ipynb_checkpoints/i-checkpoint.md": "", "sub/i.md": "five", "sub/j.json": "{}",
}  # fmt: skip


def test_nothing_is_left_out_in_silence_and_nothing_hidden_is_looked_at(tmp_path: Path) -> None:
    for name, content in MIXED.items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(content)
    (tmp_path / "link").symlink_to(tmp_path / "sub", target_is_directory=True)
    said = []
    names = [file.relative_to(tmp_path).as_posix() for file in find_files([tmp_path], say=said.append)]
    assert names == ["a.jsonl", "b.JSONL", "c.TXT", "e.text", "f.jsonl.gz", "h.ds", "sub/i.md"]
    others = "2 .json, 1 .parquet.gz, 1 linked folder, 1 without an ending"
    assert said == [f"{tmp_path}: 7 files taken; passed over: {others}"]
    said.clear()
    assert len(find_text_files([tmp_path], said.append)) == 6
    assert said == [f"{tmp_path}: 6 files taken; passed over: 1 .ds, {others}"]
    hidden = tmp_path / ".venv"  # unless it is named itself
    assert find_files([hidden]) == [hidden / "lib" / "x.txt"]


def test_file_that_is_named_again_is_taken_once(tmp_path: Path) -> None:
    """By its path, by the folder around it and by a link; the first name stays."""
    (tmp_path / "docs.txt").write_text("one")
    (tmp_path / "other.txt").write_text("two")
    (tmp_path / "link.txt").symlink_to("docs.txt")
    said = []
    docs, other = tmp_path / "docs.txt", tmp_path / "other.txt"
    assert find_files([docs, other, docs, tmp_path], say=said.append) == [docs, other]
    assert said[1:] == [
        f"warning: {docs} is named 4 times: taken once",
        f"warning: {other} is named 2 times: taken once",
    ]


def test_file_for_training_and_validation_is_named(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt", "c.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "link.txt").symlink_to("a.txt")
    said = []
    a, b, c, link, copy = (tmp_path / f"{name}.txt" for name in ("a", "b", "c", "link", "copy"))
    copy.write_text("a.txt")
    for file in (link, copy):
        warn_of_shared(hashes_of_equal_size([a, b], [file, c]), [file, c], said.append)
        assert said.pop().startswith(f"warning: {file}: trained on too")
    warn_of_shared(hashes_of_equal_size([a], [c]), [c], said.append)
    assert said == []


def test_copies_are_named(tmp_path: Path) -> None:
    for name, text in (("a.txt", "one"), ("b.txt", "two"), ("c.txt", "one"), ("d.txt", "another")):
        (tmp_path / name).write_text(text)
    said = []
    warn_of_copies(sorted(tmp_path.iterdir()), said.append)
    a, c = tmp_path / "a.txt", tmp_path / "c.txt"
    assert said == [f"warning: {c} has the same content as {a}: the text is taken twice"]


def test_column_is_refused_where_no_file_has_columns(tmp_path: Path) -> None:
    refuse_unused_column([tmp_path / "a.txt"], "text")
    refuse_unused_column([tmp_path / "a.txt", tmp_path / "b.JSONL.gz"], "story")
    with pytest.raises(ValueError, match="--text_column story would do nothing without JSON lines or parquet"):
        refuse_unused_column([tmp_path / "a.txt", tmp_path / "b.ds"], "story")


def test_what_is_no_file_or_cannot_be_listed_is_refused_by_its_name(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    for path in (tmp_path, tmp_path / "pipe.txt"):
        with pytest.raises(ValueError, match=r"pipe\.txt is a pipe or a device"):
            find_files([path])
    (tmp_path / "pipe.txt").unlink()
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nothing")
    for path in (tmp_path, tmp_path / "gone.txt"):
        with pytest.raises(FileNotFoundError, match=r"gone\.txt is a link to nothing"):
            find_files([path])


@pytest.mark.skipif(not hasattr(os, "seteuid") or os.geteuid() != 0, reason="only root can become another user")
def test_folder_of_another_user_is_named(tmp_path: Path) -> None:
    (tmp_path / "texts" / "locked").mkdir(parents=True)
    (tmp_path / "texts" / "a.txt").write_text("one")
    (tmp_path / "texts" / "locked").chmod(0o700)
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(0o755)
    os.seteuid(65534)
    try:
        with pytest.raises(PermissionError, match="locked"):
            find_files([tmp_path / "texts"])
    finally:
        os.seteuid(0)


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
