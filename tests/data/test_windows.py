"""Proves that text becomes windows without loss: files are read as they are or refused, each token is a label once,
and documents of one window see each other only where they shall.
"""

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from torch.utils.data import DataLoader, RandomSampler
from transformers import AutoModelForCausalLM

from hf_gpt_scratch import GPTScratchConfig
from hf_gpt_scratch.data.document_sources import silent
from hf_gpt_scratch.data.documents import read_text
from hf_gpt_scratch.data.pieces import PIECE_CHARS
from hf_gpt_scratch.data.tokenizer import encode_to_numpy, load_encoding
from hf_gpt_scratch.data.vocabulary import END_OF_TEXT_ID
from hf_gpt_scratch.data.windows import (
    IGNORE_INDEX,
    PADDING_WINDOW,
    StepSampler,
    TokenWindows,
    build_loader,
    draw_like_torch_loader,
    encode_text,
    epoch_order_seed,
    find_text_files,
    positions_in_documents,
    read_blocks,
    split_blocks,
)
from hf_gpt_scratch.evaluation import sum_losses
from tests.texts import split_text


def read_texts(paths: list[Path], text_column: str = "text", say: Callable[[str], None] = silent) -> str:
    return "".join(read_blocks(paths, text_column, say)[1])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b" \n\t ", "holds nothing but white space"),
        ("\u3000".encode(), "holds nothing but white space"),
        (b"PK\x03\x04\x00\x00", "binary"),
        (b"caf\xe9 au lait", "not UTF-8 at byte 3"),
        ("text".encode("utf-16"), "binary"),
    ],
)
def test_unusable_file_is_refused_in_one_line(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=reason) as caught:
        read_text(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_byte_order_mark_and_windows_line_ends_are_not_text(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\n")
    assert read_text(path) == "one\ntwo\n"


def test_folders_are_searched_in_order_and_files_are_kept_apart(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "2.txt").write_text("two")
    (tmp_path / "a.md").write_text("one")
    (tmp_path / "picture.png").write_bytes(b"\0")
    assert [file.name for file in find_text_files([tmp_path])] == ["a.md", "2.txt"]
    assert read_texts([tmp_path]) == "one<|endoftext|>two"
    assert END_OF_TEXT_ID in encode_text(read_texts([tmp_path]), load_encoding()).tolist()


def test_missing_file_and_empty_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.txt does not exist"):
        read_texts([tmp_path / "nothing.txt"])
    (tmp_path / "picture.png").write_bytes(b"\0")
    with pytest.raises(ValueError, match=r"holds no file that ends with one of \.txt.* \(it holds 1 \.png\)"):
        read_texts([tmp_path])


def test_rows_are_read_by_their_text_field(tmp_path: Path) -> None:
    """As prepare_data reads them: JSON is no text to learn, and an empty document is none."""
    rows = [{"id": 1, "text": "one"}, {"text": " \n"}, {"text": "two"}]
    lines = "\n".join(map(json.dumps, rows))
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "b.NDJSON.GZ").write_bytes(gzip.compress(lines.encode()))
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist([{"text": "three"}, {"text": "four"}]), tmp_path / "c.parquet"
    )
    (tmp_path / "d.txt").write_text("five")
    expected = "<|endoftext|>".join(["one", "two", "one", "two", "three", "four", "five"])
    assert read_texts([tmp_path]) == "".join(read_blocks([tmp_path])[1]) == expected
    (tmp_path / "e.jsonl").write_text(json.dumps({"body": "six"}))
    assert read_texts([tmp_path / "e.jsonl"], "body") == "six"
    with pytest.raises(ValueError, match=r"e\.jsonl line 1 has no text 'text' \(it has: body\); --text_column names"):
        read_texts([tmp_path / "e.jsonl"])
    (tmp_path / "f.jsonl").write_text('{"text": ""}')
    with pytest.raises(ValueError, match=r"f\.jsonl holds nothing but white space"):
        read_blocks([tmp_path / "f.jsonl"])


