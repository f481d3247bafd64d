"""Proves the FLOPs of a token against PyTorch's own counter, and the MFU, also where the measured peak is too low."""

from collections.abc import Callable

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hf_gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
from hf_gpt_scratch.training import build
from hf_gpt_scratch.training.loop import train
from hf_gpt_scratch.training.reporting.mfu import ModelFlops, flops_per_token
from hf_gpt_scratch.training.settings import TrainingSettings
from hf_gpt_scratch.training.speed import Speed
from tests.training.histories import rows


@pytest.mark.parametrize("tied", [True, False])
def test_flops_are_those_that_pytorch_counts(tied: bool) -> None:
    """All matrix products of forward and backward; biases and LayerNorms make up the rest."""
    config = GPTScratchConfig(
        hidden_size=128, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=96, vocab_size=1000
    )
    config.tie_word_embeddings = tied
    model = GPTScratchForCausalLM._from_config(config, attn_implementation="eager")
    ids = torch.randint(0, 1000, (2, 64))
    with FlopCounterMode(display=False) as counter:
        model(ids, labels=ids).loss.backward()
    expected = counter.get_total_flops() / ids.numel()
    assert flops_per_token(model, 64) == pytest.approx(expected, rel=0.02)
    assert abs(6 * model.num_parameters() / expected - 1) > 0.04  # the control: 6N over all parameters, no attention


def test_utilization_is_speed_times_cost_over_peak() -> None:
    assert ModelFlops(per_token=6e8, peak=3e11).utilization(100) == pytest.approx(0.2)


def test_peak_is_measured_again_where_a_step_is_faster_and_raised_only_if_it_still_is() -> None:
    again = iter([4e11, 3e11, 3e11])
    flops = ModelFlops(per_token=1e9, peak=1e11, measure=lambda: next(again))
    assert flops.utilization(50) == pytest.approx(0.5)  # not measured: the step is slower
    assert flops.utilization(200) == pytest.approx(0.5)
    assert (flops.peak, flops.is_raised) == (4e11, False)
    assert flops.utilization(500) == 1  # a lower peak is no better one
    assert (flops.peak, flops.is_raised) == (5e11, True)
    assert [flops.utilization(speed) for speed in (600, 700)] == [1, 1]  # and no fourth time
    assert (flops.peak, next(again, None)) == (7e11, None)


def test_run_measures_a_peak_of_a_bad_moment_again(
    tiny_settings: Callable[..., TrainingSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = iter([1e3, 1e15])
    monkeypatch.setattr(build, "measure_peak_flops", lambda *arguments: next(measured))
    settings = tiny_settings(peak_flops=None, max_steps=1, warmup_steps=0, sample_tokens=0)
    train(settings)
    assert rows(settings.output_dir, "run")[0]["peak_flops"] == 1e15
    assert rows(settings.output_dir, "step")[0]["mfu"] < 0.01


def test_step_that_is_faster_has_the_peak_measured_again_and_says_so(
    tiny_settings: Callable[..., TrainingSettings],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    measured = iter([1e6, 1e15])  # a micro-batch that takes very long does not show that the first is wrong
    monkeypatch.setattr(build, "measure_peak_flops", lambda *arguments: next(measured))
    monkeypatch.setattr(build, "measure_speed", lambda *arguments: Speed(micro_batch=1e6))
    settings = tiny_settings(peak_flops=None, max_steps=2, sample_tokens=0, warmup_steps=0)
    train(settings)
    output = capsys.readouterr().err
    assert output.count("GFLOP/s, more than the peak of the start: it is 1,000,000 measured again") == 1


def test_history_has_the_figures_of_the_bar(tiny_settings: Callable[..., TrainingSettings]) -> None:
    settings = tiny_settings(peak_flops=1e12, max_steps=3, warmup_steps=0)
    train(settings)
    begin = rows(settings.output_dir, "run")[0]
    steps = rows(settings.output_dir, "step")
    assert begin["peak_flops"] == 1e12
    for row in steps:
        expected = row["tokens_per_second"] * begin["flops_per_token"] / 1e12
        assert row["mfu"] == pytest.approx(expected, abs=1e-4)
        assert 1e8 < row["peak_memory_bytes"] < 1e11
    left = [row["seconds_left"] for row in steps]
    assert left[0] > left[-1] > 0  # after the last step evaluation, checkpoint and result are still to come


def test_step_faster_than_the_peak_raises_it_and_says_so_once(
    tiny_settings: Callable[..., TrainingSettings], capsys: pytest.CaptureFixture
) -> None:
    settings = tiny_settings(peak_flops=1e6)
    train(settings)
    steps = rows(settings.output_dir, "step")
    speeds = [row["tokens_per_second"] for row in steps]
    expected = [speed / max(speeds[: index + 1]) for index, speed in enumerate(speeds)]
    assert [row["mfu"] for row in steps] == pytest.approx(expected, abs=1e-3)
    output = capsys.readouterr().err
    assert output.count("more than the peak of the start: the MFU is from now on that of the fastest step") == 1
    assert (
        f"step 1 reached {speeds[0] * rows(settings.output_dir, 'run')[0]['flops_per_token'] / 1e9:,.0f} GF" in output
    )
