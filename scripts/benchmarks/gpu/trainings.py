"""Time to loss: nanoGPT's recipe for one GPU on Tiny Shakespeare, then ours in 0.4 of its time.

The times are those of the whole commands, with imports, compiling, evaluations and results. Both models are scored by
the same code on the last tenth of the text. Where there is no nanoGPT, ours trains for 0.4 of the published time.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from scripts.benchmarks.measuring import Measurement, describe_limit
from scripts.benchmarks.time_to_loss import (
    NANOGPT,
    OURS,
    OURS_FLAGS,
    prepare_nanogpt,
    refuse_larger_model,
    train_nanogpt,
    train_ours,
    with_score,
)

from .plan import Plan
from .record import MissingError, Outcome


PART_OF_TIME, MOST_TIME = 0.4, 0.42  # the bound of our run, and where it is judged: it ends after a step
PUBLISHED_LOSS, PUBLISHED_SECONDS = 1.4697, 180.0  # nanoGPT's README, on an A100
CONTEXT = "256"
# No more parameters than nanoGPT's model of 10.6 million, as wide as its heads of 64 allow. Not tuned on any GPU.
GPU_FLAGS = {
    "hidden_size": "448",
    "num_hidden_layers": "4",
    "num_attention_heads": "7",
    "max_position_embeddings": CONTEXT,
    "per_device_train_batch_size": "64",
    "dropout": "0.2",
    "mixed_precision": "bf16",
    "use_cpu": "false",
}


def items(plan: Plan, folder: Path) -> dict[str, Callable[[], Outcome]]:
    """Return the one item."""
    return {"the loss of nanoGPT's recipe": partial(compare_trainings, plan, folder)}


def compare_trainings(plan: Plan, folder: Path) -> Outcome:
    """Train and score both."""
    if plan.text is None:
        raise MissingError("the text, without --text")
    text, flags = Path(plan.text), OURS_FLAGS | GPU_FLAGS | plan.text_options
    context = int(flags["max_position_embeddings"])
    target, seconds, peer = PUBLISHED_LOSS, PUBLISHED_SECONDS, None
    if plan.nanogpt:
        copied = prepare_nanogpt(Path(plan.nanogpt), text, folder)
        trained = train_nanogpt(copied, 1, plan.threads, plan.nanogpt_options)
        peer = with_score(trained, copied / "model-1", text, "characters", context)
        target, seconds = peer.details["loss"], peer.wall
    output = folder / "trained"
    ours = train_ours(text, output, PART_OF_TIME * seconds / 60, 1, plan.threads, flags)
    return outcome_of(with_score(ours, output / "model", text, "bytes", context), peer, target, seconds)


def outcome_of(ours: Measurement, peer: Measurement | None, target: float, seconds: float) -> Outcome:
    """Return lines, figures and the two limits: our loss less nanoGPT's, and our part of its time.

    Raises:
        ValueError: ours is the larger model, or other tokens were scored.
    """
    if peer:
        refuse_larger_model({NANOGPT: [peer], OURS: [ours]})
    name = "nanoGPT" if peer else "nanoGPT, as published for an A100, not run here"
    size = f", {peer.details['parameters']:,} parameters" if peer else ""
    lines = [
        f"ours: loss {ours.details['loss']} in {ours.wall:.0f} s, {ours.details['parameters']:,} parameters",
        f"{name}: loss {target} in {seconds:.0f} s{size}",
    ]
    limits = [
        describe_limit("loss - nanoGPT's", [ours.details["loss"] - target], "at most", 0.0),
        describe_limit("wall time / nanoGPT's", [ours.wall / seconds], "at most", MOST_TIME),
    ]
    return Outcome(lines, {"ours": vars(ours), "nanoGPT": peer and vars(peer)}, limits)
