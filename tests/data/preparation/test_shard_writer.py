"""Proves that tokens go into shards one after the other, and that a writer goes on where the last shard ended."""

from pathlib import Path

import numpy as np
import pytest

from hf_gpt_scratch.data.preparation.shard_writer import ShardWriter
from hf_gpt_scratch.data.token_shards import Shard
from hf_gpt_scratch.data.vocabulary import END_OF_TEXT_ID


PIECES = [np.arange(start, start + length, dtype=np.uint32) for start, length in [(0, 3), (10, 1), (20, 25), (50, 6)]]
ROW = [token for piece in PIECES for token in [*piece, END_OF_TEXT_ID]]


def fill(writer: ShardWriter) -> None:
    for number, piece in enumerate(PIECES):
        if writer.wants(number):
            list(writer.add(number, piece, ends_document=True))
    if writer.filled:
        writer.write((len(PIECES), 0))


@pytest.mark.parametrize("shard_tokens", [1, 4, 7, 10, 39, 100])
def test_shards_hold_the_tokens_in_order_and_count_documents_where_they_end(tmp_path: Path, shard_tokens: int) -> None:
    fill(writer := ShardWriter(tmp_path, "train", shard_tokens))
    shards = [Shard(tmp_path / entry["file"]) for entry in writer.shards]
    rows = [shard.read(0, len(shard)).tolist() for shard in shards]
    assert sum(rows, []) == ROW
    assert [len(row) for row in rows[:-1]] == [shard_tokens] * (len(rows) - 1)
    assert [shard.num_documents for shard in shards] == [row.count(END_OF_TEXT_ID) for row in rows]
    summary = writer.summary()
    assert (summary["num_tokens"], summary["num_documents"]) == (39, 4)
    assert "position" not in summary["shards"][0]


@pytest.mark.parametrize("shard_tokens", [4, 7, 10])
def test_writer_goes_on_after_any_shard(tmp_path: Path, shard_tokens: int) -> None:
    fill(whole := ShardWriter(tmp_path, "train", shard_tokens))
    for done in range(len(whole.shards) + 1):
        fill(resumed := ShardWriter(tmp_path, "train", shard_tokens, list(whole.shards[:done])))
        assert resumed.shards == whole.shards
