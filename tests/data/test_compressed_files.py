"""Proves that packed files are read as what is in them, and that none that is cut off or damaged passes for whole."""

import gzip
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_gpt_scratch.data.compressed_files import open_unpacked
from hf_gpt_scratch.data.documents import SkippedRows, read_json_lines, read_text_file


CONTENT = "".join(f"{number}: über die Lampe\r\n" for number in range(20_000)).encode()


def pack_zst(content: bytes) -> bytes:
    zstandard = pytest.importorskip("zstandard", reason="zstandard is not installed")
    return zstandard.ZstdCompressor(write_checksum=True).compress(content)


PACKERS: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".zst": pack_zst}


@pytest.mark.parametrize("ending", PACKERS)
def test_content_is_that_of_the_plain_file(tmp_path: Path, ending: str) -> None:
    """Also where a file was appended to another one, as both programs allow."""
    path = tmp_path / f"a.txt{ending.upper()}"
    path.write_bytes(PACKERS[ending](CONTENT[:1000]) + PACKERS[ending](CONTENT[1000:]))
    with open_unpacked(path) as (content, file):
        assert content.read() == CONTENT
        assert file.tell() == path.stat().st_size
    pieces = list(read_text_file(path))
    assert "".join(piece.content for piece in pieces) == CONTENT.decode().replace("\r\n", "\n")
    assert sum(piece.num_bytes for piece in pieces) == path.stat().st_size


@pytest.mark.parametrize("ending", PACKERS)
def test_rows_are_read_and_their_shares_are_of_the_packed_bytes(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(PACKERS[ending](b'{"text": "one"}\n\n{"text": "two"}\n' * 5_000))
    pieces = list(read_json_lines(path, "text", SkippedRows(stops=True)))
    assert [piece.content for piece in pieces] == ["one", "two"] * 5_000
    assert 0.9 * path.stat().st_size <= sum(piece.num_bytes for piece in pieces) <= path.stat().st_size


@pytest.mark.parametrize("ending", PACKERS)
def test_file_that_was_cut_off_is_refused(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.txt{ending}"
    packed = PACKERS[ending](CONTENT)
    for length in (1, 5, 20, len(packed) // 2, len(packed) - 1):
        path.write_bytes(packed[:length])
        with pytest.raises(ValueError, match=rf"a\.txt\{ending} is truncated or corrupt .*: fetch it again") as caught:
            list(read_text_file(path))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", PACKERS)
def test_flipped_bits_are_refused(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.txt{ending}"
    packed, generator = PACKERS[ending](CONTENT), random.Random(0)
    for _ in range(40):
        damaged = bytearray(packed)
        damaged[generator.randrange(20, len(packed))] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a\.txt"):
            list(read_text_file(path))


def test_missing_zstandard_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "zstandard", None)  # as where it is not installed
    (tmp_path / "a.txt.zst").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"a\.txt\.zst needs zstandard: pip install zstandard"):
        list(read_text_file(tmp_path / "a.txt.zst"))
