"""Proves the losses: against PyTorch's definition, against the tutorial's worked example, and for any batching."""

import math
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from torch.utils.data import DataLoader

from hf_gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM, evaluation
from hf_gpt_scratch.data.tokenizer import build_tokenizer, load_encoding, text_to_token_ids
from hf_gpt_scratch.data.vocabulary import named_vocabulary
from hf_gpt_scratch.data.vocabulary_folder import load_vocabulary
from hf_gpt_scratch.data.windows import TokenWindows, build_loader
from hf_gpt_scratch.evaluation import (
    LossSum,
    bits_per_byte,
    cross_entropy,
    evaluate_text,
    evaluation_mode,
    mean_token_bytes,
    perplexity,
    sum_losses,
)
from hf_gpt_scratch.model import linear_cross_entropy
from hf_gpt_scratch.model.linear_cross_entropy import use_fused_loss
from hf_gpt_scratch.training.optim import reset_to_torch_defaults


@pytest.fixture(scope="module")
def tutorial_model() -> GPTScratchForCausalLM:
    """The tutorial's untrained model: GPT_CONFIG_124M as printed there, an untied head, seed 123."""
    config = GPTScratchConfig(
        vocab_size=50257,
        context_length=256,
        emb_dim=768,
        n_heads=12,
        n_layers=12,
        drop_rate=0.1,
        qkv_bias=False,
        tie_word_embeddings=False,
        hidden_act="gelu_new",
    )
    model = GPTScratchForCausalLM(config).eval()
    torch.manual_seed(123)
    reset_to_torch_defaults(model)
    return model


def test_tutorial_weights_are_drawn_in_the_tutorial_order(tutorial_model: GPTScratchForCausalLM) -> None:
    """The fingerprints were read from the tutorial's own model after seed 123."""
    model = tutorial_model.model
    fingerprints = {
        model.embed_tokens.weight: [0.3373701870441437, -0.1777772158384323, -0.3035275936126709],
        model.embed_positions.weight: [0.8768733143806458, 0.25502535700798035, 0.8441239595413208],
        model.layers[0].self_attn.q_proj.weight: [0.02834736742079258, -0.03321906924247742, 0.01250658929347992],
        tutorial_model.lm_head.weight: [-0.028531109914183617, -0.0213463231921196, -0.0034006601199507713],
    }
    for weight, values in fingerprints.items():
        assert weight[0, :3].tolist() == values
    assert tutorial_model.num_parameters() == 162_419_712


def test_worked_example_of_the_tutorial(tutorial_model: GPTScratchForCausalLM) -> None:
    """Probabilities, log-probabilities, cross-entropy 10.7940 and perplexity 48725.8 as printed in the chapter."""
    inputs = torch.tensor([[16833, 3626, 6100], [40, 1107, 588]])
    targets = torch.tensor([[3626, 6100, 345], [1107, 588, 11311]])
    with torch.no_grad():
        logits = tutorial_model(inputs).logits
    assert logits.shape == (2, 3, 50257)
    assert logits.argmax(-1).tolist() == [[16657, 339, 42826], [49906, 29669, 41751]]
    log_probabilities = logits.log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    printed = torch.tensor([[7.4541e-05, 3.1061e-05, 1.1563e-05], [1.0337e-05, 5.6776e-05, 4.7559e-06]])
    torch.testing.assert_close(log_probabilities.exp(), printed, rtol=1e-4, atol=0)
    printed = torch.tensor([[-9.5042, -10.3796, -11.3677], [-11.4798, -9.7764, -12.2561]])
    torch.testing.assert_close(log_probabilities, printed, rtol=0, atol=5e-5)
    loss = cross_entropy(logits, targets)
    assert loss.item() == pytest.approx(10.7940, abs=5e-5)
    assert -log_probabilities.mean().item() == pytest.approx(loss.item(), abs=1e-5)
    assert perplexity(loss.item()) == pytest.approx(48725.8203, abs=0.05)
    # The chapter's older printing had another second target; the comparison above would have caught it.
    assert cross_entropy(logits, torch.tensor([[3626, 6100, 345], [588, 428, 11311]])).item() == pytest.approx(
        10.7722, abs=5e-5
    )


def test_initial_text_of_the_tutorial(tutorial_model: GPTScratchForCausalLM) -> None:
    prompt_ids = text_to_token_ids("Every effort moves you")
    token_ids = tutorial_model.generate(
        prompt_ids, attention_mask=torch.ones_like(prompt_ids), max_new_tokens=10, do_sample=False
    )
    text = build_tokenizer().decode(token_ids[0])
    assert text == "Every effort moves you rentingetic wasnم refres RexMeCHicular stren"


