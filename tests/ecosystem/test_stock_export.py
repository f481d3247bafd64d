"""The stock export in other runtimes: CTranslate2, ONNX Runtime, and GGUF made by llama.cpp's own converter."""

import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel

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
    import onnxruntime

    model = GPT2LMHeadModel.from_pretrained(stock).eval()
    length = torch.export.Dim("length", min=2, max=64)
    program = torch.onnx.export(
        Logits(model).eval(), (torch.arange(8)[None],), dynamo=True, dynamic_shapes={"input_ids": {1: length}},
        input_names=["input_ids"], verbose=False,
    )  # fmt: skip
    program.save(tmp_path / "model.onnx")
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


def convert_to_gguf(script: list[str | Path], stock: Path, output: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *script, stock, "--outfile", output, "--outtype", "f32"]
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
