"""Proves that a converted checkpoint computes what its own program computes: OpenAI's against transformers' GPT-2 with
a mapping written here a second time, the others against the programs themselves (or foreign_models.py). And that a
fault in the table does not go unseen.
"""

import dataclasses
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, GPT2Model

from hf_gpt_scratch import GPTScratchForCausalLM
from hf_gpt_scratch.conversion import convert
from hf_gpt_scratch.conversion.convert import compare_hashes, convert_checkpoint
from hf_gpt_scratch.conversion.gpt2_sizes import GPT2_SIZES, find_size
from hf_gpt_scratch.conversion.mapping import OPENAI, QKV, Format, Row
from hf_gpt_scratch.conversion.readers.safetensors_reader import SafetensorsFiles
from hf_gpt_scratch.conversion.readers.sources import open_source
from hf_gpt_scratch.conversion.verify import SourceWeights, compare_values, expected_tensors
from tests.conversion.bundle_writer import gpt2_shapes, gpt2_tensors, write_bundle
from tests.conversion.foreign_models import NanoGPT, TutorialGPT, draw, to_stock


SIZES = {"vocab": 29, "context": 12, "width": 16, "num_layers": 2, "num_heads": 4}
TINY = {"hidden_size": 16, "num_layers": 2, "vocab_size": 29, "context_length": 12}
HPARAMS = {"n_vocab": 29, "n_ctx": 12, "n_embd": 16, "n_head": 4, "n_layer": 2}


def small_values(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Scaled so that logits are of order 1; gains of LayerNorm around 1."""
    return {name: (0.2 * values + name.endswith("/g")).astype(np.float32) for name, values in tensors.items()}


def write_openai(folder: Path, tensors: dict[str, np.ndarray], hparams: dict | None = HPARAMS) -> Path:
    write_bundle(folder / "model.ckpt", tensors)
    if hparams is not None:
        (folder / "hparams.json").write_text(json.dumps(hparams))
    return folder


def load(folder: Path) -> GPTScratchForCausalLM:
    model, info = GPTScratchForCausalLM.from_pretrained(folder, output_loading_info=True, attn_implementation="eager")
    assert not any(info.values())
    return model.eval()


@torch.no_grad()
def difference(one: torch.nn.Module, other: torch.nn.Module, vocab: int, length: int = 12) -> float:
    ids = torch.randint(0, vocab, (2, length), generator=torch.Generator().manual_seed(3))
    logits = [out if isinstance(out := model(ids), torch.Tensor) else out.logits for model in (one, other)]
    assert logits[0].std() > 0.1
    return (logits[0] - logits[1]).abs().max().item()


@pytest.fixture(scope="module")
def openai(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_openai(tmp_path_factory.mktemp("openai"), small_values(gpt2_tensors(**TINY)))


@pytest.mark.parametrize("name", GPT2_SIZES)
def test_openai_equals_transformers_gpt2_at_every_width(name: str, tmp_path: Path) -> None:
    """The real width and heads, 1024 positions; one layer and 300 tokens."""
    size = find_size(name)
    shape = {"hidden_size": size.hidden_size, "num_layers": 1, "vocab_size": 300, "context_length": 1024}
    tensors = {key: values * np.float32(0.2) for key, values in small_values(gpt2_tensors(**shape)).items()}
    hparams = size.hparams | {"n_vocab": 300, "n_layer": 1}
    write_openai(tmp_path / "source", tensors, hparams)
    report = convert_checkpoint(tmp_path / "source", tmp_path / "out", verify=False)
    assert report["config"]["num_attention_heads"] == size.num_attention_heads
    stock = to_stock(tensors, size.num_attention_heads)
    assert difference(load(tmp_path / "out"), stock, 300) <= 1e-5


def test_released_sizes_have_the_published_number_of_parameters() -> None:
    for size in GPT2_SIZES.values():
        shapes = gpt2_shapes(size.hidden_size, size.num_hidden_layers, 50257, 1024)
        assert sum(int(np.prod(shape)) for shape in shapes.values()) == size.num_parameters


def swapped(first: str, second: str) -> Callable[[Row], Row]:
    """A fault: two targets are taken for each other."""
    names = {first: second, second: first}
    return lambda row: dataclasses.replace(row, targets=tuple(names.get(target, target) for target in row.targets))


def with_fault(fault: Callable[[Row], Row]) -> Format:
    return dataclasses.replace(OPENAI, rows=tuple(fault(row) for row in OPENAI.rows))


@pytest.mark.parametrize("fault", ["transpose", "swap", "bias"])
def test_each_fault_is_seen(fault: str, openai: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: a converter with a fault writes a folder, and the comparison of values refuses it."""
    convert_checkpoint(openai, tmp_path / "good", verify=False)
    stock = to_stock(dict(open_source(openai).tensors), 4)
    if fault == "swap":
        faulty = with_fault(swapped(f"{QKV[0]}weight", f"{QKV[1]}weight"))
        monkeypatch.setattr(convert, "detect_format", lambda shapes, hint: faulty)
    else:
        original = convert.tensor_blocks

        def tensor_blocks(plan, tensors):
            for target, values in original(plan, tensors):
                is_transposed = fault == "transpose" and target.endswith("o_proj.weight")
                is_lost = fault == "bias" and target.endswith("k_proj.bias")
                yield target, np.ascontiguousarray(values.T) if is_transposed else 0 * values if is_lost else values

        monkeypatch.setattr(convert, "tensor_blocks", tensor_blocks)
    report = convert_checkpoint(openai, tmp_path / "faulty", verify=False)
    source = SourceWeights(open_source(openai).tensors, "openai", 29)

    def compare(folder: str) -> float:
        written = SafetensorsFiles([tmp_path / folder / "model.safetensors"])
        return compare_values(written, expected_tensors(source, report["config"]), "float32")

    assert compare("good") == 0
    name = {"transpose": "o_proj.weight", "swap": "q_proj.weight", "bias": "k_proj.bias"}[fault]
    with pytest.raises(ValueError, match=f"verification failed: model.layers.0.self_attn.{name} differs"):
        compare("faulty")
    assert difference(load(tmp_path / "good"), stock, 29) <= 1e-5
    # A lost key bias is invisible in logits, which is why values are compared.
    assert (difference(load(tmp_path / "faulty"), stock, 29) > 1e-3) == (fault != "bias")


def save_stock(folder: Path, **changes: object) -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=29, n_positions=12, n_embd=16, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2, **changes
    )
    model = draw(GPT2LMHeadModel(config))
    model.save_pretrained(folder)
    return model


