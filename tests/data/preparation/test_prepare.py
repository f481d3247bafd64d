"""Proves that shards hold what plain tiktoken makes of the documents, whatever the workers, kills and full disks."""

import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from filelock import FileLock
from tqdm.auto import tqdm

from hf_gpt_scratch.data.document_sources import Source, dataset_source, file_sources
from hf_gpt_scratch.data.documents import DatasetName
from hf_gpt_scratch.data.preparation.prepare import Choices, prepare, split_of
from hf_gpt_scratch.data.token_folder import ShardedTokens, read_index, verify_folder
from hf_gpt_scratch.data.vocabulary import END_OF_TEXT_ID
from tests.data.plain_tokens import folder_bytes, plain_tokens


SMALL = Choices(shard_tokens=1000)


def tokens_of(folder: Path, split: str = "train") -> np.ndarray:
    row = ShardedTokens(folder, split)
    return row[0 : len(row)]


def quiet(line: str) -> None:
    pass


@pytest.mark.parametrize("num_workers", [1, 2, 4])
@pytest.mark.parametrize("shard_tokens", [100, 1000, 1 << 20])
def test_tokens_are_those_of_plain_tiktoken(
    sources: list[Source], expected: np.ndarray, tmp_path: Path, num_workers: int, shard_tokens: int
) -> None:
    """Also where a document is longer than a shard: the longest has 3,000 tokens."""
    index = prepare(tmp_path / "out", sources, Choices(shard_tokens=shard_tokens), num_workers, quiet)
    assert np.array_equal(tokens_of(tmp_path / "out"), expected)
    train = index["splits"]["train"]
    assert len(train["shards"]) == -(-len(expected) // shard_tokens)
    assert (train["num_tokens"], train["num_documents"]) == (len(expected), 60)
    assert index["skipped"] == {"empty_documents": 38, "bad_rows": 0, "first_bad_row": None}
    assert [source["sha256"] for source in index["sources"]] == [source.sha256 for source in sources]
    assert index == read_index(tmp_path / "out")
    assert verify_folder(tmp_path / "out") == []
    assert (expected == END_OF_TEXT_ID).sum() == 60  # the written-out separator is text


def test_result_does_not_depend_on_the_workers(sources: list[Source], tmp_path: Path) -> None:
    for num_workers in (1, 2, 3):
        prepare(tmp_path / str(num_workers), sources, SMALL, num_workers, quiet)
    assert folder_bytes(tmp_path / "1") == folder_bytes(tmp_path / "2") == folder_bytes(tmp_path / "3")


def test_documents_are_shared_out_whole_and_copies_fall_together(
    sources: list[Source], documents: list[str], tmp_path: Path
) -> None:
    prepare(tmp_path / "out", sources, Choices(validation_fraction=0.3, shard_tokens=500), 2, quiet)
    texts = {split: [text for text in documents if split_of(text, 0.3) == split] for split in ("train", "validation")}
    assert 8 <= len(texts["validation"]) <= 30
    for split, part in texts.items():
        assert tokens_of(tmp_path / "out", split).tolist() == plain_tokens(part)
    assert split_of(documents[0], 0.3) == split_of(documents[-1], 0.3)
    shares = [split_of(str(number), 0.1) == "validation" for number in range(10_000)]
    assert 850 < sum(shares) < 1150


def test_validation_can_have_sources_of_its_own(sources: list[Source], tmp_path: Path) -> None:
    (tmp_path / "v.md").write_text("To validate on.")
    validation = file_sources([tmp_path / "v.md"], "validation", 1, lambda num_bytes: None)
    prepare(tmp_path / "out", [*sources, *validation], SMALL, 1, quiet)
    assert tokens_of(tmp_path / "out", "validation").tolist() == plain_tokens(["To validate on."])


def test_finished_folder_is_left_alone_and_another_is_never_written_over(
    sources: list[Source], tmp_path: Path
) -> None:
    said = []
    index = prepare(tmp_path / "out", sources, SMALL, 1, quiet)
    before = folder_bytes(tmp_path / "out")
    (tmp_path / "out" / ".train-00003.safetensors.hf_gpt_scratch-unfinished").write_bytes(b"half, of a killed process")
    (tmp_path / "out" / "film.partial").write_bytes(b"somebody else's")
    assert prepare(tmp_path / "out", sources, SMALL, 1, said.append) == index
    (tmp_path / "out" / "film.partial").unlink()
    assert folder_bytes(tmp_path / "out") == before
    assert "is finished already" in said[0]
    for others in ((sources[1:], SMALL), (sources, Choices(shard_tokens=999))):
        with pytest.raises(FileExistsError, match="holds other prepared data: name another folder"):
            prepare(tmp_path / "out", *others, 1, quiet)
    assert folder_bytes(tmp_path / "out") == before


def test_second_process_is_refused_at_once(sources: list[Source], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".lock"):
        started = time.monotonic()
        with pytest.raises(FileExistsError, match="another process is preparing"):
            prepare(tmp_path / "out", sources, SMALL, 1, quiet)
        assert time.monotonic() - started < 1
    prepare(tmp_path / "out", sources, SMALL, 1, quiet)


def test_nothing_to_train_or_validate_on_is_said(tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"text": " "}\nnot JSON\n')
    one = tmp_path / "one.txt"
    one.write_text("one")

    def attempt(path: Path, **choices: object) -> None:
        sources = file_sources([path], None, 1, lambda num_bytes: None)
        prepare(tmp_path / "out", sources, Choices(**choices), 1, quiet)

    with pytest.raises(ValueError, match="hold no document with text; 1 bad rows, the first: .*line 2 is not JSON"):
        attempt(empty, bad_rows="skip")
    with pytest.raises(ValueError, match="leaves no document for validation: raise it"):
        attempt(one, validation_fraction=1e-9)
    with pytest.raises(ValueError, match="no document is left to train on"):
        attempt(one, validation_fraction=1 - 1e-9)
    attempt(one)  # nothing stands in the way of the right command


def in_child(work: Callable[[], None]) -> int:
    """Do something in a forked process, and return how it ended: 0, 1 after an exception, or minus the signal."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(60)
    return process.exitcode


def kill_at_event(number: int, folder: Path) -> None:
    """Kill this process at its n-th opening for writing, rename, or removal of something in the folder."""
    seen = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal seen
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if not writes and event not in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree", "os.chmod"):
            return
        if str(arguments[0]).startswith(str(folder)):
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def kill_at_file(path: Path) -> None:
    """Kill this process when a file is about to get its name."""

    def hook(event: str, arguments: tuple) -> None:
        if event == "os.rename" and Path(arguments[1]) == path:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def kill_at_size(num_bytes: int) -> None:
    """Have the kernel kill this process when a file of it grows beyond so many bytes."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)


CHOICES = Choices(validation_fraction=0.2, shard_tokens=2500)


@pytest.fixture
def unbroken(sources: list[Source], tmp_path: Path) -> dict[str, bytes]:
    prepare(tmp_path / "unbroken", sources, CHOICES, 2, quiet)
    return folder_bytes(tmp_path / "unbroken")


def finish_and_compare(folder: Path, sources: list[Source], unbroken: dict[str, bytes]) -> list[str]:
    said: list[str] = []
    prepare(folder, sources, CHOICES, 1, said.append)
    assert folder_bytes(folder) == unbroken
    return said


def test_killed_at_every_file_event_the_result_is_the_same_to_the_byte(
    sources: list[Source], unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    number, taken_up = 0, 0
    while True:
        number += 1
        folder = tmp_path / f"killed-{number}"

        def work(folder: Path = folder, number: int = number) -> None:
            kill_at_event(number, folder)
            prepare(folder, sources, CHOICES, 1, quiet)

        if in_child(work) == 0:
            break
        if not (folder / "index.json").exists():
            with pytest.raises(FileNotFoundError):  # never taken for a finished folder
                ShardedTokens(folder, "train")
        taken_up += "going on after" in " ".join(finish_and_compare(folder, sources, unbroken))
    assert number > 40
    assert taken_up > 20
    assert folder_bytes(folder) == unbroken


@pytest.fixture(params=["files", "dataset"])
def parquet_sources(request: pytest.FixtureRequest, documents: list[str], tmp_path: Path) -> list[Source]:
    """The documents in two parquet files of several row groups, read as files, or streamed by `datasets`."""
    folder = tmp_path / "parquet"
    folder.mkdir()
    for number in range(2):
        table = pyarrow.table({"text": documents[number::2]})
        pyarrow.parquet.write_table(table, folder / f"{number}.parquet", row_group_size=8)
    if request.param == "dataset":
        return [dataset_source(DatasetName(str(folder)))]
    return file_sources([folder], None, 1, lambda num_bytes: None)


def test_killed_in_the_middle_of_a_parquet_file_it_goes_on_there(
    parquet_sources: list[Source], documents: list[str], tmp_path: Path
) -> None:
    """Killed where a shard has just been noted: for the most part its end lies within a document of a row group."""
    choices = Choices(shard_tokens=700)
    prepare(tmp_path / "unbroken", parquet_sources, choices, 1, quiet)
    unbroken = folder_bytes(tmp_path / "unbroken")
    row = tokens_of(tmp_path / "unbroken").tolist()
    assert row == plain_tokens([*documents[0::2], *documents[1::2]])
    num_shards = len(list((tmp_path / "unbroken").glob("train-*")))
    assert row[699 : 700 * num_shards - 1 : 700].count(END_OF_TEXT_ID) < num_shards // 2

    for number in range(1, num_shards):
        folder = tmp_path / f"killed-{number}"

        def work(folder: Path = folder, number: int = number) -> None:
            kill_at_file(folder / f"train-{number:05d}.safetensors")
            prepare(folder, parquet_sources, choices, 1, quiet)

        assert in_child(work) == -signal.SIGKILL
        before = {path.name: path.stat().st_mtime_ns for path in folder.glob("train-*")}
        said: list[str] = []
        prepare(folder, parquet_sources, choices, 1, said.append)
        assert said == [f"going on after {number} finished shards"]
        assert folder_bytes(folder) == unbroken
        assert before == {name: (folder / name).stat().st_mtime_ns for name in before}  # none is made again


@pytest.mark.parametrize("num_bytes", [10, 600, 3000])
def test_killed_in_the_middle_of_a_write(
    sources: list[Source], unbroken: dict[str, bytes], tmp_path: Path, num_bytes: int
) -> None:
    def work() -> None:
        kill_at_size(num_bytes)
        prepare(tmp_path / "killed", sources, CHOICES, 1, quiet)

    assert in_child(work) == -signal.SIGXFSZ
    finish_and_compare(tmp_path / "killed", sources, unbroken)


@pytest.mark.parametrize("num_bytes", [0, 600, 3000, 5100])
def test_disk_that_takes_no_more_is_one_line_and_leaves_what_is_done(
    sources: list[Source], unbroken: dict[str, bytes], tmp_path: Path, num_bytes: int
) -> None:
    """A write fails at the n-th byte of a file; with room again, the same call goes on."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, old[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            prepare(tmp_path / "full", sources, CHOICES, 1, quiet)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "full" / "index.json").exists()
    finish_and_compare(tmp_path / "full", sources, unbroken)


def test_damaged_shard_of_a_broken_run_is_made_again(
    sources: list[Source], unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    def work() -> None:
        kill_at_event(60, tmp_path / "out")
        prepare(tmp_path / "out", sources, CHOICES, 1, quiet)

    assert in_child(work) == -signal.SIGKILL
    shards = sorted((tmp_path / "out").glob("train-*"))
    shards[1].write_bytes(shards[1].read_bytes()[:-1])
    said = finish_and_compare(tmp_path / "out", sources, unbroken)
    assert "train-00001.safetensors is missing or corrupt" in said[0]


def test_source_that_changed_since_is_refused(corpus: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": "word " * 300}) for _ in range(10)))

    def sources() -> list[Source]:
        return file_sources([path], None, 1, lambda num_bytes: None)

    def work() -> None:
        kill_at_event(40, tmp_path / "out")
        prepare(tmp_path / "out", sources(), SMALL, 1, quiet)

    assert in_child(work) == -signal.SIGKILL
    with path.open("a") as file:
        file.write('\n{"text": "one more"}')
    with pytest.raises(FileExistsError, match="was begun with other sources or settings"):
        prepare(tmp_path / "out", sources(), SMALL, 1, quiet)


@pytest.mark.resilience
def test_killed_at_random_moments_again_and_again(sources: list[Source], tmp_path: Path) -> None:
    """Tiny shards and 40 folders, each killed up to five times in a row before it may finish."""
    # The bar's usual lock is shared between processes: one that is killed would hold it for ever.
    tqdm.set_lock(threading.RLock())
    choices = Choices(validation_fraction=0.2, shard_tokens=200)
    prepare(tmp_path / "unbroken", sources, choices, 2, quiet)
    expected = folder_bytes(tmp_path / "unbroken")
    generator = random.Random(5)
    kills = 0
    for number in range(40):
        folder = tmp_path / str(number)
        for _ in range(5):
            arguments = (folder, sources, choices, 2, quiet)
            process = multiprocessing.get_context("fork").Process(target=prepare, args=arguments)
            process.start()
            time.sleep(generator.uniform(0, 0.06))
            process.kill()
            process.join(60)
            kills += process.exitcode == -signal.SIGKILL
        prepare(folder, sources, choices, 2, quiet)
        assert folder_bytes(folder) == expected
    assert kills > 40  # the others were done before
