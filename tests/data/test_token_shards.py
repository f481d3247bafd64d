"""Proves that a shard gives back what was written, through any slice, and that no damaged file is read."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hf_gpt_scratch.data.token_shards import Shard, block_checksums, save_shard, token_dtype


@pytest.fixture(params=[(50257, np.uint16), (100_000, np.uint32)], ids=["uint16", "uint32"])
def written(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, np.ndarray]:
    vocab_size, dtype = request.param
    tokens = np.random.default_rng(0).integers(0, vocab_size, 5000).astype(dtype)
    path = tmp_path / "train-00000.safetensors"
    save_shard(path, tokens, num_documents=7, vocab_size=vocab_size)
    return path, tokens


def test_any_stretch_is_read_back(written: tuple[Path, np.ndarray]) -> None:
    path, tokens = written
    shard = Shard(path)
    assert (len(shard), shard.num_documents) == (5000, 7)
    places = [(0, 5000), (0, 1), (4999, 5000), (2047, 2049), (2048, 2048), (1024, 4096)]
    generator = random.Random(0)
    places += [tuple(sorted(generator.choices(range(5001), k=2))) for _ in range(200)]
    for start, stop in places:
        part = shard.read(start, stop)
        assert part.dtype == tokens.dtype
        assert np.array_equal(part, tokens[start:stop])


def test_any_tool_that_knows_safetensors_reads_it(written: tuple[Path, np.ndarray]) -> None:
    path, tokens = written
    assert np.array_equal(load_file(path)["tokens"], tokens)
    assert sorted(file.name for file in path.parent.iterdir()) == [path.name]


def test_file_is_as_readable_as_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o755)
    save_shard(folder / "a.safetensors", np.zeros(3, np.uint16), 0)
    assert (folder / "a.safetensors").stat().st_mode & 0o777 == 0o644


def test_smallest_type_that_holds_the_vocabulary() -> None:
    assert token_dtype(50257) == token_dtype(65536) == np.uint16
    assert token_dtype(65537) == np.uint32


def read_or_refuse(path: Path) -> tuple[np.ndarray | None, str | None]:
    try:
        shard = Shard(path)
        return shard.read(0, len(shard)), None
    except ValueError as error:
        return None, str(error)


def test_no_flipped_bit_is_read_silently(written: tuple[Path, np.ndarray]) -> None:
    """One bit in each of 400 places, header and tokens and checksums alike: refused, or without any effect."""
    path, tokens = written
    content = path.read_bytes()
    generator = random.Random(1)
    places = [*range(8, 308), *(generator.randrange(len(content)) for _ in range(400))]
    refused = 0
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        values, message = read_or_refuse(path)
        if message is None:
            assert np.array_equal(values, tokens)
        else:
            assert str(path) in message
            assert "\n" not in message
            refused += 1
    assert refused > 600  # what goes unseen is a byte of the count of documents, which the index repeats


@pytest.mark.parametrize("change", [-1, -3000, 1, 4096])
def test_truncated_or_lengthened_file_is_refused(written: tuple[Path, np.ndarray], change: int) -> None:
    path, _ = written
    content = path.read_bytes()
    path.write_bytes(content[:change] if change < 0 else content + bytes(change))
    with pytest.raises(ValueError, match="is truncated or corrupt"):
        Shard(path)


def rewrite(path: Path, tokens: np.ndarray, **changes: str) -> None:
    """The shard made anew with another header or other tokens, with right checksums."""
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    save_file({"tokens": tokens, "checksums": block_checksums(tokens)}, path, header | changes)


@pytest.mark.parametrize(
    ("changes", "dtype", "words"),
    [
        ({"vocab_sha256": "0" * 64}, None, "holds tokens of another vocabulary"),
        ({"version": "2"}, None, "is not a token shard of version 1"),
        ({"format": "pt"}, None, "is not a token shard of version 1"),
        ({}, np.int64, "has the wrong dtype, I64"),
        ({}, np.float32, "has the wrong dtype, F32"),
    ],
)
def test_shard_of_another_kind_is_refused(
    written: tuple[Path, np.ndarray], changes: dict[str, str], dtype: type | None, words: str
) -> None:
    path, tokens = written
    rewrite(path, tokens.astype(dtype or tokens.dtype), **changes)
    with pytest.raises(ValueError, match=words) as caught:
        Shard(path)
    assert str(path) in str(caught.value)


def test_type_that_does_not_fit_the_vocabulary_is_refused(written: tuple[Path, np.ndarray]) -> None:
    path, tokens = written
    rewrite(path, tokens.astype(np.uint16 if tokens.dtype == np.uint32 else np.uint32))
    with pytest.raises(ValueError, match="has the wrong dtype"):
        Shard(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        Shard(tmp_path / "none.safetensors")