@pytest.mark.parametrize("name", ["gpt2", "bytes", "own"])
def test_bits_per_byte_of_tokens_are_those_of_their_text(own_vocabulary: Path, name: str) -> None:
    vocabulary = load_vocabulary(str(own_vocabulary) if name == "own" else name)
    text = "The lamp² went <|endoftext|>über 日本 " * 9
    encoding = load_encoding(vocabulary)
    token_ids = text_to_token_ids(text, encoding)[0]
    predicted = text.encode()[len(encoding.decode_single_token_bytes(int(token_ids[0]))) :]
    mean = mean_token_bytes(token_ids, vocabulary)
    assert mean == pytest.approx(len(predicted) / (len(token_ids) - 1))
    nats = 2.5 * (len(token_ids) - 1)
    assert bits_per_byte(2.5, mean) == pytest.approx(nats / math.log(2) / len(predicted))


def test_bytes_of_a_long_text_are_counted_in_parts_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token of one byte, then in the second half one of three: the parts are spread over both."""
    monkeypatch.setattr(evaluation, "COUNTED_STRETCHES", 8)
    monkeypatch.setattr(evaluation, "STRETCH_TOKENS", 10)
    vocabulary = named_vocabulary("gpt2")
    short, long = (vocabulary.ids[token] for token in ("a", "the"))
    assert mean_token_bytes(torch.tensor([long] + [short] * 500 + [long] * 500), vocabulary) == 2


def test_perplexity_is_infinite_rather_than_an_error() -> None:
    assert perplexity(0.0) == 1.0
    assert perplexity(1e6) == math.inf
    assert math.isnan(LossSum(0.0, 0).mean)


def test_standard_error_is_that_of_the_mean_of_the_batches() -> None:
    losses = [2.0, 3.5, 2.5, 4.0, 3.0]
    total = sum((LossSum(loss * 7, 7, loss**2 * 7, 1) for loss in losses), LossSum(0.0, 0))
    expected = torch.tensor(losses).std().item() / math.sqrt(5)
    assert total.standard_error == pytest.approx(expected, rel=1e-6)
    assert math.isnan(LossSum(14.0, 7, 28.0, 1).standard_error)


@pytest.fixture
def tiny_model(tiny_config: GPTScratchConfig) -> GPTScratchForCausalLM:
    torch.manual_seed(0)
    return GPTScratchForCausalLM(tiny_config)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 64])
def test_mean_loss_does_not_depend_on_the_batch_size(tiny_model: GPTScratchForCausalLM, batch_size: int) -> None:
    token_ids = torch.randint(0, 101, (83,), generator=torch.Generator().manual_seed(1))
    loader = build_loader(TokenWindows(token_ids, 16), batch_size)
    total = sum_losses(tiny_model, loader)
    assert total.num_tokens == 82
    one_by_one = sum_losses(tiny_model, build_loader(TokenWindows(token_ids, 16), 1))
    assert total.mean == pytest.approx(one_by_one.mean, rel=1e-6)


@pytest.mark.parametrize(("num_together", "sizes"), [(2, [4, 2]), (3, [6]), (99, [6])])
def test_batches_that_pass_together_are_summed_as_they_were(
    tiny_model: GPTScratchForCausalLM, num_together: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean and the standard error of batches one by one, in fewer calls of the model."""
    use_fused_loss(tiny_model)
    token_ids = torch.randint(0, 101, (83,), generator=torch.Generator().manual_seed(1))
    loader = build_loader(TokenWindows(token_ids, 16), 2)
    one_by_one = sum_losses(tiny_model, loader, skip_logits=True)
    calls: list[int] = []
    hook = lambda module, _, kwargs: calls.append(len(kwargs["input_ids"]))  # noqa: E731
    tiny_model.register_forward_pre_hook(hook, with_kwargs=True)
    together = sum_losses(tiny_model, loader, skip_logits=True, num_together=num_together)
    assert calls == sizes
    assert (together.num_tokens, together.num_batches) == (82, 3)
    assert together.mean == pytest.approx(one_by_one.mean, rel=1e-6)
    assert together.standard_error == pytest.approx(one_by_one.standard_error, rel=1e-4)
    # A head that is more than a matrix gives only the mean of all.
    monkeypatch.setattr(linear_cross_entropy, "is_plain_matrix", lambda head: False)
    mean_alone = sum_losses(tiny_model, loader, skip_logits=True, num_together=num_together)
    assert mean_alone.mean == pytest.approx(one_by_one.mean, rel=1e-6)
    assert (mean_alone.num_tokens, mean_alone.num_batches) == (82, len(sizes))


