"""Proves `--model_name_or_path`: a converted model goes on where its source stands, and misfits are refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from histories import rows, step_losses
from transformers import GPT2Config, GPT2LMHeadModel

from hf_gpt_scratch.conversion.convert import convert_checkpoint
from hf_gpt_scratch.data import encode_text, read_text, split_text
from hf_gpt_scratch.tokenizer import load_encoding
from hf_gpt_scratch.training.base_model import with_base_architecture
from hf_gpt_scratch.training.command_line import parse_settings
from hf_gpt_scratch.training.loop import train
from hf_gpt_scratch.training.settings import TrainingSettings


CONTEXT = 32


@pytest.fixture(scope="module")
def source() -> GPT2LMHeadModel:
    """Transformers' GPT-2 with weights far enough from zero that its losses say something."""
    torch.manual_seed(0)
    config = GPT2Config(n_embd=16, n_layer=2, n_head=4, n_positions=CONTEXT, initializer_range=0.3)
    return GPT2LMHeadModel(config).eval()


@pytest.fixture(scope="module")
def converted(source: GPT2LMHeadModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    source.save_pretrained(folder)
    output = folder.parent / "converted"
    convert_checkpoint(folder, output, verify=False)
    return output


def source_loss(model: GPT2LMHeadModel, token_ids: torch.Tensor) -> float:
    """Nats per token, each token predicted once from at most CONTEXT tokens, the last window reaching back."""
    nats, num_targets = 0.0, len(token_ids) - 1
    for start in range(0, num_targets, CONTEXT):
        count = min(CONTEXT, num_targets - start)
        first = start + count - CONTEXT if num_targets >= CONTEXT else 0
        inputs = token_ids[first : start + count]
        with torch.no_grad():
            scores = torch.log_softmax(model(inputs[None]).logits[0].double(), dim=-1)
        targets = token_ids[first + 1 : start + count + 1]
        nats -= scores.gather(1, targets[:, None])[-count:].sum().item()
    return nats / num_targets


def test_finetune_recipe_begins_at_the_loss_of_the_source_and_improves_on_it(
    source: GPT2LMHeadModel, converted: Path, short_text: Path, tmp_path: Path
) -> None:
    arguments = ["--model_name_or_path", str(converted), "--train_file", str(short_text), "--max_steps", "4"]
    arguments += ["--gradient_accumulation_steps", "4", "--sample_tokens", "0", "--output_dir", str(tmp_path / "run")]
    settings = parse_settings(["--recipe", "finetune", *arguments, "--learning_rate", "1e-2"])
    train(settings)
    evaluations = rows(settings.output_dir, "evaluation")
    _, validation_text = split_text(read_text(short_text), settings.train_split)
    expected = source_loss(source, encode_text(validation_text, load_encoding()))
    assert evaluations[0]["validation_loss"] == pytest.approx(expected, rel=1e-5)
    assert abs(expected - 10.825) > 0.05  # fresh weights would start at ln(50257)
    assert evaluations[-1]["validation_loss"] < expected - 0.02
    assert len(step_losses(settings.output_dir)) == 4
    saved = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert (saved["hidden_size"], saved["num_hidden_layers"], saved["max_position_embeddings"]) == (16, 2, CONTEXT)
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["dropout"] == 0.1  # the recipe's, not the source's
    assert "fine-tuned from `converted`" in (tmp_path / "run" / "model" / "README.md").read_text()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"hidden_size": 48}, "--hidden_size 48 contradicts .*, which has 16: leave it out"),
        ({"vocabulary": "bytes"}, "has 50257 tokens, --vocabulary bytes has 257"),
        ({"model_name_or_path": "nowhere"}, "cannot read --model_name_or_path nowhere"),
        ({"model_name_or_path": "{source}"}, "is a gpt2 model: convert it with scripts/convert_gpt2.py"),
    ],
)
def test_models_that_do_not_fit_are_refused_in_one_line(
    converted: Path, changes: dict, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    values = {"model_name_or_path": str(converted), **changes}
    if values["model_name_or_path"] == "{source}":
        values["model_name_or_path"] = str(next(converted.parent.glob("source*")))
    with pytest.raises((ValueError, OSError), match=reason) as caught:
        with_base_architecture(TrainingSettings(**values))
    assert "\n" not in str(caught.value)


def test_fresh_weights_over_a_model_are_refused() -> None:
    with pytest.raises(ValueError, match="--weight_init torch would overwrite"):
        TrainingSettings(model_name_or_path="some", weight_init="torch")


def test_byte_model_is_trained_and_goes_on(tiny_settings: Callable[..., TrainingSettings], tmp_path: Path) -> None:
    """`vocabulary: bytes` from fresh weights to a folder with its own tokenizer, and from that folder again."""
    from transformers import AutoTokenizer

    first = tiny_settings(vocabulary="bytes", max_steps=3, warmup_steps=0)
    result = train(first)
    assert rows(first.output_dir, "evaluation")[0]["validation_loss"] == pytest.approx(5.55, abs=0.1)  # ln(257)
    tokenizer = AutoTokenizer.from_pretrained(result.repository)
    assert len(tokenizer) == 257
    assert len(tokenizer("Größe")["input_ids"]) == len("Größe".encode())
    second = TrainingSettings(
        **{
            **first.to_dict(),
            "model_name_or_path": str(result.repository),
            "output_dir": str(tmp_path / "second"),
        }
    )
    train(second)
    assert rows(second.output_dir, "evaluation")[0]["validation_loss"] == pytest.approx(
        result.validation_loss, rel=1e-6
    )
