"""Proves that the proof of the ONNX files passes for what was written, and fails for every fault put into them."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_gpt_scratch.conversion.onnx_export import export_onnx
from hf_gpt_scratch.conversion.verify_onnx import OnnxModel, loss, verify_files
from hf_gpt_scratch.conversion.verify_worker import WINDOW
from hf_gpt_scratch.data.sample_texts import bundled_text_path
from tests.conversion.test_export import build


TEXT = bundled_text_path().read_text(encoding="utf-8")[:2000]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Our folder, and its export; copy that before you change it."""
    folder = tmp_path_factory.mktemp("proof")
    ours = build(folder / "ours", vocab_size=50257, max_position_embeddings=40)
    export_onnx(ours, folder / "exported", verify=False)
    return ours, folder / "exported"


def prove(ours: Path, exported: Path) -> dict[str, float]:
    config = AutoModelForCausalLM.from_pretrained(ours, trust_remote_code=True).config.to_dict()
    files = exported / "onnx" / "model.onnx", exported / "onnx" / "model_quantized.onnx"
    return verify_files(*files, load_file(ours / "model.safetensors"), config, "float32", TEXT)


def test_what_was_written_passes(folders: tuple[Path, Path]) -> None:
    found = prove(*folders)
    assert 0 < found["largest_difference_of_a_logit"] < 1e-4
    assert 1e-3 < found["largest_difference_of_a_logit_with_8_bits"] < 1
    assert 0 < found["largest_step_of_an_8_bit_weight"] < 0.02
    assert found["loss_on_the_text_with_8_bits"] == pytest.approx(found["loss_on_the_text"], abs=0.01)


def test_the_loss_is_that_of_transformers(folders: tuple[Path, Path]) -> None:
    _, exported = folders
    model = AutoModelForCausalLM.from_pretrained(exported).eval()
    ids = AutoTokenizer.from_pretrained(exported)(TEXT, return_tensors="pt", verbose=False)["input_ids"][0]
    window = 40
    starts = range(0, len(ids) - window, window)
    with torch.no_grad():
        expected = [
            torch.nn.functional.cross_entropy(
                model(ids[None, start : start + window]).logits[0], ids[start + 1 : start + window + 1]
            ).item()
            for start in starts
        ]
    assert len(expected) > 5
    assert window < WINDOW
    found = loss(OnnxModel(exported / "onnx" / "model.onnx"), ids.tolist(), window)
    assert found == pytest.approx(np.mean(expected), abs=1e-5)


def change(file: Path, name: str, edit: Callable[[np.ndarray], np.ndarray]) -> None:
    """Put other values in the place of a constant."""
    model = onnx.load(file)
    (constant,) = [value for value in model.graph.initializer if value.name == name]
    constant.CopyFrom(numpy_helper.from_array(edit(numpy_helper.to_array(constant).copy()), name))
    onnx.save(model, file)


def swap_two(values: np.ndarray) -> np.ndarray:
    values[[3, 4]] = values[[4, 3]]
    return values


@pytest.mark.parametrize(
    ("file", "name", "message"),
    [
        ("model.onnx", "transformer.wpe.weight", "logits of model.onnx differ by"),
        ("model.onnx", "transformer.h.1.mlp.c_fc.bias", "logits of model.onnx differ by"),
        ("model_quantized.onnx", "transformer.h.1.mlp.c_proj.weight_quantized", "8-bit .*c_proj.weight differs by"),
        ("model_quantized.onnx", "transformer.wte.weight_Transposed_quantized", "8-bit .*_Transposed differs by"),
    ],
)
def test_two_exchanged_rows_are_found(
    file: str, name: str, message: str, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    ours, exported = folders
    shutil.copytree(exported, tmp_path / "changed")
    change(tmp_path / "changed" / "onnx" / file, name, swap_two)
    with pytest.raises(ValueError, match=f"verification failed: {message}") as failure:
        prove(ours, tmp_path / "changed")
    assert "\n" not in str(failure.value)


@pytest.fixture
def changed(folders: tuple[Path, Path], tmp_path: Path) -> Callable[[str, Callable[[onnx.ModelProto], None]], Path]:
    """Return a function that edits the graph of a file in a copy of the export, and returns the copy."""

    def edit(file: str, change_model: Callable[[onnx.ModelProto], None]) -> Path:
        folder = Path(shutil.copytree(folders[1], tmp_path / "changed"))
        model = onnx.load(folder / "onnx" / file)
        change_model(model)
        onnx.save(model, folder / "onnx" / file)
        return folder

    return edit


def test_a_fault_of_the_cache_alone_is_found(folders: tuple[Path, Path], changed: Callable[..., Path]) -> None:
    """New values before those of the cache: for a whole text that is the same."""

    def new_before_old(model: onnx.ModelProto) -> None:
        (node,) = [node for node in model.graph.node if node.name == "present.1.value"]
        node.input[:] = [*reversed(node.input)]

    folder = changed("model.onnx", new_before_old)
    ids = [3, 1, 4, 1, 5]
    whole = [OnnxModel(one / "onnx" / "model.onnx").text_logits(ids) for one in (folders[1], folder)]
    assert np.array_equal(*whole)
    with pytest.raises(ValueError, match="logits of model.onnx differ by"):
        prove(folders[0], folder)


def test_padding_that_is_seen_is_found(folders: tuple[Path, Path], changed: Callable[..., Path]) -> None:
    def see_all(model: onnx.ModelProto) -> None:
        (node,) = [node for node in model.graph.node if node.op_type == "And"]
        node.input[1] = node.input[0]

    with pytest.raises(ValueError, match="logits of model.onnx differ by"):
        prove(folders[0], changed("model.onnx", see_all))


def test_weights_under_other_names_are_no_proof(folders: tuple[Path, Path], changed: Callable[..., Path]) -> None:
    def rename(model: onnx.ModelProto) -> None:
        old = "transformer.h.1.mlp.c_proj.weight_quantized"
        for constant in model.graph.initializer:
            constant.name = constant.name.replace(old, "other")
        for node in model.graph.node:
            node.input[:] = [name.replace(old, "other") for name in node.input]

    with pytest.raises(ValueError, match="transformer.h.1.mlp.c_proj.weight has no 8-bit weights"):
        prove(folders[0], changed("model_quantized.onnx", rename))


def test_a_matrix_left_in_float_is_found(folders: tuple[Path, Path], tmp_path: Path) -> None:
    ours, exported = folders
    shutil.copytree(exported, tmp_path / "changed")
    shutil.copy(exported / "onnx" / "model.onnx", tmp_path / "changed" / "onnx" / "model_quantized.onnx")
    with pytest.raises(ValueError, match="transformer.wte.weight.* has no 8-bit weights"):
        prove(ours, tmp_path / "changed")
