"""Proves the limits of the trainings by hand, and that our model is not the larger one."""

from dataclasses import replace

import pytest

from hf_gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
from scripts.benchmarks.gpu.plan import FULL
from scripts.benchmarks.gpu.record import MissingError
from scripts.benchmarks.gpu.trainings import GPU_FLAGS, compare_trainings, outcome_of, whole_seconds
from scripts.benchmarks.measuring import Measurement


def trained(loss, wall):
    return Measurement(1.0, wall, 1.0, {"loss": loss, "parameters": 10, "scored tokens": 99})


@pytest.mark.parametrize(("loss", "wall", "met"), [(1.46, 40.0, [True, True]), (1.48, 40.1, [False, False])])
def test_limits(loss, wall, met):
    outcome = outcome_of(trained(loss, wall), trained(1.47, 100.0), 1.47, 100.0)
    assert [limit["met"] for limit in outcome.limits] == met
    assert outcome.lines[1] == "nanoGPT: loss 1.47 in 100 s, 10 parameters"


def test_other_tokens_are_no_comparison():
    other = replace(trained(1.4, 40.0), details={"loss": 1.4, "parameters": 10, "scored tokens": 98})
    with pytest.raises(ValueError, match="another task"):
        outcome_of(other, trained(1.47, 100.0), 1.47, 100.0)


def test_a_published_figure_is_called_so():
    assert "its loss as published" in outcome_of(trained(1.4, 70.0), None, 1.4697, 180.0).lines[1]


def test_our_model_is_not_larger_than_that_of_the_recipe():
    """Six layers of 384 without biases and a row for each of 65 characters."""
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
    config = GPTScratchConfig(vocab_size=257, **{name: int(GPU_FLAGS[name]) for name in names})
    model = GPTScratchForCausalLM(config)
    ours = model.num_parameters() - model.model.embed_positions.weight.numel()
    assert ours <= 6 * (12 * 384**2 + 2 * 384) + 384 + 65 * 384


def test_without_a_text_it_is_left_out(tmp_path):
    with pytest.raises(MissingError, match="without --text"):
        list(compare_trainings(FULL, tmp_path))


def test_the_whole_time_by_hand():
    """20 ms an iteration, 3 s more with an evaluation: at 0, which is part of the beginning, and 20 times after it."""
    plain = "".join(f"iter {number}: loss 2.5, time 20.00ms, mfu 1.00%\n" for number in range(10, 250, 10))
    log = f"step 0: train loss 4.2, val loss 4.2\niter 0: loss 4.2, time 30000.00ms, mfu -100.00%\n{plain}"
    log += "step 250: train loss 2.4, val loss 2.4\niter 250: loss 2.4, time 3020.00ms, mfu 1.00%\n"
    assert whole_seconds(50.0, log, 5000, 250) == pytest.approx(50 + 4750 * 0.02 + 19 * 3)
