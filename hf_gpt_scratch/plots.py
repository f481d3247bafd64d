"""Draw the pictures of the chapter: loss curves, and next-token probabilities at several temperatures."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from hf_gpt_scratch.runtime.files import atomic_file


if TYPE_CHECKING:
    import torch

TOKENS = EngFormatter(sep="")  # 10k, 1M


@dataclass(frozen=True)
class LossCurves:
    """The losses of a run, in nats per token, over steps, epochs or tokens."""

    places: Sequence[float]  # of the evaluations
    train_losses: Sequence[float]
    val_losses: Sequence[float]
    step_places: Sequence[float] = ()  # of the optimizer steps
    step_losses: Sequence[float] = ()
    bits_per_byte: float | None = None  # of a validation loss of one nat per token; None: not recorded


def loss_figure(curves: LossCurves, tokens_per_epoch: float) -> Figure:
    """Draw the losses of a run over epochs, with tokens predicted and bits per byte, where known, on axes opposite."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    draw_losses(axes, curves, "C0", "C1", "")
    axes.set_xlabel("epochs")
    axes.set_ylabel("loss in nats per token")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="upper right")
    token_axes = axes.twiny()
    left, right = axes.get_xlim()
    token_axes.set_xlim(left * tokens_per_epoch, right * tokens_per_epoch)
    token_axes.xaxis.set_major_formatter(TOKENS)
    token_axes.set_xlabel("tokens seen")
    if curves.bits_per_byte is not None:
        # To bits, and back.
        factor = curves.bits_per_byte
        bits_axes = axes.secondary_yaxis(
            "right", functions=(partial(np.multiply, factor), partial(np.multiply, 1 / factor))
        )
        bits_axes.set_ylabel("validation loss in bits per byte")
    return figure


def runs_figure(runs: Mapping[str, LossCurves], x: str) -> Figure:
    """Draw the losses of several runs, by name, a color for each; the legend has the last bits per byte, where known.

    Args:
        runs: the curves of each name.
        x: what they are over, such as "steps" or "tokens".
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for index, (name, curves) in enumerate(runs.items()):
        color = f"C{index}" if len(runs) <= 10 else colormaps["viridis"](index / len(runs))
        draw_losses(axes, curves, color, color, f"{name}: ")
    axes.set_xlabel(x)
    axes.set_ylabel("loss in nats per token")
    if x == "tokens":
        axes.xaxis.set_major_formatter(TOKENS)
    axes.legend(loc="upper right", fontsize="small")
    return figure


def draw_losses(axes: Axes, curves: LossCurves, train_color: Any, val_color: Any, prefix: str) -> None:
    """Draw training (solid) and validation (dash-dotted) loss, and behind them that of each step, with its mean."""
    line: dict[str, Any] = {"marker": "o"} if len(curves.places) < 3 else {}  # a line through one point is invisible
    axes.plot(curves.places, curves.train_losses, color=train_color, label=f"{prefix}training", **line)
    label = f"{prefix}validation"
    if prefix and curves.bits_per_byte is not None:  # vocabularies may differ, so that the runs have no axis in common
        label += f", {curves.bits_per_byte * curves.val_losses[-1]:.3f} bits per byte"
    axes.plot(curves.places, curves.val_losses, color=val_color, linestyle="-.", label=label, **line)
    if curves.step_places:
        behind: dict[str, Any] = {"color": train_color, "zorder": 1}
        axes.plot(curves.step_places, curves.step_losses, alpha=0.2, linewidth=0.6, **behind)
        means = running_means(curves.step_losses, 1 + len(curves.step_losses) // 50)
        mean_label = None if prefix else "each step, running mean"
        axes.plot(curves.step_places, means, alpha=0.5, linewidth=1, label=mean_label, **behind)


def running_means(values: Sequence[float], window: int) -> list[float]:
    """Return the mean of each value and those before it, `window` of them where there are so many."""
    sums = [0.0, *accumulate(values)]
    return [(sums[end] - sums[max(0, end - window)]) / min(end, window) for end in range(1, len(sums))]


def probability_figure(
    probabilities: "Sequence[torch.Tensor]", names: Sequence[str], tokens: Sequence[str], bar_width: float = 0.15
) -> Figure:
    """Draw, for each token, one bar per distribution.

    Args:
        probabilities: one tensor [V] per distribution, over `tokens`.
        names: of the distributions, such as "temperature 0.1".
        tokens: the V names under the bars.
        bar_width: width of a bar, less where there are many; the tokens stand 1 apart.
    """
    legend_rows = -(-len(names) // 2)
    figure = Figure(figsize=(6, 3.5 + 0.3 * max(0, legend_rows - 2)), layout="constrained")
    axes = figure.subplots()
    bar_width = min(bar_width, 0.9 / len(names))  # not over those of the next token
    for index, (name, row) in enumerate(zip(names, probabilities, strict=True)):
        places = [place + index * bar_width for place in range(len(tokens))]
        color = f"C{index}" if len(names) <= 10 else colormaps["viridis"](index / len(names))
        axes.bar(places, row.tolist(), bar_width, label=name, color=color)
    middle = (len(names) - 1) * bar_width / 2
    places = [place + middle for place in range(len(tokens))]
    axes.set_xticks(places, tokens, rotation=90, parse_math=False)  # a token such as $$ is not a formula
    axes.set_ylabel("probability")
    figure.legend(loc="outside upper center", ncols=2)  # not over the bars
    return figure


def save_figure(figure: Figure, stem: Path, suffixes: Sequence[str] = ("png", "pdf")) -> list[Path]:
    """Write `stem`.png and `stem`.pdf; each replaces the one before only when it is complete."""
    paths = []
    for suffix in suffixes:
        path = stem.with_name(f"{stem.name}.{suffix}")
        # In memory first: on a full disk matplotlib's PDF writer fails with an AttributeError.
        drawn = io.BytesIO()
        figure.savefig(drawn, format=suffix, dpi=150)
        with atomic_file(path) as unfinished:
            unfinished.write_bytes(drawn.getvalue())
        paths.append(path)
    return paths
