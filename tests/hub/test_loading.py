"""Proves that a model folder or a cached Hub repository loads with our package and without trust in its code.

The outputs are compared bit by bit with the model that was saved. A folder that is not complete is refused in one line
that names it; loading half of a model in silence would spoil every number computed from it.
"""

import copy
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from hf_gpt_scratch import (
    GPTScratchConfig,
    GPTScratchForCausalLM,
    GPTScratchForSequenceClassification,
    GPTScratchForTokenClassification,
    GPTScratchModel,
)
from hf_gpt_scratch.data.tokenizer import build_tokenizer
from hf_gpt_scratch.hub.loading import load_model_and_tokenizer
from hf_gpt_scratch.hub.repository import build_repository
from tests.fresh_interpreter import Calls, Outcome, run


AUTO_CLASSES = {
    "AutoModel": GPTScratchModel,
    "AutoModelForCausalLM": GPTScratchForCausalLM,
    "AutoModelForSequenceClassification": GPTScratchForSequenceClassification,
    "AutoModelForTokenClassification": GPTScratchForTokenClassification,
}
ORIGINS = ["folder", "hub"]
INPUT_IDS = [[17, 5, 99, 23, 42], [64, 8, 31, 2, 77]]


@pytest.fixture(scope="module")
def models() -> dict[str, PreTrainedModel]:
    """One of each class, by its Auto class."""
    config = GPTScratchConfig(max_position_embeddings=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    torch.manual_seed(0)
    return {auto_class: model_class(config).eval() for auto_class, model_class in AUTO_CLASSES.items()}


@pytest.fixture(scope="module")
def expected(models: dict[str, PreTrainedModel]) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return {auto_class: model(torch.tensor(INPUT_IDS))[0] for auto_class, model in models.items()}


@pytest.fixture(scope="module")
def repositories(models: dict[str, PreTrainedModel], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By Auto class; the code in them would leave a mark if it were run."""
    root = tmp_path_factory.mktemp("repositories")
    folders = {auto_class: build_repository(model, root / auto_class) for auto_class, model in models.items()}
    for folder in folders.values():
        for file in folder.glob("*.py"):
            with file.open("a", encoding="utf-8") as code:
                code.write(f'\nwith open({str(root / "marks")!r}, "a") as marks:\n    marks.write("{file.name}\\n")\n')
    return folders


@pytest.fixture
def folder(repositories: dict[str, Path], tmp_path: Path) -> Path:
    """A language model of one's own, to be spoilt."""
    return shutil.copytree(repositories["AutoModelForCausalLM"], tmp_path / "model")


def test_folder_loads_as_it_was_saved(repositories: dict[str, Path], models: dict[str, PreTrainedModel]) -> None:
    model, tokenizer = load_model_and_tokenizer(str(repositories["AutoModelForCausalLM"]))
    assert type(model) is GPTScratchForCausalLM
    assert not model.training
    assert model.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    weights = model.state_dict()
    for name, weight in models["AutoModelForCausalLM"].state_dict().items():
        assert torch.equal(weights[name].cpu(), weight)
    text = "The lamp<|endoftext|>"
    assert tokenizer(text)["input_ids"] == build_tokenizer()(text)["input_ids"]
    assert (tokenizer.padding_side, tokenizer.pad_token_id) == ("left", 50256)


def one_line(error: BaseException) -> str:
    assert len(str(error).splitlines()) == 1, str(error)
    return str(error)


def test_the_folder_of_a_run_leads_to_the_model_in_it(folder: Path) -> None:
    with pytest.raises(OSError, match="no config.json") as error:
        load_model_and_tokenizer(str(folder.parent))
    assert f"did you mean {folder}?" in one_line(error.value)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no config.json") as error:
        load_model_and_tokenizer(str(tmp_path))
    assert str(tmp_path) in one_line(error.value)
    assert "did you mean" not in str(error.value)


@pytest.mark.parametrize("name", ["absent", "absent/model"])
def test_a_folder_that_is_not_there_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(OSError, match="absent") as error:
        load_model_and_tokenizer(str(tmp_path / name))
    assert str(tmp_path / name) in one_line(error.value)


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "tokenizer_config.json"])
def test_a_missing_file_is_refused(folder: Path, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(OSError, match=str(folder)) as error:
        load_model_and_tokenizer(str(folder))
    one_line(error.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_model_computes_in_the_dtype_of_the_folder(
    models: dict[str, PreTrainedModel], tmp_path: Path, dtype: torch.dtype
) -> None:
    stored = copy.deepcopy(models["AutoModelForCausalLM"]).to(dtype)
    model, _ = load_model_and_tokenizer(str(build_repository(stored, tmp_path / "model")))
    assert model.dtype == dtype


def test_a_missing_tokenizer_is_refused(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(OSError, match=str(folder)) as error:
        load_model_and_tokenizer(str(folder))
    one_line(error.value)


def test_a_missing_shard_is_refused(models: dict[str, PreTrainedModel], tmp_path: Path) -> None:
    folder = build_repository(models["AutoModelForCausalLM"], tmp_path / "model", max_shard_size="20KB")
    next(iter(sorted(folder.glob("model-*.safetensors")))).unlink()
    with pytest.raises(OSError, match=str(folder)) as error:
        load_model_and_tokenizer(str(folder))
    one_line(error.value)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_file_cut_off_is_refused(folder: Path, file: str) -> None:
    """As a copy that was interrupted leaves it."""
    whole = (folder / file).read_bytes()
    (folder / file).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(OSError, match=str(folder)) as error:
        load_model_and_tokenizer(str(folder))
    one_line(error.value)


@pytest.mark.parametrize(
    ("file", "content", "fault"),
    [
        ("generation_config.json", b'{"eos_token_id": ', "generation_config.json is not valid JSON"),
        ("generation_config.json", b"", "generation_config.json is not valid JSON"),
        ("generation_config.json", b'{"eos_token_id": "x"}', "has eos_token_id 'x', which is not a token id"),
        ("tokenizer_config.json", b"[]", "tokenizer_config.json is not valid JSON"),
        ("tokenizer.json", b"\xff", "tokenizer.json is not valid JSON"),
        ("config.json", b"\xef\xbb\xbf{}", "config.json begins with a byte order mark"),
        (
            "model.safetensors",
            b"version https://git-lfs.github.com/spec/v1\n",
            "model.safetensors is a pointer of Git",
        ),
        ("model.safetensors", b"", "model.safetensors is truncated or corrupt"),
        ("model.safetensors.index.json", b"{}", "model.safetensors.index.json has no weight_map"),
    ],
)
def test_damaged_file_is_named(folder: Path, file: str, content: bytes, fault: str) -> None:
    """Some of these the library reads as if they were not there."""
    (folder / file).write_bytes(content)
    with pytest.raises(OSError, match=f"cannot load {folder}: .*{fault}") as error:
        load_model_and_tokenizer(str(folder))
    one_line(error.value)


def test_shards_without_their_index_are_named(models: dict[str, PreTrainedModel], tmp_path: Path) -> None:
    folder = build_repository(models["AutoModelForCausalLM"], tmp_path / "model", max_shard_size="20KB")
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(OSError, match="shards of its weights are there without model.safetensors.index.json") as error:
        load_model_and_tokenizer(str(folder))
    one_line(error.value)


def test_other_code_is_never_asked_for(folder: Path) -> None:
    """The library would advise an option that no command here has."""
    change_config(folder, model_type="odd")
    with pytest.raises(OSError, match="the model_type in its config.json is none that is known here"):
        load_model_and_tokenizer(str(folder))


def test_weights_that_are_not_finite_are_refused(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 2] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(OSError, match="its weights are not finite in model.layers.1.mlp.up_proj.weight") as error:
        load_model_and_tokenizer(str(folder))
    one_line(error.value)


def test_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    config = GPTScratchConfig(vocab_size=257, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    folder = build_repository(GPTScratchForCausalLM(config), tmp_path / "model", tokenizer=build_tokenizer())
    with pytest.raises(OSError, match="its tokenizer has the token id 50256, its model 257 embeddings"):
        load_model_and_tokenizer(str(folder))


def test_missing_weights_are_refused(folder: Path) -> None:
    """The library would draw them at random and only print a table."""
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(OSError, match="model.layers.1.mlp.up_proj.weight") as error:
        load_model_and_tokenizer(str(folder))
    assert str(folder) in one_line(error.value)


def change_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | changes), encoding="utf-8")


def test_left_over_weights_are_refused(folder: Path, capfd: pytest.CaptureFixture) -> None:
    """A model of fewer layers than were saved would load and generate nonsense; the library only prints a table."""
    change_config(folder, num_hidden_layers=1)
    with pytest.raises(OSError, match="has no place for the weights model.layers.1.*and 8 more") as error:
        load_model_and_tokenizer(str(folder))
    assert str(folder) in one_line(error.value)
    assert "model.layers" not in capfd.readouterr().err


def test_model_without_a_tokenizer_is_told_so(folder: Path) -> None:
    """As the converter makes it where the vocabulary is not GPT-2's."""
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(OSError, match="holds no tokenizer: save the one") as error:
        load_model_and_tokenizer(str(folder))
    assert str(folder) in one_line(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "float23"},
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
        {"model_type": "odd"},
    ],
    ids=str,
)
def test_value_that_nobody_knows_is_one_line(folder: Path, changes: dict) -> None:
    change_config(folder, **changes)
    with pytest.raises(OSError, match=f"cannot load {folder}: ") as error:
        load_model_and_tokenizer(str(folder))
    one_line(error.value)