@pytest.mark.parametrize("name", ["table.csv", "page.html", "rows.json", "poem.rst"])
def test_named_file_of_another_kind_is_read_with_a_warning(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("a,b\n1,2\n")
    said = []
    assert read_texts([tmp_path / name], say=said.append) == "a,b\n1,2\n"
    (line,) = said
    assert line.startswith(f"warning: {tmp_path / name} is read as plain text as it stands")
    (tmp_path / "book").write_text("x")
    assert read_texts([tmp_path / "book"], say=said.append) == "x"
    assert len(said) == 1


def test_tokens_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.ds").write_bytes(b"ab")
    with pytest.raises(ValueError, match=r"a\.ds is of no known kind"):
        read_texts([tmp_path / "a.ds"])


@pytest.mark.parametrize("num_threads", [1, 3])
def test_long_text_has_the_same_tokens_in_blocks_and_in_pieces(num_threads: int) -> None:
    """Also where a block ends within `<|endoftext|>`."""
    words = ["The lamp\n\n", "<|endoftext|>", " ", "   ", "été", "灯", "x" * 50, "don't 12345"]
    text = "".join(random.Random(1).choices(words, k=400_000))
    assert len(text) > 3 * PIECE_CHARS
    expected = encode_to_numpy(text, load_encoding(), special=True)
    blocks = [text[start : start + 77_777] for start in range(0, len(text), 77_777)]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(num_threads)
        for given in (text, blocks):
            assert np.array_equal(encode_text(given, load_encoding()).numpy(), expected)
    finally:
        torch.set_num_threads(before)


def test_files_are_split_in_blocks_as_their_text(tmp_path: Path) -> None:
    for name, length in (("a.txt", 1_300_000), ("b.txt", 900_001)):
        (tmp_path / name).write_text("".join(random.Random(length).choices("ab é灯\n", k=length)), encoding="utf-8")
    text = read_texts([tmp_path])
    for fraction in (0.9, 0.5, 1.0):
        parts = split_blocks(find_text_files([tmp_path]), "text", fraction)
        assert tuple(map("".join, parts)) == split_text(text, fraction)


def test_the_verdict_splits_as_the_tutorial_prints(shared_data: Path) -> None:
    text = read_text(shared_data / "the-verdict.txt")
    assert len(text) == 20479
    assert text[:99].startswith("I HAD always thought Jack Gisburn rather a cheap genius--though a good fellow enough")
    assert text[-99:].endswith("and happen once--but there's no exterminating our kind of art.\"")
    token_ids = [encode_text(part, load_encoding()) for part in split_text(text, 0.9)]
    assert [len(ids) for ids in token_ids] == [4612, 534]
    windows = [TokenWindows(ids, 256, drop_last=True) for ids in token_ids]
    assert [len(w) for w in windows] == [18, 2]
    assert [w.num_targets for w in windows] == [4608, 512]
    loader = build_loader(windows[0], batch_size=2, drop_last=True)
    assert [tuple(batch["input_ids"].shape) for batch in loader] == [(2, 256)] * 9


@pytest.mark.parametrize("num_tokens", [2, 3, 8, 9, 10, 16, 17, 18, 100])
def test_each_token_but_the_first_is_a_label_exactly_once(num_tokens: int) -> None:
    token_ids = torch.arange(num_tokens) + 1000
    windows = TokenWindows(token_ids, block_size=8)
    labels = torch.cat([window["shift_labels"] for window in (windows[i] for i in range(len(windows)))])
    assert sorted(labels[labels != IGNORE_INDEX].tolist()) == token_ids[1:].tolist()
    assert windows.num_targets == num_tokens - 1
    for window in (windows[i] for i in range(len(windows))):
        counted = window["shift_labels"] != IGNORE_INDEX
        assert torch.equal(window["shift_labels"][counted], window["input_ids"][counted] + 1)


def test_drop_last_keeps_full_windows_only() -> None:
    assert len(TokenWindows(torch.arange(20), 8, drop_last=True)) == 2
    with pytest.raises(ValueError, match="the text has 8 tokens, but one window needs 9"):
        TokenWindows(torch.arange(8), 8, drop_last=True)


@pytest.mark.parametrize("token_ids", [torch.arange(20)[None], torch.arange(20.0), torch.tensor(3)], ids=str)
def test_what_is_no_row_of_ids_is_refused(token_ids: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"token_ids has shape \[.*\] and dtype .*, not \[N\] of an integer dtype"):
        TokenWindows(token_ids, 8)


def test_padding_window_has_no_label() -> None:
    window = TokenWindows(torch.arange(20), 8)[PADDING_WINDOW]
    assert window["input_ids"].shape == (8,)
    assert (window["shift_labels"] == IGNORE_INDEX).all()


def test_sampler_gives_every_window_once_and_fills_the_last_step() -> None:
    sampler = StepSampler(num_windows=10, batch_size=4)
    sampler.order_seed = 7
    steps = list(sampler)
    assert [len(step) for step in steps] == [4, 4, 4]
    assert sorted(sum(steps, [])) == [PADDING_WINDOW, PADDING_WINDOW, *range(10)]
    assert len(list(StepSampler(10, 4, drop_last=True))) == len(StepSampler(10, 4, drop_last=True)) == 2


@pytest.mark.parametrize("num_windows", [3, 10, 1001])
@pytest.mark.parametrize("num_sampled", [1, 2, 3])
def test_sample_is_spread_over_all_windows(num_windows: int, num_sampled: int) -> None:
    """One of each of equal parts, its middle one; all windows in order where each is asked for."""
    sampler = StepSampler(num_windows, batch_size=2)
    sampler.num_sampled = num_sampled
    taken = [index for step in sampler for index in step if index != PADDING_WINDOW]
    assert len(list(sampler)) == len(sampler) == -(-num_sampled // 2)
    assert taken == [int((part + 0.5) * num_windows / num_sampled) for part in range(num_sampled)]
    sampler.num_sampled = num_windows
    assert [index for step in sampler for index in step if index != PADDING_WINDOW] == list(range(num_windows))


def test_order_is_a_function_of_the_seed_and_can_start_in_the_middle() -> None:
    sampler = StepSampler(num_windows=100, batch_size=8)
    sampler.order_seed = epoch_order_seed(seed=1, epoch=3)
    steps = list(sampler)
    assert list(sampler) == steps
    sampler.first_step = 5
    assert list(sampler) == steps[5:]
    sampler.first_step, sampler.order_seed = 0, epoch_order_seed(seed=1, epoch=4)
    assert list(sampler) != steps
    assert epoch_order_seed(1, 3) != epoch_order_seed(2, 3)


def test_loader_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    for _ in build_loader(TokenWindows(torch.arange(100), 8), 4):
        pass
    assert torch.equal(torch.rand(3), expected)


def test_drawn_order_and_generator_equal_those_of_a_plain_torch_loader() -> None:
    """Two draws for a shuffled iterator, one for a plain one: so published runs can be repeated."""
    plain = DataLoader(range(18), batch_size=2, sampler=RandomSampler(range(18)))
    torch.manual_seed(123)
    expected = [batch.tolist() for batch in plain]
    list(DataLoader(range(3)))
    after = torch.rand(1)

    sampler = StepSampler(18, 2, drop_last=True)
    torch.manual_seed(123)
    sampler.order_seed = draw_like_torch_loader(shuffle=True)
    assert draw_like_torch_loader(shuffle=False) is None
    assert list(sampler) == expected
    assert torch.equal(torch.rand(1), after)
    # As the tutorial's loader yields them after seed 123.
    assert sum(expected, []) == [0, 7, 14, 5, 6, 1, 17, 2, 11, 12, 9, 16, 13, 10, 3, 8, 15, 4]


def test_positions_start_again_where_a_document_does() -> None:
    end = END_OF_TEXT_ID
    assert positions_in_documents(torch.tensor([5, 6, end, 7, 8, 9, end, end, 3]), end).tolist() == [
        0,
        1,
        0,
        1,
        2,
        3,
        0,
        0,
        1,
    ]
    assert positions_in_documents(torch.tensor([end, 7, 8]), end).tolist() == [0, 1, 2]
    window = TokenWindows(torch.tensor([5, end, 7, 8, 9]), 4, separator=end)[0]
    assert window["position_ids"].tolist() == [0, 0, 1, 2]
    assert "position_ids" not in TokenWindows(torch.arange(9), 4)[0]


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
def test_separate_documents_have_the_losses_that_each_has_alone(attn_implementation: str) -> None:
    """Sum of nats over windows of packed documents = sum over each document by itself, to 1e-6; not so without it."""
    config = GPTScratchConfig(
        max_position_embeddings=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, dropout=0.0
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attn_implementation).eval()
    end = torch.tensor([END_OF_TEXT_ID])
    documents = [torch.randint(0, 50256, (length,)) for length in (20, 1, 7, 15, 16)]
    packed = torch.cat([end, *(part for document in documents for part in (document, end))])
    assert len(packed) == 65  # one window of 64

    def nats(token_ids: torch.Tensor, separator: int | None) -> float:
        windows = TokenWindows(token_ids, 64, separator=separator)
        total = sum_losses(model, build_loader(windows, batch_size=2))
        assert total.num_tokens == len(token_ids) - 1
        return total.nats

    alone = sum(nats(torch.cat([end, document, end]), None) for document in documents)
    assert nats(packed, END_OF_TEXT_ID) == pytest.approx(alone, rel=1e-6)
    assert nats(packed, None) != pytest.approx(alone, rel=1e-4)


def test_blocks_are_the_text_of_the_same_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\n" + b"word \xc3\xa4\r\n" * 300_000)
    (tmp_path / "b.md").write_text("two", encoding="utf-8")
    num_bytes, blocks = read_blocks([tmp_path])
    listed = list(blocks)
    assert "".join(listed) == (text := read_texts([tmp_path]))
    assert max(map(len, listed)) <= 1 << 20
    assert num_bytes == len(text.encode())


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "is empty"),
        (b" \n", "holds nothing but white space"),
        (b"word " * 300_000 + b"\0", "is a binary file"),
        (b"word " * 300_000 + b"\xff", "not UTF-8"),
    ],
)
def test_blocks_of_a_useless_file_are_refused_before_the_first(tmp_path: Path, content: bytes, line: str) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=line):
        read_blocks([tmp_path])
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_blocks([tmp_path / "nothing.txt"])
