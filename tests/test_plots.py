"""Proves that the plots show what they say: curves, line styles, both axes, bars; and that files are whole."""

import resource
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hf_gpt_scratch.generation.decoding import next_token_probabilities
from hf_gpt_scratch.plots import LossCurves, loss_figure, probability_figure, runs_figure, save_figure


def test_loss_figure_has_both_curves_and_both_axes() -> None:
    figure = loss_figure(LossCurves([0, 1, 2], [9.0, 5.0, 1.0], [9.1, 6.0, 6.5]), tokens_per_epoch=20_000)
    axes, token_axes = figure.axes
    training, validation = axes.lines
    assert training.get_linestyle() == "-"
    assert validation.get_linestyle() == "-."
    assert list(training.get_ydata()) == [9.0, 5.0, 1.0]
    assert list(validation.get_ydata()) == [9.1, 6.0, 6.5]
    assert axes.get_xlabel() == "epochs"
    assert token_axes.get_xlabel() == "tokens seen"
    figure.canvas.draw()
    assert all(float(tick).is_integer() for tick in axes.get_xticks())
    # The two x axes agree: epoch 1 stands below 20,000 tokens, and these are called so.
    epoch_place = axes.transData.transform((1, 5.0))[0]
    assert abs(token_axes.transData.transform((20_000, 5.0))[0] - epoch_place) < 1
    assert {"0", "20k", "40k"} <= {label.get_text() for label in token_axes.get_xticklabels()}


def test_bits_per_byte_stand_on_the_right_where_they_are_known() -> None:
    """A validation loss of 6 nats per token stands as high as its 2 bits per byte."""
    curves = LossCurves([0, 1], [9.0, 5.0], [9.0, 6.0], bits_per_byte=1 / 3)
    figure = loss_figure(curves, tokens_per_epoch=20_000)
    figure.draw_without_rendering()
    axes = figure.axes[0]
    (bits_axes,) = axes.child_axes
    assert bits_axes.get_ylabel() == "validation loss in bits per byte"
    assert bits_axes.get_ylim() == pytest.approx([limit / 3 for limit in axes.get_ylim()])
    assert not loss_figure(replace(curves, bits_per_byte=None), 1.0).axes[0].child_axes


def test_runs_are_named_with_their_last_bits_per_byte() -> None:
    known = LossCurves([0, 1], [9.0, 5.0], [9.0, 6.0], bits_per_byte=1 / 3)
    axes = runs_figure({"own": known, "other": replace(known, bits_per_byte=None)}, "steps").axes[0]
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    expected = ["own: training", "own: validation, 2.000 bits per byte", "other: training", "other: validation"]
    assert names == expected


def test_each_step_stands_behind_the_evaluations() -> None:
    """Thin, with the mean of a fiftieth of the steps; two evaluations alone would be a straight line."""
    losses = [10.0 - step / 10 + step % 2 for step in range(100)]
    curves = LossCurves([0, 1], [10.0, 0.5], [10.0, 1.0], [step / 100 for step in range(100)], losses)
    training, validation, steps, means = loss_figure(curves, 1.0).axes[0].lines
    assert list(steps.get_ydata()) == losses
    assert means.get_ydata()[0] == losses[0]
    assert list(means.get_ydata())[1:5] == pytest.approx([sum(losses[:2]) / 2] + [
        sum(losses[end - 3 : end]) / 3 for end in (3, 4, 5)
    ])  # fmt: skip
    assert steps.get_linewidth() < means.get_linewidth() < training.get_linewidth()
    assert steps.get_zorder() == means.get_zorder() < min(training.get_zorder(), validation.get_zorder())
    assert steps.get_color() == means.get_color() == training.get_color()


def test_probability_figure_has_a_bar_for_each_token_and_distribution() -> None:
    scores = torch.tensor([4.51, 0.89, 6.75])
    rows = [next_token_probabilities(scores, temperature) for temperature in (1, 0.1, 5)]
    names = ["temperature 1", "temperature 0.1", "temperature 5"]
    figure = probability_figure(rows, names, ["closer", "every", "forward"])
    axes = figure.axes[0]
    heights = [bar.get_height() for container in axes.containers for bar in container]
    assert heights == torch.cat(rows).tolist()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == names


@pytest.mark.filterwarnings("error")
def test_many_distributions_have_room(tmp_path: Path) -> None:
    """Bars do not reach those of the next token, and the legend leaves room for the axes."""
    figure = probability_figure([torch.tensor([0.5, 0.5])] * 60, [f"temperature {i}" for i in range(60)], ["a", "b"])
    save_figure(figure, tmp_path / "bars", ("png",))
    bars = [bar for container in figure.axes[0].containers for bar in container]
    assert max(bar.get_x() + bar.get_width() for bar in bars[::2]) < min(bar.get_x() for bar in bars[1::2])
    assert len({bar.get_facecolor() for bar in bars}) > 50


def test_a_token_is_no_formula(tmp_path: Path) -> None:
    """GPT-2 has tokens of dollar signs, which would be read as the beginning and the end of one."""
    tokens = ["'$$'", "' $\\\\frac$'"]
    figure = probability_figure([torch.tensor([0.5, 0.5])], ["temperature 1"], tokens)
    save_figure(figure, tmp_path / "bars")
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == tokens


def test_figures_are_saved_as_png_and_pdf_and_replaced_whole(tmp_path: Path) -> None:
    (tmp_path / "loss.png").write_bytes(b"old")
    figure = loss_figure(LossCurves([0], [9.0], [9.1]), tokens_per_epoch=1.0)
    paths = save_figure(figure, tmp_path / "loss")
    assert paths[0].read_bytes().startswith(b"\x89PNG")
    assert paths[1].read_bytes().startswith(b"%PDF")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loss.pdf", "loss.png"]


@pytest.mark.parametrize("suffix", ["png", "pdf"])
def test_a_file_that_cannot_be_written_is_an_os_error(tmp_path: Path, suffix: str) -> None:
    """As on a full disk; written by matplotlib itself, a PDF ends in an AttributeError of its stream."""
    figure = loss_figure(LossCurves([0], [9.0], [9.1]), tokens_per_epoch=1.0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            save_figure(figure, tmp_path / "loss", (suffix,))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []
