"""Proves `--model_name_or_path`: a converted model goes on where its source stands, and misfits are refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, GPT2Tokenizer

from hf_gpt_scratch.conversion.convert import convert_checkpoint
from hf_gpt_scratch.data.documents import read_text
from hf_gpt_scratch.data.tokenizer import load_encoding
from hf_gpt_scratch.data.windows import encode_text
from hf_gpt_scratch.hub.repository import build_repository
from hf_gpt_scratch.training.base_model import read_base_model, with_base_model
from hf_gpt_scratch.training.checkpoints.manifest import write_manifest
from hf_gpt_scratch.training.command_line import parse_settings
from hf_gpt_scratch.training.loop import train
from hf_gpt_scratch.training.settings import TrainingSettings
from tests.texts import split_text
from tests.training.histories import rows, step_losses


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


def with_base(settings: TrainingSettings) -> TrainingSettings:
    return with_base_model(settings, read_base_model(settings))


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
        # These are what fresh models have.
        (
            {"num_hidden_layers": 4, "hidden_size": 192},
            "--hidden_size 192 contra.*; --num_hidden_layers 4 contradicts",
        ),
        ({"tie_word_embeddings": False}, "--tie_word_embeddings False contradicts"),
        ({"block_size": 33}, "--block_size 33 is longer than the context of .*, --max_position_embeddings 32"),
        ({"vocabulary": "bytes"}, "--vocabulary bytes contradicts .*, which has the vocabulary gpt2 .*: leave it out"),
        ({"model_name_or_path": "nowhere"}, "cannot load nowhere: there is no such folder"),
        ({"model_name_or_path": "{source}"}, "is a gpt2 model: convert it with hf-gpt-scratch convert"),
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
        with_base(TrainingSettings(**values))
    assert "\n" not in str(caught.value)


def test_name_of_nothing_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library would try again and again, for 47 seconds where the network is dead."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("hf_gpt_scratch.training.base_model.AutoConfig", None)
    with pytest.raises(OSError, match="cannot load runs/mine: there is no such folder"):
        read_base_model(TrainingSettings(model_name_or_path="runs/mine"))


def test_rules_are_those_of_the_base_model(converted: Path) -> None:
    """Its context, not that of a fresh model, which block_size may be longer than and the prompt too."""
    config = json.loads((converted / "config.json").read_text())
    assert config["num_attention_heads"] == 4
    settings = with_base(TrainingSettings(model_name_or_path=str(converted), block_size=CONTEXT))
    assert (settings.max_position_embeddings, settings.block_size) == (CONTEXT, CONTEXT)
    assert (settings.hidden_size, settings.num_attention_heads, settings.vocabulary) == (16, 4, "gpt2")
    long = TrainingSettings(model_name_or_path="a model with a context of 256", block_size=200)
    assert long.window_size == 200


def stored_as(converted: Path, folder: Path, dtype: torch.dtype) -> Path:
    """The model in another dtype, as `convert_gpt2.py --dtype` stores it."""
    model = AutoModelForCausalLM.from_pretrained(converted, dtype=dtype)
    assert model.dtype == dtype
    return build_repository(model, folder)


@pytest.mark.parametrize(
    "dtype",
    ["bfloat16", *(pytest.param(dtype, marks=pytest.mark.nightly) for dtype in ("float16", "float64"))],
)
def test_stored_dtype_does_not_decide_how_a_run_computes(
    tiny_settings: Callable[..., TrainingSettings],
    converted: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    dtype: str,
) -> None:
    """The run is that of the same values stored in float32, to the last bit, also when it is resumed."""
    low = stored_as(converted, tmp_path / "low", getattr(torch, dtype))
    high = stored_as(low, tmp_path / "high", torch.float32)
    fresh = dict.fromkeys(("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"))
    small = {
        **fresh,
        "learning_rate": 1e-5,
        "min_learning_rate": None,
        "max_steps": 6,
        "save_steps": 3,
        "eval_steps": 99,
    }
    folders = {}
    for base in (low, high):
        settings = tiny_settings(**small, model_name_or_path=str(base), output_dir=str(tmp_path / f"run-{base.name}"))
        train(settings)
        folders[base] = Path(settings.output_dir)
        said = capsys.readouterr().out
    assert (
        f"weights are trained in float32, begin as {high} has them in float32; the result will be in float32" in said
    )
    assert step_losses(folders[low]) == step_losses(folders[high])
    assert rows(folders[low], "run")[0]["base_dtype"] == dtype
    weights = [load_file(folders[base] / "model" / "model.safetensors") for base in (low, high)]
    start = load_file(high / "model.safetensors")
    for name, values in weights[0].items():
        assert values.dtype == torch.float32
        assert torch.equal(values, weights[1][name])
    name = "model.layers.0.mlp.up_proj.weight"
    assert (weights[0][name] != start[name]).float().mean() > 0.95  # in bfloat16 it was 4 % of them
    moments = load_file(folders[low] / "checkpoints" / "step-00000006" / "optimizer.safetensors")
    assert {values.dtype for values in moments.values()} == {torch.float32}

    shutil.rmtree(folders[low] / "checkpoints" / "step-00000006")
    train(
        TrainingSettings(
            **{
                **settings.to_dict(),
                **small,
                "model_name_or_path": str(low),
                "output_dir": str(folders[low]),
                "resume": True,
            }
        )
    )
    assert "warning" not in capsys.readouterr().out
    again = load_file(folders[low] / "model" / "model.safetensors")
    assert all(torch.equal(values, again[name]) for name, values in weights[0].items())


def grown(converted: Path, folder: Path, num_rows: int, *tokens: str) -> Path:
    """The model with further rows of embeddings, and further tokens."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(converted), AutoTokenizer.from_pretrained(converted)
    tokenizer.add_tokens(list(tokens))
    torch.manual_seed(0)
    model.resize_token_embeddings(num_rows, mean_resizing=False)
    with torch.no_grad():
        model.lm_head.weight[len(tokenizer) :] += 9.0  # a sample would take one of these rows
    return build_repository(model, folder, tokenizer=tokenizer)


