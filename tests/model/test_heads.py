"""Proves that the classification heads read the right token, compute the right loss and start from a language model.

The reference is written out here: a head is one matrix applied to the hidden state of the base model.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, PreTrainedModel

from hf_gpt_scratch import (
    GPTScratchConfig,
    GPTScratchForCausalLM,
    GPTScratchForSequenceClassification,
    GPTScratchForTokenClassification,
)


ModelBuilder = Callable[..., PreTrainedModel]
LENGTHS = [12, 5, 9]


def pad(input_ids: torch.Tensor, side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut the rows to LENGTHS and pad them with 0; return ids and attention_mask [3, 12]."""
    ids, mask = torch.zeros_like(input_ids), torch.zeros_like(input_ids)
    for row, length in enumerate(LENGTHS):
        columns = slice(12 - length, 12) if side == "left" else slice(0, length)
        ids[row, columns] = input_ids[row, :length]
        mask[row, columns] = 1
    return ids, mask


class TestSequenceClassification:
    @pytest.fixture
    def model(self, build_model: ModelBuilder) -> GPTScratchForSequenceClassification:
        return build_model(GPTScratchForSequenceClassification, num_labels=5)

    @pytest.mark.usefixtures("no_grad")
    def test_it_scores_the_last_token_wherever_the_padding_is(
        self, model: GPTScratchForSequenceClassification, input_ids: torch.Tensor
    ) -> None:
        assert model.num_labels == 5
        expected = torch.stack(
            [
                model.model(input_ids[row : row + 1, :length]).last_hidden_state[0, -1] @ model.score.weight.T
                for row, length in enumerate(LENGTHS)
            ]
        )
        for side in ("left", "right"):
            ids, mask = pad(input_ids, side)
            logits = model(ids, attention_mask=mask).logits
            assert logits.shape == (3, 5)
            torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
        # Control: without the mask, left padding moves the positions and is read as text.
        ids, _ = pad(input_ids, "left")
        assert (model(ids).logits[1:] - expected[1:]).abs().max() > 1e-2

    def test_loss_and_gradients(self, model: GPTScratchForSequenceClassification, input_ids: torch.Tensor) -> None:
        ids, mask = pad(input_ids, "left")
        labels = torch.tensor([4, 0, 2])
        output = model(ids, attention_mask=mask, labels=labels)
        torch.testing.assert_close(output.loss, nn.functional.cross_entropy(output.logits, labels))
        output.loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            # The key bias moves all scores of a query alike, which the softmax does not see.
            assert parameter.grad.abs().max() > 1e-5 or "k_proj.bias" in name, name

    @pytest.mark.usefixtures("no_grad")
    def test_one_label_is_regression_and_float_labels_are_many(
        self, build_model: ModelBuilder, input_ids: torch.Tensor
    ) -> None:
        regression = build_model(GPTScratchForSequenceClassification, num_labels=1)
        targets = torch.tensor([0.5, -1.0, 2.0])
        output = regression(input_ids, labels=targets)
        assert output.logits.shape == (3, 1)
        torch.testing.assert_close(output.loss, ((output.logits[:, 0] - targets) ** 2).mean())

        several = build_model(GPTScratchForSequenceClassification, num_labels=4)
        flags = torch.tensor([[1.0, 0.0, 1.0, 0.0]] * 3)
        output = several(input_ids, labels=flags)
        expected = nn.functional.binary_cross_entropy(output.logits.sigmoid(), flags)
        torch.testing.assert_close(output.loss, expected)


class TestTokenClassification:
    @pytest.fixture
    def model(self, build_model: ModelBuilder) -> GPTScratchForTokenClassification:
        return build_model(GPTScratchForTokenClassification, num_labels=5)

    @pytest.mark.usefixtures("no_grad")
    @pytest.mark.parametrize("side", ["left", "right"])
    def test_it_scores_every_token(
        self, model: GPTScratchForTokenClassification, input_ids: torch.Tensor, side: str
    ) -> None:
        ids, mask = pad(input_ids, side)
        assert model.num_labels == 5
        logits = model(ids, attention_mask=mask).logits
        assert logits.shape == (3, 12, 5)
        for row, length in enumerate(LENGTHS):
            hidden_states = model.model(input_ids[row : row + 1, :length]).last_hidden_state[0]
            expected = hidden_states @ model.score.weight.T + model.score.bias
            torch.testing.assert_close(logits[row][mask[row].bool()], expected, rtol=0, atol=1e-5)

    def test_loss_and_gradients(self, model: GPTScratchForTokenClassification, input_ids: torch.Tensor) -> None:
        ids, mask = pad(input_ids, "right")
        labels = (input_ids % 5).masked_fill(mask == 0, -100)
        output = model(ids, attention_mask=mask, labels=labels)
        real = mask.bool()
        torch.testing.assert_close(output.loss, nn.functional.cross_entropy(output.logits[real], labels[real]))
        output.loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 1e-5 or "k_proj.bias" in name, name

    def test_dropout_before_the_head_follows_the_config(self, tiny_config: GPTScratchConfig) -> None:
        tiny_config.dropout = 0.3
        assert GPTScratchForTokenClassification(tiny_config).dropout.p == 0.3


class TestStartingFromALanguageModel:
    @pytest.mark.usefixtures("no_grad")
    @pytest.mark.parametrize(
        ("auto_class", "model_class", "new"),
        [
            (AutoModelForSequenceClassification, GPTScratchForSequenceClassification, {"score.weight"}),
            (AutoModelForTokenClassification, GPTScratchForTokenClassification, {"score.weight", "score.bias"}),
        ],
    )
    @pytest.mark.parametrize("tie_word_embeddings", [True, False])
    def test_only_the_head_is_new(
        self,
        build_model: ModelBuilder,
        input_ids: torch.Tensor,
        auto_class: type,
        model_class: type,
        new: set[str],
        tie_word_embeddings: bool,
        tmp_path: Path,
    ) -> None:
        language_model = build_model(GPTScratchForCausalLM, tie_word_embeddings=tie_word_embeddings)
        language_model.save_pretrained(tmp_path)
        classifier, info = auto_class.from_pretrained(tmp_path, num_labels=7, output_loading_info=True)
        assert type(classifier) is model_class
        assert set(info["missing_keys"]) == new
        # The head of the language model is left behind, unless it is the embedding.
        assert set(info["unexpected_keys"]) == (set() if tie_word_embeddings else {"lm_head.weight"})
        assert not info["mismatched_keys"]
        for name, parameter in language_model.model.named_parameters():
            assert torch.equal(parameter, classifier.model.get_parameter(name)), name
        assert classifier.score.weight.shape == (7, 32)
        assert classifier.score.weight.std().item() == pytest.approx(0.02, rel=0.3)
        assert torch.equal(
            classifier.model(input_ids).last_hidden_state, language_model.model(input_ids).last_hidden_state
        )

    @pytest.mark.usefixtures("no_grad")
    @pytest.mark.parametrize("model_class", [GPTScratchForSequenceClassification, GPTScratchForTokenClassification])
    def test_round_trip(
        self, build_model: ModelBuilder, input_ids: torch.Tensor, model_class: type, tmp_path: Path
    ) -> None:
        model = build_model(model_class, num_labels=3)
        model.save_pretrained(tmp_path)
        loaded, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert loaded.config.num_labels == 3
        assert torch.equal(loaded(input_ids).logits, model(input_ids).logits)
