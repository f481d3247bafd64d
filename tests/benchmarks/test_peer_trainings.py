"""Proves what the commands of the peers are given; that of litgpt runs where litgpt is installed."""

import sys
from pathlib import Path

import pytest
import tiktoken

from hf_gpt_scratch.data.sample_texts import bundled_text_path
from hf_gpt_scratch.data.tokenizer import load_encoding
from scripts.benchmarks.peer_benchmark import TINY
from scripts.benchmarks.peer_trainings import PEERS, LitgptPeer, PeerTask, litgpt_version, prepare


@pytest.fixture
def task(tmp_path: Path) -> PeerTask:
    prepare(bundled_text_path(), tmp_path, TINY["context"])
    return PeerTask(tmp_path, TINY, 2_000, 1, Path(sys.executable))


def test_peers_train_on_the_first_nine_tenths_alone(task: PeerTask) -> None:
    whole = bundled_text_path().read_text(encoding="utf-8")
    rest = whole[int(0.9 * len(whole)) :]
    assert task.text.read_text(encoding="utf-8") + rest == whole
    validation = (task.folder / "validation" / "text.txt").read_text(encoding="utf-8")
    assert validation == rest * (len(validation) // len(rest))


@pytest.mark.parametrize("context", [64, 256])
def test_the_validation_text_fills_the_batches_of_litgpt(tmp_path: Path, context: int) -> None:
    """It takes four windows at once, each with the token that follows, and stops where there are fewer."""
    prepare(bundled_text_path(), tmp_path, context)
    encoding: tiktoken.Encoding = load_encoding("gpt2")
    text = (tmp_path / "validation" / "text.txt").read_text(encoding="utf-8")
    assert len(encoding.encode_ordinary(text)) >= 4 * (context + 1)


def test_litgpt_keeps_its_defaults_but_for_size_text_and_tokens(task: PeerTask, tmp_path: Path) -> None:
    peers = {name: peer for name, peer in PEERS.items() if isinstance(peer, LitgptPeer)}
    given = {
        name: {str(word) for word in peer.command(task, tmp_path / name, 2_000, 1) if str(word).startswith("--train.")}
        for name, peer in peers.items()
    }
    assert given["litgpt"] == {"--train.tie_embeddings", "--train.max_tokens"}
    batch = {"--train.global_batch_size", "--train.lr_warmup_steps"}
    assert given["litgpt, batch of 8"] == given["litgpt"] | batch


def test_a_python_without_litgpt_is_refused(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    with pytest.raises(ValueError, match="has no litgpt: .*PackageNotFoundError"):
        litgpt_version(python)


@pytest.mark.slow
def test_a_checkpoint_of_litgpt_is_scored(task: PeerTask, tmp_path: Path) -> None:
    pytest.importorskip("litgpt", reason="litgpt is no dependency of this project")
    from scripts.benchmarks.scoring import score

    _, folder = LitgptPeer({"train.global_batch_size": 8}).train(task, tmp_path / "run", 1)
    scored = score(str(folder), str(bundled_text_path()), "gpt2", TINY["context"])
    width, layers = TINY["width"], TINY["layers"]
    assert scored["parameters"] == 50257 * width + layers * (12 * width**2 + 13 * width) + 2 * width
    assert 5 < scored["loss"] < 12
