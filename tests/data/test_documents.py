"""Proves that each kind of source yields its documents, all of them and nothing else, and names what is wrong."""

import contextlib
import json
import os
import random
import shutil
from collections.abc import Iterable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from hf_gpt_scratch.data import documents
from hf_gpt_scratch.data.documents import (
    DatasetName,
    SkippedRows,
    read_dataset,
    read_json_lines,
    read_parquet,
    read_text,
    read_text_file,
)
from hf_gpt_scratch.data.pieces import Piece


TEXTS = ["The lamp.", "", "Zwei Zeilen\nüber Öl", "日本語 " * 50, "a\r\nb"]


def joined(pieces: Iterable[Piece]) -> list[str]:
    """The documents whole again."""
    texts, parts = [], []
    for piece in pieces:
        parts.append(piece.content)
        if piece.ends_document:
            texts.append("".join(parts))
            parts = []
    assert not parts
    return texts


def refusing() -> SkippedRows:
    return SkippedRows(stops=True)


def write_parquet(path: Path, texts: list, column: str = "text") -> Path:
    pyarrow.parquet.write_table(pyarrow.table({"id": list(range(len(texts))), column: texts}), path, row_group_size=2)
    return path


def write_json_lines(path: Path, texts: list[str]) -> Path:
    path.write_text("\n\n".join(json.dumps({"id": 1, "text": text}) for text in texts), encoding="utf-8")
    return path


def test_rows_of_all_kinds_are_the_same_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "PARQUET_ROWS", 2)
    assert joined(read_json_lines(write_json_lines(tmp_path / "a.jsonl", TEXTS), "text", refusing())) == TEXTS
    assert joined(read_parquet(write_parquet(tmp_path / "a.parquet", TEXTS), "text", refusing())) == TEXTS


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_dataset_is_streamed_from_a_local_folder(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    folder = tmp_path / "set"
    folder.mkdir()
    write = write_parquet if kind == "parquet" else write_json_lines
    write(folder / f"train-0.{kind}", TEXTS[:3])
    write(folder / f"train-1.{kind}", TEXTS[3:])
    write(folder / f"test-0.{kind}", ["other"])
    assert joined(read_dataset(DatasetName(str(folder)), "text", refusing())) == TEXTS
    assert joined(read_dataset(DatasetName(str(folder), split="test"), "text", refusing())) == ["other"]
    with pytest.raises(ValueError, match="has no column 'body': name one of id, text with --text_column"):
        joined(read_dataset(DatasetName(str(folder)), "body", refusing()))
    with pytest.raises(ValueError, match="nope"):
        joined(read_dataset(DatasetName(str(folder), split="nope"), "text", refusing()))


@pytest.mark.parametrize("block_bytes", [1, 2, 3, 7, 1 << 20])
def test_text_file_is_read_in_blocks_as_it_is_read_whole(
    tmp_path: Path, block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "BLOCK_BYTES", block_bytes)
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf" + "one\r\ntwo\r\rthree\r\n\r\n日本語 über\r".encode())
    expected = "one\ntwo\r\rthree\n\n日本語 über\r"
    pieces = list(read_text_file(path))
    assert joined(pieces) == [read_text(path)] == [expected]
    assert sum(piece.num_bytes for piece in pieces) == len(expected.encode())


@pytest.mark.parametrize("block_bytes", [1, 3, 1 << 20])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
def test_bad_byte_is_named_wherever_it_stands(
    tmp_path: Path, block_bytes: int, start: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "BLOCK_BYTES", block_bytes)
    path = tmp_path / "a.txt"
    path.write_bytes(start + "über".encode() + b"\xe9 x")
    with pytest.raises(ValueError, match=f"is not UTF-8 at byte {len(start) + 5}: convert it"):
        list(read_text_file(path))
    path.write_bytes(b"text\0")
    with pytest.raises(ValueError, match="is a binary file"):
        list(read_text_file(path))


BAD_LINES = {
    b"{'text': 1}": "is not JSON",
    b'{"text": "cut': "is not JSON",
    b"[" * 100_000: "is not JSON",
    b'{"text": "caf\xe9"}': "is not UTF-8",
    b'{"body": "x", "id": 3}': r"has no text 'text' \(it has: body, id\); --text_column names another",
    b'{"text": null}': "has null as 'text', and no text",
    b'{"text": 5}': "has a number as 'text', and no text",
    b'{"text": ["a"]}': "has a list as 'text', and no text",
    b'["text"]': "is not an object with 'text', but a list",
    b'{"text": "half \\ud83d a pair"}': "holds half a surrogate pair",
}


@pytest.mark.parametrize("line", BAD_LINES, ids=lambda line: line[:20].decode("latin-1"))
def test_bad_line_stops_or_is_counted_and_the_first_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "one"}\n' + line + b'\n{"text": "two"}\n' + line)
    with pytest.raises(ValueError, match=f"a.jsonl line 2 {BAD_LINES[line]}.*; repair it, or .*--bad_rows skip"):
        list(read_json_lines(path, "text", refusing()))
    skipped = SkippedRows(stops=False)
    assert joined(read_json_lines(path, "text", skipped)) == ["one", "two"]
    assert skipped.count == 2
    assert "a.jsonl line 2" in skipped.first


def test_bad_parquet_files_are_named(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", ["one", None, "two"])
    with pytest.raises(ValueError, match="a.parquet row 2 has null as 'text'"):
        list(read_parquet(path, "text", refusing()))
    assert joined(read_parquet(path, "text", skipped := SkippedRows(stops=False))) == ["one", "two"]
    assert skipped.count == 1
    with pytest.raises(ValueError, match="has no column 'body': name one of id, text with --text_column"):
        list(read_parquet(path, "body", refusing()))
    with pytest.raises(ValueError, match="row 1 has a number as 'id'"):
        list(read_parquet(path, "id", refusing()))
    content = path.read_bytes()
    for damaged in (content[:-20], b"PAR1", b"", content[:4] + bytes(40) + content[44:]):
        path.write_bytes(damaged)
        with pytest.raises((ValueError, OSError), match="a.parquet") as caught:
            list(read_parquet(path, "text", refusing()))
        assert "\n" not in str(caught.value)


def test_no_damaged_row_group_ends_in_a_traceback(tmp_path: Path) -> None:
    """Bytes flipped at random: read or refused as a ValueError or OSError. Parquet's pages have no checksums."""
    path = write_parquet(tmp_path / "a.parquet", TEXTS * 20)
    content = path.read_bytes()
    generator = random.Random(0)
    for _ in range(60):
        damaged = bytearray(content)
        damaged[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        with contextlib.suppress(ValueError, OSError):
            joined(read_parquet(path, "text", SkippedRows(stops=False)))


@pytest.mark.skipif(not hasattr(os, "seteuid") or os.geteuid() != 0, reason="only root can become another user")
def test_file_of_another_user_is_named(tmp_path: Path) -> None:
    path = write_json_lines(tmp_path / "a.jsonl", TEXTS)
    path.chmod(0o600)
    os.seteuid(65534)
    try:
        with pytest.raises(PermissionError, match="a.jsonl"):
            list(read_json_lines(path, "text", refusing()))
    finally:
        os.seteuid(0)
    shutil.rmtree(tmp_path)