@pytest.mark.parametrize("tokens", [(), ("<|user|>", "<|bot|>")], ids=["rounded up", "added tokens"])
def test_base_with_an_extended_vocabulary_is_trained_on_and_kept(
    tiny_settings: Callable[..., TrainingSettings], converted: Path, tmp_path: Path, tokens: tuple[str, ...]
) -> None:
    base = grown(converted, tmp_path / "base", 50304, *tokens)
    text = tmp_path / "text.txt"
    text.write_text("<|user|>Where is the lamp?<|bot|>In the hall.<|endoftext|>" * 60)
    fresh = dict.fromkeys(("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"))
    settings = tiny_settings(**fresh, model_name_or_path=str(base), train_file=[str(text)], max_steps=4)
    result = train(settings)
    assert rows(settings.output_dir, "run")[0]["settings"]["vocabulary"] == (None if tokens else "gpt2")
    model = AutoModelForCausalLM.from_pretrained(result.repository)
    assert model.config.vocab_size == model.lm_head.weight.shape[0] == 50304
    tokenizer = AutoTokenizer.from_pretrained(result.repository)
    assert len(tokenizer) == 50257 + len(tokens)
    ids = tokenizer("<|bot|>In")["input_ids"]
    assert (ids[0] == 50258) == bool(tokens)
    begin = rows(settings.output_dir, "run")[0]
    train_text, _ = split_text(read_text(text), settings.train_split)
    assert begin["train_tokens"] == len(tokenizer(train_text)["input_ids"])
    assert rows(settings.output_dir, "sample")[-1]["text"].startswith("The lamp")


def test_tokenizer_with_more_tokens_than_embeddings_is_refused(
    tiny_settings: Callable[..., TrainingSettings], converted: Path, tmp_path: Path
) -> None:
    base = grown(converted, tmp_path / "base", 50257)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<|user|>"])
    tokenizer.save_pretrained(base)
    settings = TrainingSettings(model_name_or_path=str(base))
    with pytest.raises(
        ValueError, match="has 50257 embeddings and its tokenizer the id 50257: save it after model.res"
    ):
        with_base(settings)