def test_transformers_gpt2_with_and_without_prefix_and_masks(tmp_path: Path) -> None:
    stock = save_stock(tmp_path / "stock", n_inner=40, layer_norm_epsilon=1e-3)
    report = convert_checkpoint(tmp_path / "stock", tmp_path / "ours", verify=False)
    assert difference(load(tmp_path / "ours"), stock, 29) <= 1e-5
    config = report["config"]
    assert (config["intermediate_size"], config["layer_norm_eps"], config["bos_token_id"]) == (40, 1e-3, 1)

    # As older versions saved them: no prefix, mask buffers.
    bare = {name.removeprefix("transformer."): tensor.clone() for name, tensor in stock.state_dict().items()}
    masks = {"h.0.attn.bias": torch.ones(1, 1, 12, 12), "h.0.attn.masked_bias": torch.tensor(-1e4)}
    save_file(bare | masks, tmp_path / "stock" / "model.safetensors")
    report = convert_checkpoint(tmp_path / "stock", tmp_path / "bare", verify=False)
    assert {"h.0.attn.bias", "h.0.attn.masked_bias", "lm_head.weight"} == set(report["dropped"])
    assert difference(load(tmp_path / "bare"), stock, 29) <= 1e-5

    # GPT2Model alone, in a .bin file, in shards.
    base = GPT2Model(stock.config)
    base.load_state_dict(stock.transformer.state_dict())
    base.save_pretrained(tmp_path / "base", max_shard_size="10KB")
    assert len(list((tmp_path / "base").glob("model-*.safetensors"))) > 1
    convert_checkpoint(tmp_path / "base", tmp_path / "from_base", verify=False)
    assert difference(load(tmp_path / "from_base"), stock, 29) <= 1e-5
    (tmp_path / "bin").mkdir()
    torch.save(stock.state_dict(), tmp_path / "bin" / "pytorch_model.bin")
    convert_checkpoint(tmp_path / "bin", tmp_path / "from_bin", num_heads=4, verify=False)
    assert difference(load(tmp_path / "from_bin"), stock, 29) > 1e-5  # without config.json the epsilon is unknown
    (tmp_path / "bin" / "config.json").write_bytes((tmp_path / "stock" / "config.json").read_bytes())
    convert_checkpoint(tmp_path / "bin", tmp_path / "from_bin_and_config", verify=False)
    assert difference(load(tmp_path / "from_bin_and_config"), stock, 29) <= 1e-5