def test_mistyped_folder_is_not_looked_for_on_the_hub_again_and_again(
    tmp_path: Path,
) -> None:
    """A name of two parts could be one of the Hub; a proxy that is not there counts how often that is asked."""
    requests = []
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        server.verify_request = lambda request, address: requests.append(address)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        proxy = f"http://127.0.0.1:{server.server_port}"
        code = "from hf_gpt_scratch.hub.loading import load_model_and_tokenizer as load\nload('runs/mine')"
        environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0", "NO_PROXY": ""}
        environment |= {"HTTPS_PROXY": proxy, "HTTP_PROXY": proxy}
        result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        server.shutdown()
    last = result.stderr.splitlines()[-1]
    assert "OSError: cannot load runs/mine: there is no such folder, and the Hub gives no model of that name (" in last
    assert len(requests) <= 2


def test_weights_of_another_size_are_refused(folder: Path) -> None:
    change_config(folder, hidden_size=24, intermediate_size=96)
    with pytest.raises(
        OSError, match=r"other shapes than .*embed_positions.weight is \[40, 16\], not \[40, 24\]"
    ) as error:
        load_model_and_tokenizer(str(folder))
    one_line(error.value)


@pytest.fixture(scope="module")
def installed(repositories: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A user's interpreter with the package: its classes are registered, and nothing is trusted."""
    root = tmp_path_factory.mktemp("installed")
    language_model = {"folder": str(repositories["AutoModelForCausalLM"]), "hub": "me/AutoModelForCausalLM"}
    calls: Calls = {"package": ("import_package", {"module": "hf_gpt_scratch.registration"})}
    for origin in ORIGINS:
        for auto_class, folder in repositories.items():
            path = str(folder) if origin == "folder" else f"me/{auto_class}"
            for trust in (None, False, True):
                name = f"{origin} {auto_class} {trust}"
                arguments = {"path": path, "auto_class": auto_class, "trust_remote_code": trust}
                calls[name] = ("load_model", {**arguments, "input_ids": INPUT_IDS, "output": name})
        path = language_model[origin]
        prompt = {"prompts": ["The lamp"], "max_new_tokens": 3, "batch_size": 1, "trust_remote_code": None}
        calls[f"{origin} pipeline"] = ("continue_prompts", {"path": path, **prompt})
        calls[f"{origin} ours"] = (
            "load_by_package",
            {"path": path, "input_ids": INPUT_IDS, "output": f"{origin} ours"},
        )
    absent = {"path": "me/absent", "input_ids": INPUT_IDS, "output": "absent"}
    calls["absent"] = ("load_by_package", absent)
    marks = str(repositories["AutoModel"].parent / "marks")
    calls["code"] = ("remote_code", {"home": str(root / "home" / "home"), "marker": marks})
    hub = {f"me/{auto_class}": folder for auto_class, folder in repositories.items()}
    return run(root / "home", calls, hub=hub, package=True)


@pytest.mark.parametrize("origin", ORIGINS)
@pytest.mark.parametrize("trust", [None, False, True])
@pytest.mark.parametrize("auto_class", AUTO_CLASSES)
def test_with_the_package_no_trust_is_needed_nor_used(
    installed: Outcome, expected: dict[str, torch.Tensor], auto_class: str, trust: bool | None, origin: str
) -> None:
    name = f"{origin} {auto_class} {trust}"
    model = installed.returned(name)
    assert model["class"] == AUTO_CLASSES[auto_class].__name__
    assert model["module"] == "hf_gpt_scratch.model.modeling_gpt_scratch"
    assert torch.equal(installed.tensor(name), expected[auto_class])


@pytest.mark.parametrize("origin", ORIGINS)
def test_with_the_package_our_function_and_the_pipeline_load_too(
    installed: Outcome, expected: dict[str, torch.Tensor], origin: str
) -> None:
    loaded = installed.returned(f"{origin} ours")
    assert loaded == {
        "module": "hf_gpt_scratch.model.modeling_gpt_scratch",
        "training": False,
        "tokenizer": "GPT2Tokenizer",
    }
    assert torch.equal(installed.tensor(f"{origin} ours"), expected["AutoModelForCausalLM"])
    assert installed.returned(f"{origin} pipeline")["texts"][0].startswith("The lamp")


def test_with_the_package_no_code_of_a_repository_is_run(installed: Outcome) -> None:
    assert installed.returned("code") == {"imported": [], "copied": [], "marks": []}


def test_a_repository_that_cannot_be_reached_is_refused(installed: Outcome) -> None:
    classes, message = installed.raised("absent")
    assert "OSError" in classes
    assert len(message.splitlines()) == 1, message
    assert "me/absent" in message


@pytest.mark.parametrize(
    "first",
    [
        "from hf_gpt_scratch import GPTScratchConfig",
        pytest.param("import hf_gpt_scratch.registration", marks=pytest.mark.nightly),
        pytest.param("import hf_gpt_scratch.hub.loading", marks=pytest.mark.nightly),
    ],
)
def test_what_registers_the_classes(first: str) -> None:
    code = f"{first}\nfrom transformers import AutoConfig\nprint(type(AutoConfig.for_model('gpt_scratch')).__module__)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.stdout == "hf_gpt_scratch.model.modeling_gpt_scratch\n", result.stderr


def test_importing_the_package_is_cheap_also_beside_transformers() -> None:
    """It imports nothing that is not in the standard library; the public classes are listed all the same."""
    code = """
import sys, transformers
before = set(sys.modules)
import hf_gpt_scratch
print(*sorted(name for name in set(sys.modules) - before if name.split(".")[0] not in sys.stdlib_module_names))
print(set(hf_gpt_scratch.__all__) <= set(dir(hf_gpt_scratch)))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.stdout == "hf_gpt_scratch\nTrue\n", result.stderr
