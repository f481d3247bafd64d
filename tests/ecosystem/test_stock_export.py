"""The stock export in other runtimes: CTranslate2, ONNX Runtime, and GGUF made by llama.cpp's own converter."""

import json
import math
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from hf_gpt_scratch.conversion.export import export_stock
from hf_gpt_scratch.data.tokenizer import build_tokenizer
from hf_gpt_scratch.data.vocabulary_folder import load_vocabulary
from hf_gpt_scratch.hub.repository import build_repository


pytestmark = pytest.mark.ecosystem

PROMPTS = ["Tom the ferry", "There were only two people on the ferry, Nell", "Is it"]
NEW_TOKENS = 20


@pytest.fixture(scope="module")
def expected(repository: Path) -> dict[tuple[int, ...], list[int]]:
    """Greedy ids of our own model after each prompt."""
    tokenizer = AutoTokenizer.from_pretrained(repository)
    model = AutoModelForCausalLM.from_pretrained(repository, trust_remote_code=True).eval()
    found = {}
    for text in PROMPTS:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False)
        found[tuple(ids[0].tolist())] = output[0, ids.shape[1] :].tolist()
    assert len({tuple(ids) for ids in found.values()}) == len(PROMPTS)
    return found


class Logits(torch.nn.Module):
    """A model as a function of ids alone."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, use_cache=False).logits


@pytest.mark.works("onnxruntime", "the stock export in ONNX Runtime: the same greedy ids")
def test_onnx_runtime(stock: Path, expected: dict, tmp_path: Path) -> None:
    """The file is of opset 20; what has more than 256 bytes lies beside it, and the tied matrix once."""
    import onnx
    import onnxruntime

    model = GPT2LMHeadModel.from_pretrained(stock).eval()
    length = torch.export.Dim("length", min=2, max=64)
    torch.onnx.export(
        Logits(model).eval(), (torch.arange(8)[None],), tmp_path / "model.onnx", dynamo=True,
        dynamic_shapes={"input_ids": {1: length}}, input_names=["input_ids"], verbose=False,
    )  # fmt: skip
    written = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    assert [(part.domain, part.version) for part in written.opset_import] == [("", 20)]
    sizes = {False: [], True: []}
    for tensor in written.graph.initializer:
        size = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize * math.prod(tensor.dims)
        sizes[tensor.data_location == onnx.TensorProto.EXTERNAL].append(size)
    assert max(sizes[False]) == 256 < min(sizes[True])
    assert [tensor.name for tensor in written.graph.initializer if 50257 in tensor.dims] == ["model.lm_head.weight"]
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for prompt, ids in expected.items():
        row = list(prompt)
        for _ in ids:
            fed = row if len(row) > 1 else [*row, 0]  # the shortest exported length is 2; what follows is not seen
            logits = session.run(None, {"input_ids": torch.tensor([fed]).numpy()})[0]
            row.append(int(logits[0, len(row) - 1].argmax()))
        assert row[len(prompt) :] == ids


@torch.no_grad()
def test_ctranslate2_keeps_one_epsilon(build_model: Callable, tmp_path: Path) -> None:
    """GPT-2's is kept; any other becomes GPT-2's without a word, which the card of such an export says."""
    import ctranslate2
    from ctranslate2.converters import TransformersConverter

    for epsilon in (1e-5, 0.1):
        folder = tmp_path / f"{epsilon}"
        model = build_model(layer_norm_eps=epsilon, vocab_size=50257, max_position_embeddings=64)
        build_repository(model, folder / "ours")
        export_stock(folder / "ours", folder / "stock", verify=False)
        TransformersConverter(str(folder / "stock")).convert(str(folder / "converted"))
        tokenizer = AutoTokenizer.from_pretrained(folder / "stock")
        ids = tokenizer(PROMPTS[1], return_tensors="pt")["input_ids"]
        generator = ctranslate2.Generator(str(folder / "converted"), device="cpu", intra_threads=1)
        found = torch.tensor(np.array(generator.forward_batch([tokenizer.convert_ids_to_tokens(ids[0])])))
        lost = GPT2LMHeadModel.from_pretrained(folder / "stock", layer_norm_epsilon=1e-5).eval()
        assert (found - lost(ids).logits).abs().max() < 1e-4
        assert ((found - model(ids).logits).abs().max() < 1e-4) == (epsilon == 1e-5)
        card = (folder / "stock" / "README.md").read_text(encoding="utf-8")
        assert ("CTranslate2 4.8 changes layer_norm_epsilon from 0.1 to 1e-05" in card) == (epsilon == 0.1)


# What the tools that know GPT-2 drop of its config, besides CTranslate2 the epsilon and llama.cpp the activation.
DROPPED = {"scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False}


def stock_gpt2(folder: Path, **settings: object) -> GPT2LMHeadModel:
    """Write a small GPT-2 of transformers, with weights that depend on the seed alone, and GPT-2's tokenizer."""
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "n_ctx": 32, "initializer_range": 0.3}
    model = GPT2LMHeadModel(GPT2Config(**(sizes | settings))).eval()
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return model


