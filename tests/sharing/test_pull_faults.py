"""Proves that whatever goes wrong once while a model is pulled, nobody gets another model than the one pushed.

Every request that a pull makes meets every fault once. What comes out is the model to the last bit, its tokenizer and
its generation settings, or an error; of our own loading function one line that names the repository. Loading again
completes it from what has arrived. Faults of the connection that a server can heal are the client's to survive; which
ones it does is written in the table: python -m pytest -m hub.
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_gpt_scratch import GPTScratchForCausalLM
from hf_gpt_scratch.data.tokenizer import build_tokenizer
from tests.fresh_interpreter import Calls, Outcome, run
from tests.loopback_hub import Fault, File, LoopbackHub


KINDS = ["500", "503", "reset", "hang", "cut"]
QUICK = ["500", "reset"]
WITH_CODE = {False: "by the package", True: "with remote code"}
INPUT_IDS = [[17, 5, 99, 23, 42]]
TEXTS = ["The lamp", "<|endoftext|>done"]
SETTINGS = {
    "HF_HUB_DOWNLOAD_TIMEOUT": "1",  # seconds; by default ten
    "HF_HUB_ETAG_TIMEOUT": "1",
    "HF_HUB_DISABLE_SHARED_BLOBS": "1",  # what came by Xet for one repository would do for the next
}
PATIENCE = 3.0  # seconds after which our server gives up a connection on which it hangs


@pytest.fixture
def pulling(hub: LoopbackHub, folders: dict[str, Path], push_by_script: Callable, tmp_path: Path) -> LoopbackHub:
    """A Hub that holds the model in both ways of sending."""
    hub.patience = PATIENCE
    for transfer in ("lfs", "xet"):
        home = tmp_path / f"home-{transfer}"
        result = push_by_script(hub, home, folders["sharded"], f"alice/{transfer}", xet=transfer == "xet")
        assert result.returncode == 0, result.stderr
    return hub


def call(repo_id: str, remote_code: bool) -> tuple[str, dict]:
    return "load_all", {"path": repo_id, "input_ids": INPUT_IDS, "texts": TEXTS, "remote_code": remote_code}


def pull(hub: LoopbackHub, folder: Path, calls: Calls, remote_code: bool) -> Outcome:
    """One interpreter for many pulls: each is of a repository of its own, so nothing of it is in the cache."""
    env = hub.environment(folder / "home") | SETTINGS
    return run(folder, calls, package=not remote_code, env=env, timeout=900)


def requests(hub: LoopbackHub, folder: Path, transfer: str, remote_code: bool) -> list[tuple[str, str]]:
    """Return what an undisturbed pull asks for: routes and paths, with {repo_id} in the place of the name."""
    repo_id = f"alice/undisturbed-{transfer}"
    hub.copy_repository(f"alice/{transfer}", repo_id)
    number = len(hub.requests)
    pull(hub, folder, {"all": call(repo_id, remote_code)}, remote_code).returned("all")
    asked = [(request.route, request.path.replace(repo_id, "{repo_id}")) for request in hub.requests[number:]]
    return list(dict.fromkeys(asked))


@dataclass(frozen=True)
class Row:
    """One pull with one fault."""

    transfer: str
    route: str
    path: str
    kind: str

    @property
    def place(self) -> str:
        end = self.path.split("/")[-1]
        return f"{self.route} {end if len(end) < 40 else ''}".strip()


def good_pull(model: GPTScratchForCausalLM) -> dict[str, Any]:
    """Return what every pull that succeeds must have got."""
    with torch.no_grad():
        logits = model(torch.tensor(INPUT_IDS)).logits
    return {
        "logits": hashlib.sha256(logits.numpy().tobytes()).hexdigest(),
        "token_ids": build_tokenizer()(TEXTS)["input_ids"],
        "pad_token": "<|endoftext|>",
        "special_token_ids": [50256, 50256, 50256],
    }


def check_rows(
    hub: LoopbackHub, folder: Path, rows: list[Row], good: dict[str, Any], remote_code: bool
) -> Iterator[list[str]]:
    """Pull once for each row and once again; check and describe what came."""
    calls: Calls = {}
    faults: dict[str, Fault] = {}
    for number, row in enumerate(rows):
        repo_id = f"alice/{row.transfer}-{number}"
        hub.copy_repository(f"alice/{row.transfer}", repo_id)
        path = re.escape(row.path.format(repo_id=repo_id))
        faults[repo_id] = hub.fault(row.route, row.kind, path=f"^{path}$")
        calls |= {repo_id: call(repo_id, remote_code), f"{repo_id} again": call(repo_id, remote_code)}
    outcome = pull(hub, folder, calls, remote_code)
    for row, (repo_id, fault) in zip(rows, faults.items(), strict=True):
        assert len(fault.hits) == 1, row
        if "error" in outcome.report[repo_id]:
            classes, message = outcome.raised(repo_id)
            first_line = message.strip().splitlines()[0]
            result = f"{classes[0]}: {first_line[:100]}"
            assert remote_code or ("OSError" in classes and message == first_line and repo_id in message), row
        else:
            result = "succeeded"
            assert outcome.returned(repo_id) == good, row
        assert outcome.returned(f"{repo_id} again") == good, row
        yield [row.transfer, WITH_CODE[remote_code], row.place, row.kind, result]


def test_a_fault_while_pulling(pulling: LoopbackHub, model: GPTScratchForCausalLM, tmp_path: Path) -> None:
    """At the resolution of the revision, a small file, and the weights on the CDN and in Xet."""
    commit = pulling.repo("alice/lfs").head()
    weights = commit.files["model-00001-of-00002.safetensors"].sha256
    asked = requests(pulling, tmp_path / "lfs", "lfs", False)  # by the commit or by "main": as transformers does it
    places = [
        ("lfs", "GET info", "/api/models/{repo_id}"),
        next(("lfs", *place) for place in asked if place[0] == "GET resolve" and place[1].endswith("/config.json")),
        ("lfs", "GET download", f"/{{repo_id}}/{weights}"),
        (
            "xet",
            "GET xet_read_token",
            f"/api/models/{{repo_id}}/xet-read-token/{pulling.repo('alice/xet').head().sha}",
        ),
    ]
    rows = [Row(*place, kind) for place in places for kind in QUICK]
    assert len(list(check_rows(pulling, tmp_path / "pulls", rows, good_pull(model), False))) == len(rows)


@pytest.mark.hub
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("remote_code", [False, True], ids=WITH_CODE.get)
def test_every_fault_at_every_request_of_a_pull(
    pulling: LoopbackHub, model: GPTScratchForCausalLM, tmp_path: Path, table: Callable[..., None], remote_code: bool
) -> None:
    by_lfs = requests(pulling, tmp_path / "lfs", "lfs", remote_code)
    by_xet = [place for place in requests(pulling, tmp_path / "xet", "xet", remote_code) if "xet" in place[0]]
    places = [("lfs", *place) for place in by_lfs] + [("xet", *place) for place in by_xet]
    rows = [Row(*place, kind) for place in places for kind in KINDS]
    columns = ["way", "loaded", "request", "fault", "outcome"]
    for row in check_rows(pulling, tmp_path / "pulls", rows, good_pull(model), remote_code):
        table("Faults of a pull", columns, row)
    assert pulling.unknown == []


@pytest.mark.hub
def test_the_check_sees_another_model(
    pulling: LoopbackHub, model: GPTScratchForCausalLM, folders: dict[str, Path], tmp_path: Path
) -> None:
    """The control: a Hub that mixes the files of two commits is found out."""
    mixed = pulling.repo("alice/lfs")
    content = (folders["old"] / "model.safetensors").read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    mixed.uploads[sha256] = content
    files = dict(mixed.head().files) | {"model.safetensors": File.large(sha256, len(content))}
    mixed.add_commit("main", files, "mixed", "", "alice")
    repo_id = "alice/lfs"
    outcome = pull(pulling, tmp_path / "pull", {repo_id: call(repo_id, False)}, False)
    assert outcome.returned(repo_id) != good_pull(model)