def test_prepared_tokens_fit_a_base_that_only_has_more(converted: Path, tmp_path: Path) -> None:
    base = grown(converted, tmp_path / "base", 50304, "<|user|>")
    assert with_base(TrainingSettings(model_name_or_path=str(base), train_data="tokens")).vocabulary is None
    tokenizer = AutoTokenizer.from_pretrained(base)
    other = {
        token: 50256 - token_id if token_id < 50256 else token_id for token, token_id in tokenizer.get_vocab().items()
    }
    GPT2Tokenizer(vocab=other, merges=[], eos_token="<|endoftext|>").save_pretrained(base)
    with pytest.raises(ValueError, match="--train_data holds GPT-2's tokens, which are not those of"):
        with_base(TrainingSettings(model_name_or_path=str(base), train_data="tokens"))


def test_dtypes_of_weights_and_result_are_chosen_and_said(
    tiny_settings: Callable[..., TrainingSettings], capsys: pytest.CaptureFixture
) -> None:
    settings = tiny_settings(weights_dtype="bfloat16", result_dtype="float16", max_steps=3)
    result = train(settings)
    assert "weights are trained in bfloat16; the result will be in float16" in capsys.readouterr().out
    trained = load_file(Path(settings.output_dir) / "checkpoints" / "step-00000003" / "model.safetensors")
    written = load_file(result.repository / "model.safetensors")
    assert {values.dtype for values in trained.values()} == {torch.bfloat16}
    assert {values.dtype for values in written.values()} == {torch.float16}
    assert all(torch.equal(values, trained[name].half()) for name, values in written.items())
    model = AutoModelForCausalLM.from_pretrained(result.repository)
    assert model.dtype == torch.float16
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_checkpoint_of_a_version_that_trained_in_half_precision_goes_on_in_float32(
    tiny_settings: Callable[..., TrainingSettings], capsys: pytest.CaptureFixture
) -> None:
    settings = tiny_settings(weights_dtype="bfloat16", save_steps=3)
    train(settings)
    shutil.rmtree(Path(settings.output_dir) / "checkpoints" / "step-00000006")
    folder = Path(settings.output_dir) / "checkpoints" / "step-00000003"
    facts = json.loads((folder / "manifest.json").read_text())
    for name in ("files", "sha256"):
        del facts[name]
    del facts["settings"]["weights_dtype"]  # it did not know it
    (folder / "manifest.json").unlink()
    write_manifest(folder, facts)
    train(TrainingSettings(**{**settings.to_dict(), "weights_dtype": "float32", "resume": True}))
    output = capsys.readouterr().out
    assert (
        "step-00000003 has weights in torch.bfloat16, as an older version trained them: they continue in torch.float32"
        in output
    )


def test_base_at_another_path_is_the_same_run_and_another_config_is_not(
    tiny_settings: Callable[..., TrainingSettings], converted: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(converted, tmp_path / "base"))
    fresh = dict.fromkeys(("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"))
    settings = tiny_settings(**fresh, model_name_or_path=str(base), save_steps=3, max_steps=4)
    train(settings)
    expected = step_losses(settings.output_dir)
    shutil.rmtree(Path(settings.output_dir) / "checkpoints" / "step-00000004")
    moved = TrainingSettings(
        **{**settings.to_dict(), "model_name_or_path": str(base.rename(tmp_path / "moved")), "resume": True}
    )
    train(moved)
    assert step_losses(settings.output_dir) == expected
    config = json.loads((tmp_path / "moved" / "config.json").read_text())
    (tmp_path / "moved" / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 0.5}))
    with pytest.raises(ValueError, match="the model is another one: --model_name_or_path has another config"):
        train(moved)


def test_fresh_weights_over_a_model_are_refused() -> None:
    with pytest.raises(ValueError, match="--weight_init torch would overwrite"):
        TrainingSettings(model_name_or_path="some", weight_init="torch")


def test_byte_model_is_trained_and_goes_on(tiny_settings: Callable[..., TrainingSettings], tmp_path: Path) -> None:
    """`vocabulary: bytes` from fresh weights to a folder with its own tokenizer, and from that folder again."""
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