@torch.no_grad()
@pytest.mark.parametrize("name", DROPPED)
def test_ctranslate2_drops_the_scale_of_attention(tmp_path: Path, name: str) -> None:
    """The logits are those of the model without the setting, and nothing is said; an untied head is as it was."""
    import ctranslate2
    from ctranslate2.converters import TransformersConverter

    model = stock_gpt2(tmp_path / "stock", tie_word_embeddings=False, **{name: DROPPED[name]})
    TransformersConverter(str(tmp_path / "stock")).convert(str(tmp_path / "converted"))
    ids = build_tokenizer()(PROMPTS[1], return_tensors="pt")["input_ids"]
    generator = ctranslate2.Generator(str(tmp_path / "converted"), device="cpu", intra_threads=1)
    found = torch.tensor(np.array(generator.forward_batch(ids.tolist())))
    lost = GPT2LMHeadModel.from_pretrained(tmp_path / "stock", **{name: not DROPPED[name]}).eval()
    assert (found - lost(ids).logits).abs().max() < 1e-4
    assert (found - model(ids).logits).abs().max() > 0.5


def test_ctranslate2_refuses_a_padded_vocabulary(tmp_path: Path) -> None:
    from ctranslate2.converters import TransformersConverter

    stock_gpt2(tmp_path / "stock", vocab_size=50304)
    message = "Vocabulary has size 50257 but the model expected a vocabulary of size 50304"
    with pytest.raises(ValueError, match=message):
        TransformersConverter(str(tmp_path / "stock")).convert(str(tmp_path / "converted"))


@pytest.mark.works("ctranslate2", "the stock export: the same greedy ids in one batch, and logits to 1e-4")
def test_ctranslate2(stock: Path, expected: dict, tmp_path: Path) -> None:
    import ctranslate2

    converter = Path(sys.executable).with_name("ct2-transformers-converter")
    subprocess.run(
        [converter, "--model", stock, "--output_dir", tmp_path / "converted"],
        check=True, capture_output=True, timeout=240,
    )  # fmt: skip
    model = GPT2LMHeadModel.from_pretrained(stock).eval()
    tokenizer = AutoTokenizer.from_pretrained(stock)
    rows = [tokenizer.convert_ids_to_tokens(prompt) for prompt in expected]
    engines = {
        kind: ctranslate2.Generator(str(tmp_path / "converted"), compute_type=kind, intra_threads=1)
        for kind in ("float32", "int8")
    }
    answers = engines["float32"].generate_batch(
        rows, max_length=NEW_TOKENS, sampling_topk=1, include_prompt_in_result=False
    )
    assert [answer.sequences_ids[0] for answer in answers] == list(expected.values())

    prompt = max(expected, key=len)
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0]
    differences = {
        kind: (torch.tensor(np.array(engine.forward_batch([list(prompt)])))[0] - logits).abs().max().item()
        for kind, engine in engines.items()
    }
    assert differences["float32"] < 1e-4
    assert differences["int8"] > 1e-3  # the control: rounded weights are seen
    with pytest.raises(RuntimeError, match="No position encodings are defined for positions >= 64"):
        engines["float32"].generate_batch(rows, max_length=70, sampling_topk=1, end_token=[])


@pytest.fixture(scope="module")
def converter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """convert_hf_to_gguf.py of the llama.cpp that llama-cpp-python brings in its source archive."""
    archives = sorted(Path(sys.prefix, "llama.cpp").glob("llama_cpp_python-*.tar.gz"))
    if not archives:
        pytest.skip("no llama.cpp: fetch the source archive as the README says")
    folder = tmp_path_factory.mktemp("llama")
    with tarfile.open(archives[-1]) as archive:
        wanted = [member for member in archive if "/vendor/llama.cpp/" in member.name and member.name.endswith(".py")]
        archive.extractall(folder, wanted, filter="data")
    return next(folder.rglob("convert_hf_to_gguf.py"))


def convert_to_gguf(
    script: list[str | Path], stock: Path, output: Path, kind: str = "f32"
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *script, stock, "--outfile", output, "--outtype", kind]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


