"""Time to a loss with GPT-2's vocabulary: whole trainings of the Trainer and of litgpt, and ours in half the time.

Each round has a seed of its own: every peer trains on the first nine tenths of a text, for a number of tokens. Then
this project trains a model of the same size on the same nine tenths, for half of the wall time of the peer with the
lowest loss. Vocabulary, size and context are given to it; `--minutes` chooses the rest. `scoring.py` scores the last
tenth in the same windows; ours never sees it, and holds out a part of its own text to judge checkpoints by.
"""

import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_gpt_scratch.data.sample_texts import bundled_text_path
from hf_gpt_scratch.runtime.cli import number

from .benchmark import Benchmark
from .measuring import Results, build_report, describe_limit
from .peer_benchmark import TINY
from .peer_trainings import PEERS, LitgptPeer, PeerTask, litgpt_version, prepare
from .time_to_loss import AIMED_AT, refuse_larger_model, train_ours, with_score


if TYPE_CHECKING:
    import argparse

PART_OF_TIME = 0.5
OURS = f"ours, {PART_OF_TIME:g} of the best"
SIZES: dict[str, dict[str, int]] = {"16M": {"layers": 4, "width": 256, "heads": 4, "context": 256}, "tiny": TINY}


class TimeToLossGpt2(Benchmark):
    """Seeds of whole trainings, with the vocabulary and the size given."""

    help = (
        "whole trainings against the Trainer's defaults and litgpt's, GPT-2's vocabulary: their loss in half the time"
    )
    packages = ("torch", "transformers", "accelerate")
    sizes = SIZES

    def add_arguments(self, parser: "argparse.ArgumentParser") -> None:
        """Add the text, the size of the model, the tokens and the peers."""
        parser.add_argument("--text", type=Path, metavar="FILE", help="text to train on (default: the bundled story)")
        parser.add_argument("--size", choices=SIZES, default="16M", help="model, to train (default: 16M)")
        parser.add_argument(
            "--tokens", type=number(int, 1), default=250_000, help="that a peer trains on (default: 250000)"
        )
        parser.add_argument(
            "--against", nargs="+", choices=PEERS, default=list(PEERS), metavar="PEER",
            help=f"{'; '.join(PEERS)} (default: all; litgpt needs --peer_python)",
        )  # fmt: skip

    def run(self, arguments: "argparse.Namespace") -> Iterator[dict[str, Any]]:
        """Train and score with a seed for each round.

        Yields:
            The report.

        Raises:
            ValueError: a candidate fails, or trained another model.
        """
        machine, python = self.describe_machine(arguments), arguments.peer_python
        names = [name for name in arguments.against if python or not isinstance(PEERS[name], LitgptPeer)]
        left_out = [f"{name}, without --peer_python" for name in arguments.against if name not in names]
        if not names:
            raise ValueError(f"no peer is left of {', '.join(arguments.against)}: give --peer_python")
        if any(isinstance(PEERS[name], LitgptPeer) for name in names):
            machine["versions"]["litgpt"] = litgpt_version(python)
        text, sizes = (arguments.text or bundled_text_path()).resolve(), SIZES[arguments.size]
        with tempfile.TemporaryDirectory(prefix="hf_gpt_scratch-") as name:
            task = PeerTask(Path(name), sizes, arguments.tokens, arguments.threads, python and python.absolute())
            prepare(text, task.folder, sizes["context"])
            results = train_rounds(text, task, names, arguments.rounds)
        refuse_larger_model(results, OURS)
        described = {"bytes": text.stat().st_size, "sha256": hashlib.sha256(text.read_bytes()).hexdigest()}
        setting = f"{text.name}, GPT-2's vocabulary, {arguments.size}, {arguments.tokens:,} tokens of a peer, "
        setting += f"{arguments.rounds} seeds"
        more = {"text": {"name": text.name, **described}, "left_out": left_out}
        yield build_report("time_to_loss_gpt2", setting, machine, results, limits=list(limits(results)), **more)


def train_rounds(text: Path, task: PeerTask, names: list[str], rounds: int) -> Results:
    """Train and score each peer and then ours, with a seed for each round; each round begins with another peer."""
    results: Results = {name: [] for name in [*names, OURS]}
    for index, name in enumerate(names):
        if isinstance(peer := PEERS[name], LitgptPeer):
            peer.warm_up(task, task.folder / f"warm-up-{index}")
    for seed in range(1, rounds + 1):
        for name in names[seed % len(names) :] + names[: seed % len(names)]:
            output = task.folder / f"peer-{names.index(name)}-{seed}"
            measurement, model = PEERS[name].train(task, output, seed)
            python = task.litgpt_python if isinstance(PEERS[name], LitgptPeer) else None
            results[name].append(with_score(measurement, model, text, "gpt2", task.sizes["context"], python))
        best = best_peer(results, seed - 1)
        minutes = AIMED_AT * PART_OF_TIME * results[best][-1].wall / 60
        output = task.folder / f"ours-{seed}"
        ours = train_ours(task.text, output, minutes, seed, task.threads, our_flags(task.sizes))
        scored = with_score(ours, output / "model", text, "gpt2", task.sizes["context"])
        results[OURS].append(scored)
    return results


def our_flags(sizes: dict[str, int]) -> dict[str, str]:
    """Return the flags that give ours the vocabulary and the size of the peers; `--minutes` chooses the rest."""
    names = {
        "num_hidden_layers": "layers",
        "hidden_size": "width",
        "num_attention_heads": "heads",
        "max_position_embeddings": "context",
    }
    return {"vocabulary": "gpt2", "use_cpu": "true"} | {flag: str(sizes[name]) for flag, name in names.items()}


def best_peer(results: Results, index: int) -> str:
    """Return the peer whose loss is the lowest in a round."""
    peers = [name for name in results if name != OURS]
    return min(peers, key=lambda name: results[name][index].details["loss"])


def limits(results: Results) -> Iterator[dict[str, Any]]:
    """Yield our loss beside the best peer's, and our time over that of the same peer, round by round."""
    rounds = [(ours, results[best_peer(results, index)][index]) for index, ours in enumerate(results[OURS])]
    behind = [ours.details["loss"] - peer.details["loss"] for ours, peer in rounds]
    yield describe_limit(f"loss in {PART_OF_TIME:g} of the best peer's time - the best peer's", behind, "at most", 0.0)
    parts = [ours.wall / peer.wall for ours, peer in rounds]
    yield describe_limit("its wall time / the best peer's", parts, "at most", PART_OF_TIME)