def test_mean_of_batch_means_would_be_wrong(tiny_model: GPTScratchForCausalLM) -> None:
    """The control: the uneven tail must weigh less, and it does make a difference that the test above would see."""
    token_ids = torch.randint(0, 101, (83,), generator=torch.Generator().manual_seed(1))
    loader = build_loader(TokenWindows(token_ids, 16), 1)
    with evaluation_mode(tiny_model):
        means = [tiny_model(**batch, use_cache=False).loss.item() for batch in loader]
    assert sum(means) / len(means) != pytest.approx(sum_losses(tiny_model, loader).mean, rel=1e-5)


def test_evaluation_mode_puts_the_training_flag_back(tiny_model: GPTScratchForCausalLM) -> None:
    tiny_model.train()
    with evaluation_mode(tiny_model):
        assert not tiny_model.training
        assert not torch.is_grad_enabled()
    assert tiny_model.training
    with pytest.raises(ValueError, match="exactly one"), evaluation_mode(tiny_model):
        tiny_model()
    assert tiny_model.training
    assert torch.is_grad_enabled()


def test_text_evaluation_scores_every_token_with_full_context() -> None:
    """Against a loop that scores one token at a time with the context that its window gives it."""
    torch.manual_seed(0)
    config = GPTScratchConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=8)
    model = GPTScratchForCausalLM(config).eval()
    tokenizer = build_tokenizer(8)
    text = "The lamp went round, and the sea went by, and nobody slept."
    result = evaluate_text(model, text, tokenizer, batch_size=2)

    token_ids = [tokenizer.bos_token_id, *tokenizer.encode(text)]
    nats = 0.0
    for place in range(1, len(token_ids)):
        first = (place - 1) // 8 * 8
        if first + 8 > len(token_ids) - 1:  # the last window reaches back
            first = len(token_ids) - 1 - 8
        with torch.no_grad():
            logits = model(torch.tensor([token_ids[first:place]])).logits[0, -1]
        nats -= torch.log_softmax(logits, -1)[token_ids[place]].item()
    assert result.num_tokens == len(token_ids) - 1
    assert result.loss == pytest.approx(nats / result.num_tokens, rel=1e-5)
    assert result.perplexity == pytest.approx(math.exp(nats / result.num_tokens), rel=1e-4)
    assert result.bits_per_byte == pytest.approx(nats / math.log(2) / len(text), rel=1e-5)
    with pytest.raises(ValueError, match="--block_size 9 is longer than the context of the model, 8 tokens"):
        evaluate_text(model, text, tokenizer, block_size=9)


@pytest.fixture(scope="module")
def text_model() -> GPTScratchForCausalLM:
    """A model with GPT-2's vocabulary."""
    torch.manual_seed(0)
    config = GPTScratchConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=8)
    return GPTScratchForCausalLM(config).eval()


TEXT = "\tThe lamp went round,  and  the sea went by<|endoftext|> Nobody\n\n  slept. \u00e4\u00f6 12345 don't\n" * 3