def test_an_untied_head_of_transformers_gpt2_is_kept(tmp_path: Path) -> None:
    stock = save_stock(tmp_path / "stock", tie_word_embeddings=False)
    report = convert_checkpoint(tmp_path / "stock", tmp_path / "ours", verify=False)
    assert report["tied"] is False
    assert difference(load(tmp_path / "ours"), stock, 29) <= 1e-5
    settings = json.loads((tmp_path / "stock" / "config.json").read_text())
    (tmp_path / "stock" / "config.json").write_text(json.dumps(settings | {"tie_word_embeddings": True}))
    with pytest.raises(
        ValueError, match="lm_head.weight differs from transformer.wte.weight, though config.json ties"
    ):
        convert_checkpoint(tmp_path / "stock", tmp_path / "other", verify=False)


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_tutorial(qkv_bias: bool, tmp_path: Path) -> None:
    model = draw(TutorialGPT(**SIZES, qkv_bias=qkv_bias))
    torch.save(model.state_dict(), tmp_path / "model.pth")
    optimizer = torch.optim.AdamW(model.parameters())
    both = {"model_state_dict": model.state_dict(), "optimizer_state_dict": optimizer.state_dict()}
    torch.save(both, tmp_path / "model_and_optimizer.pth")
    with pytest.raises(ValueError, match=r"several checkpoints \(model.pth, model_and_optimizer.pth\)"):
        convert_checkpoint(tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match="width 16 has: add --n_head"):
        convert_checkpoint(tmp_path / "model.pth", tmp_path / "out")
    for name in ("model", "model_and_optimizer"):
        report = convert_checkpoint(tmp_path / f"{name}.pth", tmp_path / name, num_heads=4, verify=False)
        assert report["tied"] is False
        assert report["config"]["qkv_bias"] is qkv_bias
        assert {f"trf_blocks.{n}.att.mask" for n in range(2)} <= set(report["dropped"])
        assert ("optimizer_state_dict" in report["dropped"]) == (name == "model_and_optimizer")
        assert difference(load(tmp_path / name), model, 29) <= 1e-5


@pytest.mark.parametrize("qkv_bias", [True, pytest.param(False, marks=pytest.mark.nightly)])
def test_tutorial_with_one_projection_for_query_key_and_value(qkv_bias: bool, tmp_path: Path) -> None:
    """As its faster attentions have it, saved by Lightning, which puts `model.` before the names."""
    model = draw(TutorialGPT(**SIZES, qkv_bias=qkv_bias))
    weights = model.state_dict()
    for index in range(2):
        block = f"trf_blocks.{index}.att."
        for kind in ("weight", "bias") if qkv_bias else ("weight",):
            parts = [weights.pop(f"{block}W_{name}.{kind}") for name in ("query", "key", "value")]
            weights[f"{block}qkv.{kind}"] = torch.cat(parts)
        for kind in ("weight", "bias"):
            weights[f"{block}proj.{kind}"] = weights.pop(f"{block}out_proj.{kind}")
    torch.save({"state_dict": {f"model.{name}": value for name, value in weights.items()}}, tmp_path / "last.pt")
    report = convert_checkpoint(tmp_path / "last.pt", tmp_path / "out", num_heads=4)
    assert report["format"] == "tutorial"
    assert report["config"]["qkv_bias"] is qkv_bias
    assert difference(load(tmp_path / "out"), model, 29) <= 1e-5
    del weights["trf_blocks.1.att.qkv.weight"]
    torch.save(weights, tmp_path / "half.pt")
    with pytest.raises(ValueError, match=r"trf_blocks.1.att.qkv.weight is missing"):
        convert_checkpoint(tmp_path / "half.pt", tmp_path / "other", num_heads=4)


