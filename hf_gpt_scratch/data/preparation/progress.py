"""Progress of an unfinished preparation, for another process to continue: the file `unfinished.json`."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hf_gpt_scratch.data.token_folder import INDEX_NAME, UNFINISHED_NAME
from hf_gpt_scratch.runtime.files import file_sha256, is_unfinished, read_json, write_json


LOCK_NAME = ".lock"
SPLITS = ("train", "validation")
Shards = dict[str, list[dict[str, Any]]]  # of each split, what the index says of each, and the place where it ends


def refuse_foreign_folder(folder: Path) -> None:
    """Raise FileExistsError if a folder holds something that was not prepared here."""
    names = {path.name for path in folder.iterdir() if not is_unfinished(path)} - {LOCK_NAME}
    if names and not names & {INDEX_NAME, UNFINISHED_NAME}:
        raise FileExistsError(f"{folder} is not empty, it holds {min(names)}: name a new folder")


def find_finished_shards(folder: Path, plan: dict[str, Any], num_workers: int, say: Callable[[str], None]) -> Shards:
    """Look for what an earlier process has done, and compare it with its hashes.

    Raises:
        FileExistsError: it was begun with other sources or settings.
        ValueError: the note of what was done is damaged.
    """
    note = folder / UNFINISHED_NAME
    if not note.exists():
        return {split: [] for split in SPLITS}
    try:
        saved = read_json(note)
        shards = {split: saved["shards"][split] for split in SPLITS}
        is_same = saved["plan"] == plan
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{note} is truncated or corrupt: remove {folder} and prepare again") from None
    if not is_same and any(shards.values()):
        raise FileExistsError(
            f"{folder} was begun with other sources or settings: give the same command, or name another folder"
        )
    for finished in shards.values():
        drop_corrupt(folder, finished, num_workers, say)
    if any(shards.values()):
        say(f"going on after {sum(map(len, shards.values()))} finished shards")
    return shards


def drop_corrupt(folder: Path, shards: list[dict[str, Any]], num_workers: int, say: Callable[[str], None]) -> None:
    """Forget the first shard that is missing or does not have its hash, and those after it."""

    def is_intact(shard: dict[str, Any]) -> bool:
        path = folder / shard["file"]
        return path.is_file() and file_sha256(path) == shard["sha256"]

    with ThreadPoolExecutor(num_workers) as threads:
        are_intact = list(threads.map(is_intact, shards))
    if False in are_intact:
        first = are_intact.index(False)
        say(f"{folder / shards[first]['file']} is missing or corrupt: made again from there")
        del shards[first:]


def note_shards(folder: Path, plan: dict[str, Any], shards: Shards) -> None:
    """Write down which shards are done."""
    write_json(folder / UNFINISHED_NAME, {"plan": plan, "shards": shards}, sort_keys=False)


def forget_progress(folder: Path) -> None:
    """Remove the note of a folder that is finished."""
    (folder / UNFINISHED_NAME).unlink(missing_ok=True)
