"""Proves that what another process left is taken up when it is whole, dropped when not, and never written over."""

import json
from pathlib import Path

import pytest

from hf_gpt_scratch.data.preparation.progress import (
    find_finished_shards,
    note_shards,
    refuse_foreign_folder,
    write_json,
)
from hf_gpt_scratch.data.token_folder import UNFINISHED_NAME
from hf_gpt_scratch.runtime.files import file_sha256


PLAN = {"version": 1, "sources": [{"name": "a.txt"}]}


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    shards = []
    for number in range(3):
        path = tmp_path / f"train-0000{number}.safetensors"
        path.write_bytes(bytes([number]))
        shards.append({"file": path.name, "sha256": file_sha256(path), "position": [number, 0]})
    note_shards(tmp_path, PLAN, {"train": shards, "validation": []})
    return tmp_path


def test_whole_shards_are_taken_up(begun: Path) -> None:
    said = []
    shards = find_finished_shards(begun, PLAN, 2, said.append)
    assert [shard["position"] for shard in shards["train"]] == [[0, 0], [1, 0], [2, 0]]
    assert shards["validation"] == []
    assert said == ["going on after 3 finished shards"]


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"x"), lambda path: path.unlink()])
def test_damaged_shard_and_those_after_it_are_made_again(begun: Path, damage) -> None:
    damage(begun / "train-00001.safetensors")
    said = []
    assert len(find_finished_shards(begun, PLAN, 1, said.append)["train"]) == 1
    assert "train-00001.safetensors is missing or corrupt: made again from there" in said[0]


def test_other_plan_is_refused_once_there_is_a_shard(begun: Path) -> None:
    with pytest.raises(FileExistsError, match="was begun with other sources or settings"):
        find_finished_shards(begun, {**PLAN, "version": 2}, 1, print)
    note_shards(begun, PLAN, {"train": [], "validation": []})
    assert find_finished_shards(begun, {**PLAN, "version": 2}, 1, print) == {"train": [], "validation": []}


@pytest.mark.parametrize("content", ["{", "[]", '{"plan": 1}', '{"plan": 1, "shards": {"train": []}}'])
def test_damaged_note_is_named(begun: Path, content: str) -> None:
    (begun / UNFINISHED_NAME).write_text(content)
    with pytest.raises(ValueError, match=r"unfinished\.json is truncated or corrupt: remove"):
        find_finished_shards(begun, PLAN, 1, print)


def test_folder_with_other_things_is_refused(tmp_path: Path, begun: Path) -> None:
    refuse_foreign_folder(begun)
    other = tmp_path / "other"
    other.mkdir()
    (other / ".lock").touch()
    refuse_foreign_folder(other)
    (other / "thesis.txt").write_text("x")
    with pytest.raises(FileExistsError, match=r"is not empty, it holds thesis\.txt: name a new folder"):
        refuse_foreign_folder(other)


def test_json_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, [1])
    write_json(path, [2])
    assert json.loads(path.read_text()) == [2]
    with pytest.raises(TypeError):
        write_json(path, [object()])
    assert json.loads(path.read_text()) == [2]
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
