"""Time to loss: nanoGPT's recipe for one GPU on Tiny Shakespeare, and ours in 0.4 of its time.

The times are those of the whole commands, with imports, compiling, evaluations and results. Both models are scored by
the same code on the last tenth of the text. How long nanoGPT takes on this card is told by its beginning, up to its
first evaluation after the start; ours trains then, and nanoGPT's whole recipe comes last, as the time may end. Until
that is done, its loss is the published one. Where there is no nanoGPT, so is its time.
"""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median

from scripts.benchmarks.measuring import Measurement, describe_limit
from scripts.benchmarks.time_to_loss import (
    NANOGPT,
    OURS,
    OURS_FLAGS,
    prepare_nanogpt,
    refuse_larger_model,
    run_nanogpt,
    train_nanogpt,
    train_ours,
    with_score,
)

from .parts import Item
from .plan import Plan
from .record import MissingError, Outcome


PART_OF_TIME, BOUND = 0.4, 0.38  # the part of nanoGPT's time that is judged, and that we are given
PUBLISHED_LOSS, PUBLISHED_SECONDS = 1.4697, 180.0  # nanoGPT's README, on an A100
CONTEXT = "256"
ITERATIONS = {"max_iters": "5000", "eval_interval": "250", "log_interval": "10"}  # of nanoGPT's own file
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


def items(plan: Plan, folder: Path) -> dict[str, Item]:
    """Return the one item."""
    return {"the loss of nanoGPT's recipe": partial(compare_trainings, plan, folder)}


def compare_trainings(plan: Plan, folder: Path) -> Iterator[Outcome]:
    """Train and score ours, then nanoGPT's.

    Yields:
        What is known after each training.

    Raises:
        MissingError: there is no text.
    """
    if plan.text is None:
        raise MissingError("the text, without --text")
    text, flags = Path(plan.text), OURS_FLAGS | GPU_FLAGS | plan.text_options
    context, seconds = int(flags["max_position_embeddings"]), PUBLISHED_SECONDS
    if plan.nanogpt:
        recipe = ITERATIONS | plan.nanogpt_options
        copied = prepare_nanogpt(Path(plan.nanogpt), text, folder)
        beginning = run_nanogpt(copied, 0, plan.threads, recipe | {"max_iters": recipe["eval_interval"]})
        log = (copied / "out-0" / "log").read_text(encoding="utf-8")
        seconds = whole_seconds(beginning.wall, log, int(recipe["max_iters"]), int(recipe["eval_interval"]))
        yield Outcome([f"nanoGPT: {seconds:.0f} s by its first {recipe['eval_interval']} iterations"])
    output = folder / "trained"
    trained = train_ours(text, output, BOUND * seconds / 60, 1, plan.threads, flags)
    ours = with_score(trained, output / "model", text, "bytes", context)
    yield outcome_of(ours, None, PUBLISHED_LOSS, seconds)
    if plan.nanogpt:
        whole = train_nanogpt(copied, 1, plan.threads, recipe)
        peer = with_score(whole, copied / "model-1", text, "characters", context)
        yield outcome_of(ours, peer, peer.details["loss"], peer.wall)


def whole_seconds(wall: float, log: str, iterations: int, interval: int) -> float:
    """Return the seconds of nanoGPT's whole run by its beginning, up to its first evaluation after the start.

    Args:
        wall: seconds of the beginning.
        log: that it has printed; the time of an iteration with an evaluation has both.
        iterations: of the whole run.
        interval: iterations from one evaluation to the next.
    """
    times = {int(number): float(ms) / 1e3 for number, ms in re.findall(r"^iter (\d+): .* time ([\d.]+)ms", log, re.M)}
    usual = median(seconds for number, seconds in times.items() if number % interval)
    evaluation = times[interval] - usual
    return wall + (iterations - interval) * usual + (iterations // interval - 1) * evaluation


def outcome_of(ours: Measurement, peer: Measurement | None, target: float, seconds: float) -> Outcome:
    """Return lines, figures and the two limits: our loss less nanoGPT's, and our part of its time.

    Raises:
        ValueError: ours is the larger model, or other tokens were scored.
    """
    if peer:
        refuse_larger_model({NANOGPT: [peer], OURS: [ours]})
    name = "nanoGPT" if peer else "nanoGPT (not run to its end here, its loss as published)"
    size = f", {peer.details['parameters']:,} parameters" if peer else ""
    lines = [
        f"ours: loss {ours.details['loss']} in {ours.wall:.0f} s, {ours.details['parameters']:,} parameters",
        f"{name}: loss {target} in {seconds:.0f} s{size}",
    ]
    limits = [
        describe_limit("loss - nanoGPT's", [ours.details["loss"] - target], "at most", 0.0),
        describe_limit("wall time / nanoGPT's", [ours.wall / seconds], "at most", PART_OF_TIME),
    ]
    return Outcome(lines, {"ours": vars(ours), "nanoGPT": peer and vars(peer), "seconds": seconds}, limits)
