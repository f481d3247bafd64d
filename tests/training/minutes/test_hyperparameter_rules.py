"""Proves the rules of `--minutes`: by hand where a formula says it, else that more never gives less."""

import pytest

from hf_gpt_scratch.training.minutes.hyperparameter_rules import (
    Budget,
    context_length,
    dropout_for,
    heads_for,
    model_shape,
    peak_rate,
    vocabulary_size,
    windows_a_step,
)


def long_text(flops: float) -> Budget:
    return Budget(10**12, "", flops)


@pytest.mark.parametrize("flops", [1e11, 1e13, 1e15, 1e17])
def test_more_compute_trains_larger_models(flops: float) -> None:
    (layers, width), (more_layers, more_width) = model_shape(long_text(flops)), model_shape(long_text(30 * flops))
    assert layers <= more_layers
    assert width < more_width
    assert model_shape(long_text(flops), layers=3)[0] == 3
    for heads in (5, 999, 10007):
        assert model_shape(long_text(flops), heads=heads)[1] % heads == 0, "a multiple of the heads that are given"


@pytest.mark.parametrize(("flops", "shape"), [(1e13, (2, 64)), (3e13, (2, 96)), (2.4e17, (8, 512))])
def test_the_layers_have_a_twentieth_of_the_tokens_as_parameters(flops: float, shape: tuple[int, int]) -> None:
    """By hand: a quarter of 3e13 FLOPs are 6 x 250,000 x 5,000,000; two layers of 96 have 221,184 parameters."""
    assert model_shape(long_text(flops)) == shape


def test_a_short_text_gets_a_small_model_on_a_fast_card() -> None:
    """As nanoGPT's recipe of a card: 6 layers of 384 for the 1.1 MB of Tiny Shakespeare."""
    assert model_shape(Budget(1_115_394, "", 1e18)) == (6, 384)


@pytest.mark.parametrize(("width", "heads"), [(64, 2), (96, 3), (100, 2), (256, 4), (288, 6), (768, 12)])
def test_heads_are_32_or_64_wide(width: int, heads: int) -> None:
    assert heads_for(width) == heads


@pytest.mark.parametrize(("passes", "dropout"), [(0.1, 0.0), (3, 0.0), (6, 0.1), (12, 0.2), (1e6, 0.6)])
def test_more_passes_drop_more(passes: float, dropout: float) -> None:
    assert dropout_for(passes) == dropout


def test_more_text_and_larger_models_get_more_tokens() -> None:
    by_text = [vocabulary_size(Budget(10**digits, "", 1e13), 12, 768) for digits in range(1, 13)]
    by_model = [vocabulary_size(Budget(10**12, "", 1e13), 2, width) for width in range(32, 1600, 32)]
    for sizes in (by_text, by_model):
        assert sizes == sorted(sizes)
        assert len(set(sizes)) >= 4
        assert all(size == 2 ** (size.bit_length() - 1) for size in sizes)


@pytest.mark.parametrize(("scale", "context"), [(0.01, 64), (1, 64), (16, 128), (256, 256), (1e9, 1024)])
def test_more_compute_reads_more_context(scale: float, context: int) -> None:
    assert context_length(scale) == context


def test_steps_grow_and_rates_fall() -> None:
    """768 tokens and 0.02 up to a core-minute; a thousand times as much: 9.58 times the tokens, 0.42 of the rate."""
    assert [windows_a_step(scale, 64) for scale in (0.1, 1)] == [12, 12]
    assert windows_a_step(1000, 64) == pytest.approx(12 * 9.577, rel=1e-3)
    assert [peak_rate(scale) for scale in (0.1, 1, 1000)] == [0.02, 0.02, 0.0084]
