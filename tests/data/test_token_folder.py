"""Proves that shards are one row of tokens, that an epoch takes each of them once, and what a bad folder says."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_gpt_scratch.data.token_folder import INDEX_NAME, UNFINISHED_NAME, ShardedTokens, read_index, verify_folder
from hf_gpt_scratch.data.token_shards import FORMAT, VERSION, save_shard
from hf_gpt_scratch.data.vocabulary import VOCAB_SHA256
from hf_gpt_scratch.data.windows import IGNORE_INDEX, PADDING_WINDOW, TokenWindows, build_loader, epoch_order_seed
from hf_gpt_scratch.runtime.files import file_sha256


Folder = tuple[Path, np.ndarray]


def write_folder(folder: Path, tokens: np.ndarray, shard_tokens: int) -> None:
    """A folder as the preparation leaves it, written without it."""
    shards = []
    for number, start in enumerate(range(0, len(tokens), shard_tokens)):
        part = tokens[start : start + shard_tokens]
        path = folder / f"train-{number:05d}.safetensors"
        save_shard(path, part, num_documents=number)
        facts = {"file": path.name, "num_tokens": len(part), "num_documents": number, "sha256": file_sha256(path)}
        shards.append(facts)
    totals = {name: sum(shard[name] for shard in shards) for name in ("num_tokens", "num_documents")}
    index = {
        "format": FORMAT,
        "version": VERSION,
        "vocabulary": {"size": 50257, "sha256": VOCAB_SHA256},
        "separator": 50256,
        "splits": {"train": {**totals, "shards": shards}},
        "skipped": {"empty_documents": 0, "bad_rows": 0, "first_bad_row": None},
    }
    (folder / INDEX_NAME).write_text(json.dumps(index))


@pytest.fixture
def written(tmp_path: Path) -> Folder:
    tokens = np.random.default_rng(0).permutation(50000)[:10007].astype(np.uint16)
    write_folder(tmp_path, tokens, shard_tokens=3001)
    return tmp_path, tokens


def test_slices_run_over_the_ends_of_shards(written: Folder) -> None:
    folder, tokens = written
    row = ShardedTokens(folder, "train")
    assert len(row) == 10007
    for start, stop in [(0, 10007), (3000, 3002), (3001, 3001), (2999, 9004), (9003, 99999), (6002, 6003)]:
        assert np.array_equal(row[start:stop], tokens[start:stop])


@pytest.mark.parametrize("num_processes", [1, 3])
def test_each_token_is_a_label_once_in_an_epoch_in_an_order_of_its_own(written: Folder, num_processes: int) -> None:
    """The steps of a global batch, dealt out to processes in any number, are the whole corpus and nothing else."""
    folder, tokens = written
    windows = TokenWindows(ShardedTokens(folder, "train"), block_size=16)
    orders = []
    for epoch in (0, 1, 0):
        loader = build_loader(windows, batch_size=6)
        loader.batch_sampler.order_seed = epoch_order_seed(seed=42, epoch=epoch)
        batches = [batch["shift_labels"] for batch in loader]
        shares = [batch[process::num_processes] for process in range(num_processes) for batch in batches]
        labels = torch.cat([share.flatten() for share in shares])
        assert sorted(labels[labels != IGNORE_INDEX].tolist()) == sorted(tokens[1:].tolist())
        orders.append(list(loader.batch_sampler))
    assert orders[0] == orders[2] != orders[1]
    assert sorted(sum(orders[0], [])) == [PADDING_WINDOW] * 4 + list(range(626))


def test_fingerprint_is_that_of_the_shards(written: Folder, tmp_path: Path) -> None:
    """What a resumed run compares: the same for the same shards, another for others."""
    folder, tokens = written
    (tmp_path / "same").mkdir()
    (tmp_path / "other").mkdir()
    write_folder(tmp_path / "same", tokens, shard_tokens=3001)
    write_folder(tmp_path / "other", tokens[::-1].copy(), shard_tokens=3001)
    prints = [TokenWindows(ShardedTokens(f, "train"), 16).fingerprint() for f in (folder, tmp_path / "same")]
    assert prints[0] == prints[1] != TokenWindows(ShardedTokens(tmp_path / "other", "train"), 16).fingerprint()


def test_order_can_start_in_the_middle(written: Folder) -> None:
    sampler = build_loader(TokenWindows(ShardedTokens(written[0], "train"), 16), 6).batch_sampler
    sampler.order_seed = 5
    steps = list(sampler)
    sampler.first_step = 50
    assert list(sampler) == steps[50:]


def test_windows_are_those_of_the_same_tokens_in_memory(written: Folder) -> None:
    folder, tokens = written
    on_disk = TokenWindows(ShardedTokens(folder, "train"), 100, separator=7)
    in_memory = TokenWindows(torch.from_numpy(tokens.astype(np.int64)), 100, separator=7)
    assert len(on_disk) == len(in_memory) == 101
    for index in [PADDING_WINDOW, *range(101)]:
        for name, values in in_memory[index].items():
            assert on_disk[index][name].dtype == values.dtype == torch.int64
            assert torch.equal(on_disk[index][name], values)


def test_damage_after_opening_is_found_by_the_window_that_reads_it(written: Folder) -> None:
    folder, _ = written
    windows = TokenWindows(ShardedTokens(folder, "train"), 16)
    path = folder / "train-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1  # the tensor of tokens is the last or the one before
    with path.open("r+b") as file:
        file.write(content)
    with pytest.raises(ValueError, match=r"train-00001\.safetensors is corrupt at tokens \d+ to \d+"):
        [windows[index] for index in range(len(windows))]
    assert len(verify_folder(folder)) == 1


def test_whole_folder_is_verified_byte_by_byte(written: Folder) -> None:
    folder, _ = written
    assert verify_folder(folder, num_workers=2) == []
    (folder / "train-00002.safetensors").unlink()
    path = folder / "train-00000.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\7")
    lines = verify_folder(folder, num_workers=2)
    assert len(lines) == 2
    assert "train-00000.safetensors has sha256" in lines[0]
    assert "train-00002.safetensors is missing" in lines[1]


def change_index(change: Callable[[dict], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        index = json.loads((folder / INDEX_NAME).read_text())
        change(index)
        (folder / INDEX_NAME).write_text(json.dumps(index))

    return apply


def move_tokens(count: float) -> Callable[[Path], None]:
    """Have the first shard so many tokens, and the second the others of both: the total stays."""

    def change(index: dict) -> None:
        first, second = index["splits"]["train"]["shards"][:2]
        second["num_tokens"] += first["num_tokens"] - count
        first["num_tokens"] = count
        index["splits"]["train"]["num_tokens"] = sum(
            shard["num_tokens"] for shard in index["splits"]["train"]["shards"]
        )

    return change_index(change)


def swap_shards(folder: Path) -> None:
    first, last = folder / "train-00000.safetensors", folder / "train-00003.safetensors"
    first.write_bytes(last.read_bytes())


def leave_unfinished(folder: Path) -> None:
    (folder / INDEX_NAME).rename(folder / UNFINISHED_NAME)


BAD_FOLDERS = {
    "no index": (lambda folder: (folder / INDEX_NAME).unlink(), "holds no prepared data"),
    "unfinished": (leave_unfinished, "is not finished: give hf-gpt-scratch prepare the same options again"),
    "index no JSON": (lambda folder: (folder / INDEX_NAME).write_text("{"), "is truncated or corrupt"),
    "index no object": (lambda folder: (folder / INDEX_NAME).write_text("[]"), "is truncated or corrupt"),
    "index not ours": (change_index(lambda index: index.update(format="x")), "is of another version"),
    "index of MosaicML": (
        lambda folder: (folder / INDEX_NAME).write_text('{"shards": [], "version": 2}'),
        "is truncated or corrupt: make the folder again",
    ),
    "vocabulary": (change_index(lambda index: index["vocabulary"].update(sha256="0")), "is of another vocabulary"),
    "way out": (
        change_index(lambda index: index["splits"]["train"]["shards"][0].update(file="../x")),
        "names the file '../x': the shards must lie beside the index",
    ),
    "count": (
        change_index(lambda index: index["splits"]["train"]["shards"][1].update(num_tokens=7)),
        "index.json is corrupt .num_tokens of train is 10007, and its shards have 7013",
    ),
    "dropped shard": (
        change_index(lambda index: index["splits"]["train"]["shards"].pop()),
        "index.json is corrupt .num_tokens of train is 10007, and its shards have 9003; num_documents of train is 6",
    ),
    "NaN": (
        change_index(lambda index: index["splits"]["train"].update(num_tokens=math.nan)),
        "num_tokens of train is nan",
    ),
    "negative": (move_tokens(-5), "index.json is corrupt .num_tokens of train-00000.safetensors is -5"),
    "no whole number": (move_tokens(7.0), "index.json is corrupt .num_tokens of train is 10007.0"),
    "moved": (move_tokens(7), "train-00000.safetensors is not the shard that index.json describes"),
    "separator": (
        change_index(lambda index: index.update(separator=0)),
        "index.json is corrupt .separator is 0, not 50256",
    ),
    "size": (
        change_index(lambda index: index["vocabulary"].update(size=50000)),
        "vocabulary.size is 50000, not 50257",
    ),
    "no skipped": (change_index(lambda index: index.pop("skipped")), "index.json is truncated or corrupt"),
    "swapped shards": (swap_shards, "train-00000.safetensors is not the shard that index.json describes"),
    "no shard": (lambda folder: (folder / "train-00002.safetensors").unlink(), "train-00002.safetensors"),
}


@pytest.mark.parametrize("name", BAD_FOLDERS)
def test_bad_folder_is_refused_in_one_line(written: Folder, name: str) -> None:
    damage, words = BAD_FOLDERS[name]
    damage(written[0])
    with pytest.raises((ValueError, OSError), match=words) as caught:
        ShardedTokens(written[0], "train")
    assert "\n" not in str(caught.value)
    try:
        (line,) = verify_folder(written[0])[:1]
    except (ValueError, OSError) as error:
        line = str(error)
    assert "\n" not in line


def test_split_that_is_not_there_is_refused(written: Folder) -> None:
    with pytest.raises(ValueError, match="has no validation tokens, only train"):
        ShardedTokens(written[0], "validation")
    assert read_index(written[0])["version"] == VERSION