def greedy_texts(gguf_file: Path, prompts: list[str]) -> list[str]:
    """What llama.cpp writes after each prompt."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(gguf_file)
    parameters.n_ctx = 64
    parameters.n_parallel = 1
    server = xllamacpp.Server(parameters)
    options = {"max_tokens": NEW_TOKENS, "temperature": 0, "top_k": 1}
    answers = [server.handle_completions({"prompt": prompt, **options}) for prompt in prompts]
    return [answer["choices"][0]["text"] for answer in answers]


@pytest.mark.works("xllamacpp", "the stock export as GGUF of llama.cpp's converter: the same greedy texts")
def test_gguf_in_llama_cpp(converter: Path, stock: Path, expected: dict, repository: Path, tmp_path: Path) -> None:
    result = convert_to_gguf([converter], stock, tmp_path / "model.gguf")
    assert result.returncode == 0, result.stderr
    tokenizer = AutoTokenizer.from_pretrained(repository)
    texts = greedy_texts(tmp_path / "model.gguf", [tokenizer.decode(prompt) for prompt in expected])
    assert texts == [tokenizer.decode(ids) for ids in expected.values()]


def test_llama_cpp_drops_settings_of_gpt2(converter: Path, tmp_path: Path) -> None:
    """Of two models with the same weights, and everything different that GPT-2 can be asked for, the files differ in
    the epsilon and the head alone.

    A padded vocabulary is filled up with made-up tokens, a tied head is not there, positions stay float32.
    """
    import gguf

    plain, other = {"vocab_size": 50304}, {"activation_function": "relu", "layer_norm_epsilon": 0.25} | DROPPED
    files = []
    for name, settings in (("plain", plain), ("other", plain | other | {"tie_word_embeddings": False})):
        stock_gpt2(tmp_path / name / "stock", **settings)
        result = convert_to_gguf([converter], tmp_path / name / "stock", tmp_path / f"{name}.gguf", "f16")
        assert result.returncode == 0, result.stderr
        files.append(gguf.GGUFReader(tmp_path / f"{name}.gguf"))
    fields = [{name: field.contents() for name, field in file.fields.items()} for file in files]
    changed = {name for name in fields[0] | fields[1] if fields[0].get(name) != fields[1].get(name)}
    epsilon = "gpt2.attention.layer_norm_epsilon"
    assert changed == {epsilon, "GGUF.tensor_count", "general.size_label"}
    assert fields[1][epsilon] == 0.25
    assert fields[0]["gpt2.context_length"] == 32
    assert fields[0]["tokenizer.ggml.tokens"][50256:] == ["<|endoftext|>", *(f"[PAD{n}]" for n in range(50257, 50304))]
    tensors = [{tensor.name: tensor for tensor in file.tensors} for file in files]
    assert tensors[1].keys() - tensors[0].keys() == {"output.weight"}
    assert all(np.array_equal(tensors[1][name].data, tensor.data) for name, tensor in tensors[0].items())
    kinds = {name: tensor.tensor_type.name for name, tensor in tensors[0].items() if tensor.data.ndim == 2}
    assert kinds.pop("position_embd.weight") == "F32"
    assert set(kinds.values()) == {"F16"}
    assert "blk.1.attn_qkv.weight" in kinds


def test_llama_cpp_wants_n_ctx(converter: Path, tmp_path: Path) -> None:
    """What transformers 5 saves by itself lacks it; the stock export has it."""
    stock_gpt2(tmp_path / "stock")
    config = tmp_path / "stock" / "config.json"
    config.write_text(json.dumps({name: x for name, x in json.loads(config.read_text()).items() if name != "n_ctx"}))
    result = convert_to_gguf([converter], tmp_path / "stock", tmp_path / "model.gguf")
    assert result.returncode == 1
    assert result.stderr.endswith("KeyError: 'n_ctx'\n")


# As scripts/README.md says for a vocabulary that the converter does not know.
WITH_SPLITTING_OF_GPT2 = """
import runpy
import sys
from pathlib import Path

sys.argv = sys.argv[1:]
sys.path.insert(0, str(Path(sys.argv[0]).parent))
from conversion.base import TextModel

TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.works("xllamacpp", "a vocabulary of your own as GGUF, the converter told that it is split as GPT-2's")
@pytest.mark.nightly
def test_gguf_of_an_own_vocabulary(
    converter: Path, own_vocabulary: Path, build_model: Callable, project_root: Path, tmp_path: Path
) -> None:
    vocabulary = load_vocabulary(str(own_vocabulary))
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), vocabulary.end_of_text_id)
    model = build_model(vocab_size=vocabulary.size, max_position_embeddings=64, **ids)
    tokenizer = build_tokenizer(64, vocabulary)
    repository = build_repository(model, tmp_path / "own-model", tokenizer=tokenizer)
    command = [sys.executable, project_root / "scripts" / "convert_gpt2.py", "--from-dir", repository]
    stock = tmp_path / "stock"
    subprocess.run([*command, "--output", stock, "--export-stock"], check=True, capture_output=True, timeout=240)
    refused = convert_to_gguf([converter], stock, tmp_path / "model.gguf")
    assert refused.returncode == 1
    assert "NotImplementedError: BPE pre-tokenizer was not recognized" in refused.stderr
    (tmp_path / "told.py").write_text(WITH_SPLITTING_OF_GPT2, encoding="utf-8")
    result = convert_to_gguf([tmp_path / "told.py", converter], stock, tmp_path / "model.gguf")
    assert result.returncode == 0, result.stderr
    expected = []
    for text in PROMPTS:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False)
        expected.append(tokenizer.decode(output[0, ids.shape[1] :]))
    assert greedy_texts(tmp_path / "model.gguf", PROMPTS) == expected
