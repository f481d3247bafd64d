"""Proves that the code of an older folder is brought up to date, nothing else of it, and that a kill never breaks it.

The older release is made from this one so that no mixture of the two can be imported: each of its files needs a name
that this release no longer has. A process is killed at every event of files; what is left must load each time.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hf_gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
from hf_gpt_scratch.data.tokenizer import build_tokenizer
from hf_gpt_scratch.hub.code_update import update_config, update_folder
from hf_gpt_scratch.hub.repository import build_repository
from hf_gpt_scratch.runtime.remote_code import AUTO_MAP, read_code
from tests.fresh_interpreter import run
from tests.older_release import DROPPED, ENTRIES, make_older


UPDATE = """
import os, signal, sys
from pathlib import Path
from hf_gpt_scratch.hub.code_update import update_folder

folder, events_left = Path(sys.argv[1]), int(sys.argv[2])

def watch(event, arguments):
    global events_left
    if event in ("open", "os.rename", "os.remove") and str(folder) in str(arguments[0]):
        events_left -= 1
        if events_left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(watch)
update_folder(folder)
"""


@pytest.fixture(scope="module")
def current(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = GPTScratchConfig(
        vocab_size=257, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=8
    )
    return build_repository(
        GPTScratchForCausalLM(config),
        tmp_path_factory.mktemp("current") / "model",
        tokenizer=build_tokenizer(8, "bytes"),
    )


@pytest.fixture
def folder(current: Path, tmp_path: Path) -> Path:
    return make_older(shutil.copytree(current, tmp_path / "model"))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def load_calls(folders: list[Path]) -> dict:
    """The lines that load each folder with its own code."""
    arguments = {"auto_class": "AutoModelForCausalLM", "input_ids": [[1, 2, 3]]}
    return {str(path): ("load_model", {**arguments, "path": str(path), "output": path.name}) for path in folders}


def test_an_older_folder_becomes_what_is_exported_today(current: Path, folder: Path) -> None:
    inodes = {path.name: path.stat().st_ino for path in folder.iterdir()}
    assert update_folder(folder) == ([*ENTRIES, "config.json"], [DROPPED])
    assert content(folder) == content(current)
    changed = {path.name for path in folder.iterdir() if path.stat().st_ino != inodes[path.name]}
    assert changed == {*ENTRIES, "config.json"}


def test_what_is_up_to_date_is_not_touched(current: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(current, tmp_path / "model")
    (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text())), "utf-8")
    before, times = content(folder), {path: path.stat().st_mtime_ns for path in [folder, *folder.iterdir()]}
    assert update_folder(folder) == ([], [])
    assert content(folder) == before
    assert {path: path.stat().st_mtime_ns for path in [folder, *folder.iterdir()]} == times


@pytest.mark.resilience
def test_a_kill_at_any_event_leaves_a_folder_that_loads(
    current: Path, folder: Path, project_root: Path, tmp_path: Path
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(project_root)}
    killed: list[Path] = []
    for number in range(1, 200):
        path = shutil.copytree(folder, tmp_path / "killed" / f"at-{number}")
        result = subprocess.run([sys.executable, "-c", UPDATE, path, str(number)], env=environment, timeout=60)
        if result.returncode == 0:
            break
        assert result.returncode == -signal.SIGKILL
        killed.append(path)
    assert len(killed) > 20
    assert len({json.loads((path / "config.json").read_text())["auto_map"]["AutoModel"] for path in killed}) == 2

    # What the second set of names is for: with the files of the two releases mixed, nothing loads.
    mixed = shutil.copytree(folder, tmp_path / "mixed")
    (mixed / ENTRIES[0]).write_bytes(read_code()[ENTRIES[0]])
    outcome = run(tmp_path / "home", load_calls([*killed, mixed]))
    for path in killed:
        assert outcome.returned(str(path))["loading_info"]["missing_keys"] == []
    assert outcome.raised(str(mixed))[0][0] == "ImportError"

    for path in killed:
        update_folder(path)
        assert content(path) == content(current)


def test_links_are_not_replaced(folder: Path) -> None:
    (folder / "config.json").rename(folder.parent / "blob")
    (folder / "config.json").symlink_to(folder.parent / "blob")
    before = content(folder)
    with pytest.raises(ValueError, match="cannot update .*: config.json is a link, put the file itself there$"):
        update_folder(folder)
    assert content(folder) == before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"model_type": "gpt2"}', "has the model_type 'gpt2', not 'gpt_scratch'"),
        ("{}", "its config.json is not a JSON object with a model_type"),
        ("[]", "its config.json is not a JSON object with a model_type"),
        ("{", "its config.json is not a JSON object with a model_type"),
    ],
)
def test_no_folder_of_this_project_is_refused(folder: Path, text: str, words: str) -> None:
    (folder / "config.json").write_text(text, encoding="utf-8")
    before = content(folder)
    with pytest.raises(ValueError, match=words) as raised:
        update_folder(folder)
    assert "\n" not in str(raised.value)
    assert content(folder) == before
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="it holds no config.json, so it is not a model folder"):
        update_folder(folder)


def test_of_config_json_only_code_and_tokenizer_change() -> None:
    config = {"model_type": "gpt_scratch", "hidden_size": 8, "own": "é"}
    tokenizer_config = b'{"tokenizer_class": "GPT2Tokenizer"}'
    named = {
        "AutoModel": "me/v1.5--modeling_gpt_scratch.GPTScratchModel",
        "AutoModelForMaskedLM": "helper_gpt_scratch.Masked",
        "AutoProcessor": "own.Processor",
    }
    old = json.dumps(config | {"auto_map": named}).encode()
    expected = config | {"auto_map": AUTO_MAP | {"AutoProcessor": "own.Processor"}}
    assert json.loads(update_config(old, b"{}", "here")) == expected
    new = update_config(old, tokenizer_config, "here")
    assert json.loads(new) == expected | {"tokenizer_class": "GPT2Tokenizer"}
    assert update_config(new, b'{"tokenizer_class": "Other"}', "here") is new
