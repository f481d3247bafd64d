"""Proves that only a complete model folder without anything foreign in it may leave this machine.

Each case changes one thing in a folder that is accepted, and the one line names that thing.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hf_gpt_scratch.data.sample_texts import bundled_text_path
from hf_gpt_scratch.hub.pushable_files import check_folder


@pytest.fixture
def folder(finished_folder: Path, tmp_path: Path) -> Path:
    folder = shutil.copytree(finished_folder, tmp_path / "model")
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")  # the true one takes long to look through
    return folder


def put(name: str, content: bytes = b"x") -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def edit_json(name: str, **changes: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        (folder / name).write_text(json.dumps(content | changes), encoding="utf-8")

    return change


def cut_shard(folder: Path) -> None:
    os.truncate(folder / SHARD, 2000)


def rename_tensor(folder: Path) -> None:
    tensors = load_file(folder / SHARD)
    name = next(iter(tensors))
    tensors[f"{name}.other"] = tensors.pop(name)
    save_file(tensors, folder / SHARD)


def point_out(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    (folder.parent / "outside.safetensors").write_bytes(b"x")
    weight_map = dict.fromkeys(index["weight_map"], "../outside.safetensors")
    edit_json(INDEX, weight_map=weight_map)(folder)


def add_secret_to_header(folder: Path) -> None:
    save_file(load_file(folder / SHARD), folder / SHARD, metadata={"format": "pt", "note": SECRET})


SHARD = "model-00001-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
SECRET = "hf_" + "aB3" * 12
CODE = "modeling_gpt_scratch.py"

FOREIGN = {
    "pickle": (put("model.pkl"), "model.pkl"),
    "pytorch weights": (put("pytorch_model.bin"), "pytorch_model.bin"),
    "pt": (put("optimizer.pt"), "optimizer.pt"),
    "pth": (put("model.pth"), "model.pth"),
    "ckpt": (put("model.ckpt"), "model.ckpt"),
    "object array": (lambda folder: np.save(folder / "a.npy", np.array([{}])), "a.npy"),
    "environment": (put(".env", b"PASSWORD=1"), ".env"),
    "hidden": (put(".DS_Store"), ".DS_Store"),
    "git": (lambda folder: (folder / ".git").mkdir(), ".git is not a regular file"),
    "sub-folder": (lambda folder: (folder / "custom_generate").mkdir(), "custom_generate is not a regular file"),
    "pipe": (lambda folder: os.mkfifo(folder / "config.pipe"), "config.pipe is not a regular file"),
    "other code": (put("setup.py"), "setup.py"),
    "capitals": (put("MODEL.SAFETENSORS"), "MODEL.SAFETENSORS"),
    "link out": (lambda folder: (folder / "LICENSE").symlink_to("/etc/hostname"), "LICENSE is a link"),
    "link inside": (lambda folder: (folder / "LICENSE").symlink_to("README.md"), "LICENSE is a link"),
    "many": (lambda folder: [put(f"{n}.bin")(folder) for n in range(20)], "and 12 more such files"),
    "key in the card": (put("README.md", f"my {SECRET}".encode()), "README.md holds what looks like a secret key"),
    "key in code": (put(CODE, f"TOKEN = '{SECRET}'".encode()), f"{CODE} holds what looks like a secret key"),
    "private key": (put("LICENSE", b"-----BEGIN RSA PRIVATE KEY-----"), "LICENSE holds what looks like a secret key"),
    "key in weights": (add_secret_to_header, f"{SHARD} holds what looks like a secret key"),
}
INCOMPLETE = {
    "config": (remove("config.json"), "it lacks config.json"),
    "card": (remove("README.md"), "it lacks README.md"),
    "tokenizer": (remove("tokenizer.json"), "it lacks tokenizer.json"),
    "tokenizer settings": (remove("tokenizer_config.json"), "it lacks tokenizer_config.json"),
    "shard": (remove(SHARD), f"it lacks {SHARD}"),
    "index": (remove(INDEX), "it lacks model.safetensors; model-00001-of-00002.safetensors belongs to other weights"),
    "index without weights": (edit_json(INDEX, weight_map=[]), f"{SHARD} belongs to other weights"),
    "stale weights": (lambda f: shutil.copy(f / SHARD, f / "model.safetensors"), "model.safetensors belongs to other"),
    "weights outside": (point_out, "it lacks ../outside.safetensors"),
    "named code": (remove(CODE), f"it lacks {CODE}"),
    "imported code": (remove("generation_gpt_scratch.py"), "it lacks generation_gpt_scratch.py"),
    "code of others": (edit_json("config.json", auto_map={"AutoModel": "bob/x--evil.M"}), "it lacks bob/x--evil.py"),
    "config is not JSON": (put("config.json", b"{"), "config.json is not valid JSON"),
    "cut weights": (cut_shard, f"{SHARD} is truncated or corrupt"),
    "web page for weights": (put(SHARD, b"<!DOCTYPE html><html>" * 9), f"{SHARD} is truncated or corrupt"),
    "other tensors": (rename_tensor, f"{SHARD} does not hold the tensors that {INDEX} says"),
}


def test_a_finished_folder_is_accepted_in_whole(finished_folder: Path) -> None:
    assert check_folder(finished_folder) == sorted(finished_folder.iterdir())
    assert (finished_folder / SHARD).is_file()


@pytest.mark.parametrize("case", [*FOREIGN, *INCOMPLETE])
def test_what_is_wrong_is_named_in_one_line(folder: Path, case: str) -> None:
    spoil, words = (FOREIGN | INCOMPLETE)[case]
    spoil(folder)
    with pytest.raises(ValueError, match="^cannot push ") as raised:
        check_folder(folder)
    message = str(raised.value)
    assert words in message
    assert "\n" not in message
    assert SECRET not in message


def test_all_that_is_missing_is_named_together(folder: Path) -> None:
    for name in ("config.json", "README.md", SHARD):
        (folder / name).unlink()
    with pytest.raises(ValueError, match=f"it lacks README.md, config.json, {SHARD}$"):
        check_folder(folder)


def test_no_folder_and_no_directory_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        check_folder(tmp_path / "none")
    with pytest.raises(NotADirectoryError, match="it is a file"):
        check_folder(bundled_text_path())