@pytest.mark.parametrize("length", [*range(1, 60, 7), len(TEXT)])
def test_a_text_in_blocks_is_scored_as_the_whole_text_in_one_row(
    text_model: GPTScratchForCausalLM, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    """To the last bit, with the batches of a plain loader over all windows, whatever blocks and pieces."""
    tokenizer, text = build_tokenizer(8), TEXT[:length]
    token_ids = torch.tensor([tokenizer.bos_token_id, *tokenizer.encode(text)])
    expected = sum_losses(text_model, DataLoader(TokenWindows(token_ids, 8), 3), skip_logits=True)
    for piece_chars in (20, 1000):
        monkeypatch.setattr(evaluation, "PIECE_CHARS", piece_chars)
        blocks = (text[start : start + 5] for start in range(0, length, 5))
        scored: list[int] = []
        result = evaluate_text(text_model, blocks, tokenizer, batch_size=3, show_progress=scored.append)
        assert (result.loss, result.num_tokens) == (expected.mean, expected.num_tokens)
        assert result.num_bytes == len(text.encode()) == scored[-1]
        assert scored == sorted(scored)
        assert len(scored) == -(-len(TokenWindows(token_ids, 8)) // 3)


def test_batch_is_not_filled_up(text_model: GPTScratchForCausalLM) -> None:
    """A million windows at once, of a text that has few, once took a million windows' memory."""
    rows = []

    def count(module: torch.nn.Module, inputs: tuple, kwargs: dict) -> None:
        rows.append(len(kwargs["input_ids"]))

    handle = text_model.register_forward_pre_hook(count, with_kwargs=True)
    tokenizer = build_tokenizer(8)
    few, many = (evaluate_text(text_model, TEXT, tokenizer, batch_size=size) for size in (2, 1_000_000))
    handle.remove()
    assert rows[-1] == sum(rows[:-1])
    assert set(rows[:-2]) == {2}
    assert many.loss == pytest.approx(few.loss, rel=1e-6)


def test_batch_has_four_thousand_tokens_by_default(text_model: GPTScratchForCausalLM) -> None:
    rows = []
    handle = text_model.register_forward_pre_hook(
        lambda module, inputs, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    text = "a b" * 8000
    default, fixed = (evaluate_text(text_model, text, build_tokenizer(8), batch_size=size) for size in (None, 7))
    handle.remove()
    assert rows[0] == 512
    assert default.loss == pytest.approx(fixed.loss, rel=1e-6)


def test_cuts_that_do_not_look_at_the_text_would_change_its_tokens() -> None:
    """The control of the test above."""
    tokenizer = build_tokenizer(8)
    pieces = [token for start in range(0, len(TEXT), 20) for token in tokenizer.encode(TEXT[start : start + 20])]
    assert pieces != tokenizer.encode(TEXT)


def test_proved_vocabulary_is_encoded_by_tiktoken(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = build_tokenizer(8)
    expected = tokenizer.encode(TEXT)
    monkeypatch.setattr(type(tokenizer), "encode", Mock(side_effect=AssertionError))
    assert [int(number) for part, _ in evaluation.tokenize_in_pieces([TEXT], tokenizer) for number in part] == expected
    tokenizer.add_tokens(["lamp"])  # the control: no longer proved
    with pytest.raises(AssertionError):
        list(evaluation.tokenize_in_pieces([TEXT], tokenizer))


def test_other_tokenizers_get_a_text_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    from tokenizers import AddedToken, pre_tokenizers

    monkeypatch.setattr(evaluation, "PIECE_CHARS", 20)

    def num_pieces(tokenizer) -> int:
        return len(list(evaluation.tokenize_in_pieces([TEXT], tokenizer)))

    assert num_pieces(build_tokenizer(8)) > 5
    with_prefix, with_words, greedy = build_tokenizer(8), build_tokenizer(8), build_tokenizer(8)
    with_prefix.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    with_words.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    greedy.add_tokens([AddedToken("<mask>", lstrip=True)])
    assert [num_pieces(tokenizer) for tokenizer in (with_prefix, with_words, greedy)] == [1, 1, 1]


def test_a_long_text_is_not_held_in_memory(text_model: GPTScratchForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are taken only as they are scored: never further ahead than a batch and two pieces."""
    monkeypatch.setattr(evaluation, "PIECE_CHARS", 1000)
    scored, ahead = 0, []

    def count(module: torch.nn.Module, inputs: tuple, kwargs: dict) -> None:
        nonlocal scored
        scored += kwargs["input_ids"].numel()

    def blocks() -> Iterator[str]:
        for number in range(40):
            ahead.append(number * 100 - scored)  # each block has 100 tokens
            yield " lamp" * 100

    handle = text_model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        result = evaluate_text(text_model, blocks(), build_tokenizer(8), batch_size=16)
    finally:
        handle.remove()
    assert result.num_tokens == 4000
    assert max(ahead) <= 16 * 8 + 2 * 1000 / len(" lamp")


@pytest.mark.nightly
def test_initial_losses_of_the_tutorial(
    tutorial_model: GPTScratchForCausalLM, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To two steps of float32, since processors sum in other orders; with SiLU it is a hundred times as far."""
    from hf_gpt_scratch.data.documents import read_text
    from hf_gpt_scratch.data.tokenizer import load_encoding
    from hf_gpt_scratch.data.windows import draw_like_torch_loader, encode_text
    from tests.texts import split_text

    parts = split_text(read_text(shared_data / "the-verdict.txt"), 0.9)
    windows = [TokenWindows(encode_text(part, load_encoding()), 256, drop_last=True) for part in parts]
    torch.manual_seed(123)
    loader = build_loader(windows[0], 2, drop_last=True)
    loader.batch_sampler.order_seed = draw_like_torch_loader(shuffle=True)
    assert sum_losses(tutorial_model, loader).mean == pytest.approx(10.98758347829183, abs=2e-6)
    assert sum_losses(tutorial_model, build_loader(windows[1], 2)).mean == pytest.approx(10.98110580444336, abs=2e-6)
    for layer in tutorial_model.model.layers:
        monkeypatch.setattr(layer.mlp, "act_fn", torch.nn.SiLU())
    assert abs(sum_losses(tutorial_model, build_loader(windows[1], 2)).mean - 10.98110580444336) > 2e-6
