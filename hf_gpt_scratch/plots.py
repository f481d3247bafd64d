"""The pictures of the chapter: loss curves, and next-token probabilities at several temperatures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hf_gpt_scratch.runtime.files import atomic_file


if TYPE_CHECKING:
    import torch


def loss_figure(
    epochs: Sequence[float], tokens_seen: Sequence[int], train_losses: Sequence[float], val_losses: Sequence[float]
) -> Figure:
    """Draw training (solid) and validation (dash-dotted) loss over epochs, with tokens seen as a second x axis.

    Args:
        epochs: place of each evaluation in epochs, such as 1.5.
        tokens_seen: tokens predicted in training before each evaluation.
        train_losses: nats per token.
        val_losses: nats per token.
    """
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    marker = "o" if len(epochs) < 3 else None  # a line through one point is invisible
    axes.plot(epochs, train_losses, marker=marker, label="training loss")
    axes.plot(epochs, val_losses, marker=marker, linestyle="-.", label="validation loss")
    axes.set_xlabel("epochs")
    axes.set_ylabel("loss in nats per token")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="upper right")
    token_axes = axes.twiny()
    token_axes.plot(tokens_seen, train_losses, alpha=0)  # invisible: it only gives the second axis its range
    token_axes.set_xlabel("tokens seen")
    return figure


def runs_figure(runs: Mapping[str, Sequence[Sequence[float]]], x: str) -> Figure:
    """Draw training (solid) and validation (dash-dotted) loss of several runs, a color for each.

    Args:
        runs: for each name places, training losses and validation losses, in nats per token.
        x: what the places are, such as "steps".
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for index, (name, (places, train_losses, val_losses)) in enumerate(runs.items()):
        marker = "o" if len(places) < 3 else None  # a line through one point is invisible
        color = f"C{index}" if len(runs) <= 10 else colormaps["viridis"](index / len(runs))
        axes.plot(places, train_losses, color=color, marker=marker, label=f"{name}: training")
        axes.plot(places, val_losses, color=color, marker=marker, linestyle="-.", label=f"{name}: validation")
    axes.set_xlabel(x)
    axes.set_ylabel("loss in nats per token")
    axes.legend(loc="upper right", fontsize="small")
    return figure


def probability_figure(
    probabilities: "Sequence[torch.Tensor]",
    names: Sequence[str],
    tokens: Sequence[str],
    bar_width: float = 0.15,
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
        with atomic_file(path) as unfinished:
            figure.savefig(unfinished, format=suffix, dpi=150)
        paths.append(path)
    return paths