@pytest.mark.parametrize("prefix", ["", pytest.param("model.", marks=pytest.mark.nightly), "_orig_mod."])
def test_our_own_state_dict(prefix: str, openai: Path, tmp_path: Path) -> None:
    """As torch.save(model.state_dict()) and Lightning write it; also of the model without its head."""
    convert_checkpoint(openai, tmp_path / "folder", verify=False)
    model = load(tmp_path / "folder")
    for name, part in (("whole", model), ("bare", model.model)):
        weights = {f"{prefix}{name}": value for name, value in part.state_dict().items()}
        torch.save(weights, tmp_path / f"{name}.pth")
        report = convert_checkpoint(tmp_path / f"{name}.pth", tmp_path / name, num_heads=4, verify=not prefix)
        assert (report["format"], report["tied"]) == ("gpt_scratch", True)
        converted = load(tmp_path / name).state_dict()
        assert all(torch.equal(converted[name], value) for name, value in model.state_dict().items())
    assert "converted from a state dict of our own model" in (tmp_path / "whole" / "README.md").read_text()


def test_a_tutorial_head_that_equals_the_embedding_becomes_tied(tmp_path: Path) -> None:
    model = draw(TutorialGPT(**SIZES, qkv_bias=True))
    model.out_head.weight.data.copy_(model.tok_emb.weight)
    torch.save(model.state_dict(), tmp_path / "model.pth")
    report = convert_checkpoint(tmp_path / "model.pth", tmp_path / "out", num_heads=4, verify=False)
    assert report["tied"] is True
    assert "out_head.weight" in report["dropped"]
    assert difference(load(tmp_path / "out"), model, 29) <= 1e-5


@pytest.mark.parametrize("bias", [True, False])
def test_nanogpt(bias: bool, tmp_path: Path) -> None:
    model = draw(NanoGPT(**SIZES, bias=bias))
    model_args = {"n_layer": 2, "n_head": 4, "n_embd": 16, "block_size": 12, "bias": bias, "vocab_size": 29}
    content = {
        "model": {f"_orig_mod.{name}": tensor for name, tensor in model.state_dict().items()},
        "optimizer": torch.optim.AdamW(model.parameters()).state_dict(),
        "model_args": model_args | {"dropout": 0.0},
        "iter_num": 5,
        "best_val_loss": torch.tensor(3.0),
        "config": {"dataset": "any"},
    }
    torch.save(content, tmp_path / "ckpt.pt")
    report = convert_checkpoint(tmp_path / "ckpt.pt", tmp_path / "out", verify=False)
    config = report["config"]
    assert (config["hidden_act"], config["dropout"], config["qkv_bias"]) == ("gelu", 0.0, bias)
    assert report["tied"] is True
    assert {"optimizer", "config", "iter_num", "_orig_mod.lm_head.weight"} <= set(report["dropped"])
    assert bool(report["zeros"]) == any("the model has no biases" in note for note in report["notes"]) == (not bias)
    assert difference(load(tmp_path / "out"), model, 29) <= 1e-5


def test_a_padded_vocabulary_is_cut_only_when_asked(tmp_path: Path) -> None:
    model = draw(NanoGPT(**SIZES | {"vocab": 50304}))
    torch.save({"model": model.state_dict(), "model_args": {"n_head": 4}}, tmp_path / "ckpt.pt")
    report = convert_checkpoint(tmp_path / "ckpt.pt", tmp_path / "whole", verify=False)
    assert report["config"]["vocab_size"] == 50304
    assert any("47 rows more than GPT-2's; --vocab_size 50257 cuts them" in note for note in report["notes"])
    assert difference(load(tmp_path / "whole"), model, 50257) <= 1e-5
    report = convert_checkpoint(tmp_path / "ckpt.pt", tmp_path / "cut", vocab_size=50257, verify=False)
    assert any("rows 50257 to 50303 of the vocabulary are cut, as asked" in note for note in report["notes"])
    ids = torch.arange(12).unsqueeze(0)
    with torch.no_grad():
        assert (load(tmp_path / "cut")(ids).logits - model(ids)[..., :50257]).abs().max() <= 1e-5
    assert AutoTokenizer.from_pretrained(tmp_path / "cut").encode("Every effort moves you") == [6109, 3626, 6100, 345]
    with pytest.raises(ValueError, match="--vocab_size 60000 cannot be had from an embedding of 50304 rows"):
        convert_checkpoint(tmp_path / "ckpt.pt", tmp_path / "more", vocab_size=60000)


