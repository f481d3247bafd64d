"""Proves that a model of ours becomes one folder for transformers and for transformers.js, or is refused and why."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel

from hf_gpt_scratch.commands import convert
from hf_gpt_scratch.conversion.onnx_export import export_onnx
from hf_gpt_scratch.conversion.verify_onnx import OnnxModel, constants
from hf_gpt_scratch.runtime.files import file_sha256
from tests.conversion.test_export import build


@pytest.mark.parametrize(
    "changes",
    [
        {"tie_word_embeddings": False, "qkv_bias": False},
        pytest.param({"dtype": torch.bfloat16, "vocab_size": 50257}, marks=pytest.mark.nightly),
        {"dtype": torch.float16},
        {"vocab_size": 400},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_the_command_writes_a_whole_folder(
    changes: dict,
    own_vocabulary: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With 400 tokens, those of a vocabulary of the text's own."""
    ours, output = build(tmp_path / "ours", **changes), tmp_path / "exported"
    if changes.get("vocab_size") == 400:
        shutil.copytree(own_vocabulary, ours, dirs_exist_ok=True)
    if "vocab_size" not in changes:  # the tokenizer of GPT-2 has more than 29 tokens
        for path in ours.glob("tokenizer*"):
            path.unlink()
    convert.main(["--from_dir", str(ours), "--output", str(output), "--export_onnx"])
    said = capsys.readouterr().out
    assert "largest difference of a logit: " in said
    assert "sha256 " in said
    assert not caplog.records  # the quantizer's advice
    assert {path.name for path in (output / "onnx").iterdir()} == {"model.onnx", "model_quantized.onnx"}

    stock = AutoModelForCausalLM.from_pretrained(output, trust_remote_code=False, dtype=torch.float32).eval()
    assert type(stock) is GPT2LMHeadModel
    assert stock.generation_config.max_length == stock.config.n_positions == 12
    ids = [3, 1, 4, 1, 5, 9, 2, 6]
    with torch.no_grad():
        expected = stock(torch.tensor([ids])).logits[0].numpy()
    assert np.abs(OnnxModel(output / "onnx" / "model.onnx").text_logits(ids) - expected).max() <= 2e-5
    eight_bits = np.abs(OnnxModel(output / "onnx" / "model_quantized.onnx").text_logits(ids) - expected).max()
    assert 1e-4 < eight_bits < 0.1 * np.abs(expected).max()

    if changes.get("vocab_size") == 400:
        text = "The lamp² went <|endoftext|> über 日本   42\n\n"
        token_ids = AutoTokenizer.from_pretrained(output)(text)["input_ids"]
        assert token_ids == Tokenizer.from_file(str(own_vocabulary / "tokenizer.json")).encode(text).ids

    report = json.loads((output / "conversion_report.json").read_text())
    hashes = report["files"] | report["onnx"]["files"]
    assert {"onnx/model.onnx", "onnx/model_quantized.onnx", "generation_config.json"} <= hashes.keys()
    assert all(file_sha256(output / name) == facts["sha256"] for name, facts in hashes.items())
    card = (output / "README.md").read_text()
    assert "- transformers.js" in card
    assert "The logits of `model.onnx` are compared" in card
    assert hashes["onnx/model.onnx"]["sha256"] in card


def test_8_bits_are_smaller_and_unsigned(tmp_path: Path) -> None:
    """Signed ones would be rounded otherwise by older processors."""
    report = export_onnx(build(tmp_path / "ours", hidden_size=64), tmp_path / "exported", verify=False)
    assert report["onnx"]["verification"] is None
    assert "are compared" not in (tmp_path / "exported" / "README.md").read_text()
    sizes = [(tmp_path / "exported" / "onnx" / f"model{kind}.onnx").stat().st_size for kind in ("", "_quantized")]
    assert sizes[1] < 0.5 * sizes[0]
    found = constants(tmp_path / "exported" / "onnx" / "model_quantized.onnx")
    stored = {name: values for name, values in found.items() if name.endswith("_quantized")}
    assert len(stored) == 2 + 2 * 4 + 1  # two embeddings, four matrices of each layer, and the head
    assert {values.dtype for values in stored.values()} == {np.dtype("uint8")}


def test_what_cannot_be_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = build(tmp_path / "ours")
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError, match="exists already: choose another folder"):
        export_onnx(ours, tmp_path / "there")
    with pytest.raises(ValueError, match="with another activation cannot be exported"):
        export_onnx(build(tmp_path / "relu", hidden_act="relu"), tmp_path / "output")
    words = ["--from_dir", str(ours), "--output", str(tmp_path / "output"), "--export_onnx"]
    with pytest.raises(ValueError, match="--export_stock: not allowed with argument --export_onnx"):
        convert.main([*words, "--export_stock"])
    with pytest.raises(ValueError, match="--push_to_hub leaves out ONNX files: hf upload USER/NAME"):
        convert.main([*words, "--push_to_hub", "USER/NAME"])
    with pytest.raises(ValueError, match="--export_onnx exports a gpt_scratch model: name its folder with --from_dir"):
        convert.main(words[2:])
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match="--export_onnx needs onnxruntime: pip install onnxruntime$"):
        export_onnx(ours, tmp_path / "output")
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(("width", "message"), [(12000, r"603,084,000 .* 4\.8 GB"), (6000, r"301,542,000 .* 2\.4 GB")])
def test_what_no_onnx_file_can_hold_is_refused_before_the_work(width: int, message: str, tmp_path: Path) -> None:
    """A file without its values: only the header is read. The second is too large with the quantizer's own head."""
    ours = build(tmp_path / "ours")
    size = 4 * 50257 * width
    header = {"model.embed_tokens.weight": {"dtype": "F32", "shape": [50257, width], "data_offsets": [0, size]}}
    text = json.dumps(header).encode()
    with (ours / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + size)
    with pytest.raises(ValueError, match=message + " on the way, and an ONNX file holds"):
        export_onnx(ours, tmp_path / "output")
    assert not (tmp_path / "output").exists()
