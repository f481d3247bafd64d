"""Proves that a model pushed with our script arrives bit for bit where this package is not installed.

The real client pushes in a process of its own; a fresh interpreter with an empty home, which cannot import
hf_gpt_scratch, pulls over HTTP. Its logits are compared with those of the model here by torch.equal, the files byte by
byte; one model has a vocabulary of its own. Four combinations of the others cover every value of every factor; all
sixteen: python -m pytest -m hub.
"""

import itertools
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from hf_gpt_scratch import GPTScratchForCausalLM
from hf_gpt_scratch.data.tokenizer import build_tokenizer
from tests.fresh_interpreter import Calls, Outcome, run
from tests.loopback_hub import LoopbackHub
from tests.sharing.comparing import content, differing


COMBINATIONS = list(
    itertools.product(("lfs", "xet"), ("single", "sharded"), ("public", "private"), ("main", "pinned"))
)
# Any two of the first three factors meet in all four ways.
QUICK = [
    ("lfs", "single", "public", "main"),
    ("xet", "sharded", "private", "pinned"),
    ("lfs", "own", "public", "main"),
]
INPUT_IDS = [[17, 5, 99, 23, 42], [64, 8, 31, 2, 77]]
TEXTS = ["The lamp", "", " é 漢字 🙂", "<|endoftext|>done"]


@pytest.fixture(scope="module")
def shared_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackHub]:
    """One Hub for all combinations; each push has a repository of its own."""
    with LoopbackHub(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture(scope="module")
def pushed(
    shared_hub: LoopbackHub,
    folders: dict[str, Path],
    push_by_script: Callable[..., subprocess.CompletedProcess],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str, str, str], tuple[str, str]]:
    """Push one combination, once, and hand back the repository and the commit that the script printed."""
    done: dict[str, str] = {}

    def push(transfer: str, weights: str, access: str) -> tuple[str, str]:
        repo_id = f"alice/{transfer}-{weights}-{access}"
        if repo_id not in done:
            home = tmp_path_factory.mktemp("home")
            options = ["--private"] if access == "private" else []
            result = push_by_script(shared_hub, home, folders[weights], repo_id, *options, xet=transfer == "xet")
            assert result.returncode == 0, result.stderr
            done[repo_id] = shared_hub.repo(repo_id).head().sha
            assert f'from_pretrained("{repo_id}", revision="{done[repo_id]}", trust_remote_code=True)' in result.stdout
            # One commit of the Hub's own, one of this push; and the files came as they should.
            assert len(shared_hub.repo(repo_id).commits) == 2
            assert bool(shared_hub.repo(repo_id).uploads) == (transfer == "lfs")
        return repo_id, done[repo_id]

    return push


def pull(hub: LoopbackHub, home: Path, repo_id: str, revision: str | None, private: bool) -> Outcome:
    """Model, tokenizer and all files, in a fresh interpreter without our package."""
    model = {"path": repo_id, "auto_class": "AutoModelForCausalLM", "input_ids": INPUT_IDS, "output": "logits"}
    calls: Calls = {
        "package": ("import_package", {}),
        "model": ("load_model", {**model, "revision": revision}),
        "tokenizer": ("load_tokenizer", {"path": repo_id, "texts": TEXTS, "revision": revision}),
        "files": ("download", {"path": repo_id, "revision": revision}),
    }
    token = hub.token_of("alice", "read") if private else None
    return run(home, calls, env=hub.environment(home / "home", token))


def check(
    combination: tuple[str, str, str, str],
    hub: LoopbackHub,
    pushed: Callable[[str, str, str], tuple[str, str]],
    folders: dict[str, Path],
    model: GPTScratchForCausalLM,
    home: Path,
    own_vocabulary: Path | None = None,
) -> None:
    transfer, weights, access, revision = combination
    repo_id, sha = pushed(transfer, weights, access)
    number = len(hub.requests)
    outcome = pull(hub, home, repo_id, sha if revision == "pinned" else None, access == "private")
    asked = hub.requests[number:]

    assert outcome.raised("package")[0][0] == "ModuleNotFoundError"
    loaded = outcome.returned("model")
    assert loaded["class"] == "GPTScratchForCausalLM"
    assert loaded["module"].startswith("transformers_modules.")
    assert not any(loaded["loading_info"].values())
    assert loaded["tied"]
    with torch.no_grad():
        assert torch.equal(outcome.tensor("logits"), model(torch.tensor(INPUT_IDS)).logits)
    tokenizer = AutoTokenizer.from_pretrained(own_vocabulary) if weights == "own" else build_tokenizer()
    assert outcome.returned("tokenizer")["token_ids"] == tokenizer(TEXTS)["input_ids"]
    assert differing(Path(outcome.returned("files")["folder"]), folders[weights]) == []

    assert hub.unknown == []
    routes = {request.route for request in asked}
    assert ("GET download" in routes, "GET xet_read_token" in routes) == (transfer == "lfs", transfer == "xet")
    assert {request.token for request in asked if request.origin == "hub"} == (
        {hub.token_of("alice", "read")} if access == "private" else {None}
    )
    if revision == "pinned":
        revisions = {
            request.path.split("/resolve/")[1].split("/")[0] for request in asked if "resolve" in request.path
        }
        assert revisions == {sha}


@pytest.mark.parametrize("combination", QUICK, ids="-".join)
def test_a_pushed_model_arrives_bit_for_bit(
    combination: tuple[str, str, str, str],
    shared_hub: LoopbackHub,
    pushed: Callable[[str, str, str], tuple[str, str]],
    folders: dict[str, Path],
    model: GPTScratchForCausalLM,
    own_model: GPTScratchForCausalLM,
    own_vocabulary: Path,
    tmp_path: Path,
) -> None:
    expected = own_model if combination[1] == "own" else model
    check(combination, shared_hub, pushed, folders, expected, tmp_path / "home", own_vocabulary)


@pytest.mark.hub
@pytest.mark.parametrize("combination", COMBINATIONS, ids="-".join)
def test_every_combination_arrives_bit_for_bit(
    combination: tuple[str, str, str, str],
    shared_hub: LoopbackHub,
    pushed: Callable[[str, str, str], tuple[str, str]],
    folders: dict[str, Path],
    model: GPTScratchForCausalLM,
    tmp_path: Path,
) -> None:
    check(combination, shared_hub, pushed, folders, model, tmp_path / "home")


@pytest.mark.parametrize("name", ["modeling_gpt_scratch.py", "model.safetensors", "README.md"])
def test_the_comparison_sees_one_changed_byte(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    """The control: without it the proofs above could be blind."""
    copy = shutil.copytree(folders["single"], tmp_path / "copy")
    assert differing(copy, folders["single"]) == []
    changed = content(copy)[name]
    (copy / name).write_bytes(changed[:-1] + bytes([changed[-1] ^ 1]))
    assert differing(copy, folders["single"]) == [name]