def test_tokenizer_that_cannot_be_taken_over_is_named_and_not_replaced(tmp_path: Path) -> None:
    """By GPT-2's, which would fit the number of tokens and give other texts."""
    model = draw(NanoGPT(**SIZES | {"vocab": 50300}))
    torch.save({"model": model.state_dict(), "model_args": {"n_head": 4}}, tmp_path / "ckpt.pt")
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "Unigram"}}', encoding="utf-8")
    report = convert_checkpoint(tmp_path / "ckpt.pt", tmp_path / "out", verify=False)
    (note,) = [note for note in report["notes"] if "tokenizer" in note]
    assert note == (
        f"no tokenizer is written, because {tmp_path / 'tokenizer.json'} has a model of type 'Unigram', not 'BPE', so "
        "tiktoken would give other ids: copy the files of the model's own"
    )
    assert not (tmp_path / "out" / "tokenizer.json").exists()


def test_special_tokens_outside_a_small_vocabulary_are_left_unset(openai: Path, tmp_path: Path) -> None:
    report = convert_checkpoint(openai, tmp_path / "out", verify=False)
    assert report["config"]["bos_token_id"] is None
    assert any("no tokenizer is written" in note for note in report["notes"])
    assert not (tmp_path / "out" / "tokenizer.json").exists()
    assert load(tmp_path / "out").generation_config.pad_token_id is None


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_rounded_as_torch_rounds(dtype: str, openai: Path, tmp_path: Path) -> None:
    convert_checkpoint(openai, tmp_path / "full", verify=False)
    convert_checkpoint(openai, tmp_path / "half", dtype=dtype, verify=False)
    full, half = (load_file(tmp_path / name / "model.safetensors") for name in ("full", "half"))
    assert full.keys() == half.keys()
    for name, values in full.items():
        assert half[name].dtype == getattr(torch, dtype)
        assert torch.equal(half[name], values.to(half[name].dtype))
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == dtype


def test_values_too_large_for_float16_are_refused(tmp_path: Path) -> None:
    tensors = small_values(gpt2_tensors(**TINY))
    tensors["model/h1/ln_2/b"][3] = 7e4
    write_openai(tmp_path / "source", tensors)
    with pytest.raises(ValueError, match="layers.1.post_attention_layernorm.bias has values too large for float16"):
        convert_checkpoint(tmp_path / "source", tmp_path / "out", dtype="float16")
    assert os.listdir(tmp_path) == ["source"]


def test_shards_load_and_hold_the_same_values(openai: Path, tmp_path: Path) -> None:
    convert_checkpoint(openai, tmp_path / "one", verify=False)
    report = convert_checkpoint(openai, tmp_path / "many", max_shard_size=6000, verify=False)
    shards = sorted((tmp_path / "many").glob("model-*.safetensors"))
    assert len(shards) > 3
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {
        "total_parameters": report["num_parameters"],
        "total_size": 4 * report["num_parameters"],
    }
    merged = {name: values for path in shards for name, values in load_file(path).items()}
    single = load_file(tmp_path / "one" / "model.safetensors")
    assert merged.keys() == single.keys() == index["weight_map"].keys()
    assert all(torch.equal(merged[name], single[name]) for name in merged)
    assert difference(load(tmp_path / "many"), load(tmp_path / "one"), 29) == 0


def test_training_checkpoints_of_tensorflow_convert_through_both_readers(
    tf_checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    for kind in ("training", "sharded", "partitioned"):
        for reader in ("bundle", "tensorflow"):
            report = convert_checkpoint(
                tf_checkpoints[kind], tmp_path / f"{kind}-{reader}", reader=reader, verify=False
            )
            assert "global_step" in report["dropped"]
            assert any(name.endswith("/Adam_1") for name in report["dropped"])
        ours, theirs = (tmp_path / f"{kind}-{reader}" / "model.safetensors" for reader in ("bundle", "tensorflow"))
        assert ours.read_bytes() == theirs.read_bytes()


def test_an_existing_output_is_refused_and_left_alone(openai: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("precious")
    with pytest.raises(FileExistsError, match="out exists already: choose another folder"):
        convert_checkpoint(openai, tmp_path / "out", verify=False)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine"]


def test_the_folder_can_be_read_by_others(openai: Path, tmp_path: Path) -> None:
    convert_checkpoint(openai, tmp_path / "out", verify=False)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o755
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o444 == 0o444 for path in (tmp_path / "out").iterdir())
    assert os.listdir(tmp_path) == ["out"]


def test_a_wrong_size_is_refused(openai: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="this is not GPT-2 124M: hidden_size is 16, not 768"):
        convert_checkpoint(openai, tmp_path / "out", size=find_size("124M"))


def test_files_that_are_not_the_published_ones_are_named() -> None:
    size = find_size("124M")
    files = {name: {"sha256": sha256} for name, sha256 in size.sha256.items()}
    assert not compare_hashes(files, size)
    files["model.ckpt.index"] = {"sha256": "0" * 64}
    (note,) = compare_hashes(files, size)
    assert note.startswith("model.ckpt.index is not the file that was published for 124M")
    assert not compare_hashes({"model.ckpt.index": {"sha256": "0" * 64}}, find_size("774M"))  # nothing is known of it


def test_our_own_folder_is_not_converted_again(openai: Path, tmp_path: Path) -> None:
    convert_checkpoint(openai, tmp_path / "out", verify=False)
    with pytest.raises(ValueError, match="in our own layout already: --export_stock"):
        convert_checkpoint(tmp_path / "out", tmp_path / "again")


@pytest.mark.slow
def test_full_124m_equals_transformers_gpt2(tmp_path: Path) -> None:
    shape = {"hidden_size": 768, "num_layers": 12, "vocab_size": 50257, "context_length": 1024}
    tensors = {name: np.float32(0.1) * values for name, values in small_values(gpt2_tensors(**shape)).items()}
    tensors |= {name: values * 10 for name, values in tensors.items() if name.endswith("/g")}
    write_openai(tmp_path / "source", tensors, find_size("124M").hparams)
    report = convert_checkpoint(tmp_path / "source", tmp_path / "out", size=find_size("124M"))
    assert report["num_parameters"] == 124_439_808
    assert report["verification"]["max_value_difference"] == 0
    assert any("data-00000-of-00001 is not the file that was published for 124M" in note for note in report["notes"])
    assert difference(load(tmp_path / "out"), to_stock(tensors, 12), 50257, 64) <= 1e-5


@pytest.mark.slow
@pytest.mark.skipif("HF_GPT_SCRATCH_OPENAI_DIR" not in os.environ, reason="HF_GPT_SCRATCH_OPENAI_DIR is not set")
def test_openai_files_give_the_published_losses_and_texts(shared_data: Path, tmp_path: Path) -> None:
    """The figures of chapter 5 of the tutorial and of exercise 5.5, for 124M."""
    text = shared_data / "the-verdict.txt"
    source = Path(os.environ["HF_GPT_SCRATCH_OPENAI_DIR"])
    report = convert_checkpoint(source, tmp_path / "out", text=text, size=find_size("124M"))
    losses = report["verification"]["losses"]
    assert losses["first_nine_tenths"] == pytest.approx(3.7547487, abs=1e-4)
    assert losses["last_tenth"] == pytest.approx(3.5596182, abs=1e-4)
    model, tokenizer = load(tmp_path / "out"), AutoTokenizer.from_pretrained(tmp_path / "out")
    for prompt, length, expected in (
        ("Every effort moves", 30, "Every effort moves forward, but it's not enough.\n\n\"I'm not going to sit here"),
        (
            "Alan Turing theorized that computers would one day become",
            40,
            " the most powerful machines on the planet.",
        ),
    ):
        ids = model.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=length, do_sample=False)
        assert expected in tokenizer.decode(ids[0])
