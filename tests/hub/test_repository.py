"""Proves saving and loading: what `build_repository` and `save_pretrained` write is all that a stranger needs.

The strangers are fresh interpreters that cannot import this package. They load every kind of model from a folder and,
by another path through the library, from an offline Hub cache; what they compute is compared bit by bit with the model
in this process. What they save again is loaded once more by a third interpreter. The control of the comparison is a
repository whose code is edited: it must compute something else, also in the same process as the unedited one.
"""

import ast
import json
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    modeling_utils,
)
from transformers.dynamic_module_utils import get_imports, get_relative_imports

from hf_gpt_scratch import (
    GPTScratchConfig,
    GPTScratchForCausalLM,
    GPTScratchForSequenceClassification,
    GPTScratchForTokenClassification,
    GPTScratchModel,
)
from hf_gpt_scratch.data.tokenizer import build_tokenizer
from hf_gpt_scratch.hub.model_card import CardDetails
from hf_gpt_scratch.hub.repository import build_repository
from hf_gpt_scratch.model.configuration_gpt_scratch import VERSION
from tests.fresh_interpreter import Calls, Outcome, commit_of, run


MODEL_FOLDER = Path(str(files("hf_gpt_scratch"))) / "model"
CODE_FILES = sorted(path.name for path in MODEL_FOLDER.glob("*_gpt_scratch.py"))
FULL_AUTO_MAP = {
    "AutoConfig": "modeling_gpt_scratch.GPTScratchConfig",
    "AutoModel": "modeling_gpt_scratch.GPTScratchModel",
    "AutoModelForCausalLM": "modeling_gpt_scratch.GPTScratchForCausalLM",
    "AutoModelForSequenceClassification": "modeling_gpt_scratch.GPTScratchForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_gpt_scratch.GPTScratchForTokenClassification",
}
PROCESSOR = "generation_gpt_scratch.TemperatureTopKLogitsProcessor"
AUTO_CLASS = {
    GPTScratchModel: "AutoModel",
    GPTScratchForCausalLM: "AutoModelForCausalLM",
    GPTScratchForSequenceClassification: "AutoModelForSequenceClassification",
    GPTScratchForTokenClassification: "AutoModelForTokenClassification",
}
# The dot and the hyphen are no part of a Python name; the library has to rewrite them.
TIED, UNTIED = "tied-1.5", "untied"
NAMES = [TIED, UNTIED, "base", "sequence", "token"]
ORIGINS = ["folder", "hub"]
NOTHING_AMISS = {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": [], "error_msgs": []}

INPUT_IDS = [[17, 5, 99, 23, 42], [64, 8, 31, 2, 77]]
TEXTS = ["The lamp", "", " é 漢字 🙂", "<|endoftext|>done"]
PROMPTS = ["The lamp", "I had always thought Jack Gisburn rather", "Yes"]
NEW_TOKENS = 8


def random_model(model_class: type[PreTrainedModel], seed: int, **settings: object) -> PreTrainedModel:
    """No weight keeps the value it is born with, so that none can get lost unseen."""
    defaults = {
        "vocab_size": 101,
        "max_position_embeddings": 40,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    model = model_class(GPTScratchConfig(**(defaults | settings))).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.3, generator=generator)
    return model


@pytest.fixture(scope="module")
def models() -> dict[str, PreTrainedModel]:
    gpt2_tokens = {"vocab_size": 50257, "bos_token_id": 50256, "eos_token_id": 50256, "pad_token_id": 50256}
    return {
        TIED: random_model(GPTScratchForCausalLM, 1, **gpt2_tokens),
        UNTIED: random_model(GPTScratchForCausalLM, 2, tie_word_embeddings=False, **gpt2_tokens),
        "base": random_model(GPTScratchModel, 3),
        "sequence": random_model(GPTScratchForSequenceClassification, 4, num_labels=3),
        "token": random_model(GPTScratchForTokenClassification, 5, num_labels=5),
    }


@pytest.fixture(scope="module")
def expected(models: dict[str, PreTrainedModel]) -> dict[str, torch.Tensor]:
    """First output of each model in this process: hidden states or logits.

    The number of threads decides the last bit. It is one in this process and in the fresh interpreters.
    """
    assert torch.get_num_threads() == 1
    with torch.no_grad():
        return {name: model(torch.tensor(INPUT_IDS))[0] for name, model in models.items()}


@pytest.fixture(scope="module")
def repositories(models: dict[str, PreTrainedModel], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The two language models through our function, the others as users save any model."""
    folder = tmp_path_factory.mktemp("repositories")
    build_repository(
        models[TIED], folder / TIED, card=CardDetails(facts={"validation loss": 3.25, "price": "$name $5"})
    )
    build_repository(models[UNTIED], folder / UNTIED, max_shard_size="20KB")
    for name in ("base", "sequence", "token"):
        models[name].save_pretrained(folder / name)
    return {name: folder / name for name in NAMES}


@pytest.fixture
def tiny_model(models: dict[str, PreTrainedModel]) -> PreTrainedModel:
    return models["base"]


def read_json(file: Path) -> dict:
    return json.loads(file.read_text(encoding="utf-8"))


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def weight_names(file: Path) -> set[str]:
    with safe_open(file, framework="pt") as weights:
        return set(weights.keys())


def assert_code_and_full_auto_map(folder: Path) -> None:
    assert read_json(folder / "config.json")["auto_map"] == FULL_AUTO_MAP
    assert sorted(file.name for file in folder.glob("*.py")) == CODE_FILES
    for name in CODE_FILES:
        assert (folder / name).read_bytes() == (MODEL_FOLDER / name).read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_the_folder_is_complete_for_every_class(models: dict[str, PreTrainedModel], name: str, tmp_path: Path) -> None:
    folder = build_repository(models[name], tmp_path / "parent" / name)
    assert folder == tmp_path / "parent" / name
    assert list(folder.parent.iterdir()) == [folder]
    names = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", *CODE_FILES}
    if models[name].can_generate():
        names.add("generation_config.json")
    assert set(content(folder)) == names
    assert_code_and_full_auto_map(folder)


def test_every_entry_of_the_auto_map_is_a_class_of_the_shipped_files() -> None:
    for entry in FULL_AUTO_MAP.values():
        module, name = entry.split(".")
        tree = ast.parse((MODEL_FOLDER / f"{module}.py").read_text(encoding="utf-8"))
        classes = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
        imported = {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
        assert name in classes | imported


def test_a_tied_head_is_written_once_and_an_untied_one_beside_the_embeddings(repositories: dict[str, Path]) -> None:
    tied = weight_names(repositories[TIED] / "model.safetensors")
    assert "model.embed_tokens.weight" in tied
    assert "lm_head.weight" not in tied
    untied = read_json(repositories[UNTIED] / "model.safetensors.index.json")["weight_map"]
    assert set(untied) == tied | {"lm_head.weight"}


@pytest.mark.skipif(VERSION < (5, 4), reason="below, the library does not compare the values")
def test_a_head_of_its_own_stays_where_the_configuration_ties_it(
    models: dict[str, PreTrainedModel], repositories: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library says that it ties nothing, so our code must not either."""
    said: list[str] = []
    monkeypatch.setattr(modeling_utils.logger, "warning", said.append)
    model = GPTScratchForCausalLM.from_pretrained(repositories[UNTIED], tie_word_embeddings=True)
    assert "so we will NOT tie them" in said[0]
    assert torch.equal(model.lm_head.weight, models[UNTIED].lm_head.weight)
    assert torch.equal(model.model.embed_tokens.weight, models[UNTIED].model.embed_tokens.weight)


def test_shards_are_no_larger_than_asked_and_the_index_knows_all(
    models: dict[str, PreTrainedModel], repositories: dict[str, Path]
) -> None:
    index = read_json(repositories[UNTIED] / "model.safetensors.index.json")
    shards = sorted(repositories[UNTIED].glob("*.safetensors"))
    assert len(shards) >= 3
    assert {shard.name for shard in shards} == set(index["weight_map"].values())
    for shard in shards:
        names = weight_names(shard)
        assert names == {name for name, file in index["weight_map"].items() if file == shard.name}
        size = sum(models[UNTIED].get_parameter(name).nbytes for name in names)
        assert size <= 20_000 or len(names) == 1  # a weight is never divided
    assert set(index["weight_map"]) == set(models[UNTIED].state_dict())


def test_the_generation_config_is_explicit(repositories: dict[str, Path]) -> None:
    """In particular it lacks the mark `_from_model_config`, with which the library would guess again."""
    generation_config = read_json(repositories[TIED] / "generation_config.json")
    assert generation_config.pop("transformers_version")
    assert generation_config == {"bos_token_id": 50256, "eos_token_id": 50256, "pad_token_id": 50256}


def test_the_tokenizer_is_gpt2s_with_the_context_of_the_model_or_the_one_given(
    tiny_model: PreTrainedModel, repositories: dict[str, Path], tmp_path: Path
) -> None:
    saved = AutoTokenizer.from_pretrained(repositories[TIED])
    assert saved(TEXTS)["input_ids"] == build_tokenizer()(TEXTS)["input_ids"]
    assert (saved.model_max_length, saved.padding_side, saved.pad_token_id) == (40, "left", 50256)
    folder = build_repository(tiny_model, tmp_path / "own", tokenizer=build_tokenizer(model_max_length=7))
    assert AutoTokenizer.from_pretrained(folder).model_max_length == 7


@pytest.mark.skipif(VERSION < (5, 3), reason="AutoTokenizer has a class of its own for all tokenizers there")
def test_a_loaded_tokenizer_writes_the_files_of_a_new_one(
    tiny_model: PreTrainedModel, repositories: dict[str, Path], tmp_path: Path
) -> None:
    """A repository does not say how and from where its tokenizer was loaded."""
    folder = build_repository(
        tiny_model, tmp_path / "again", tokenizer=AutoTokenizer.from_pretrained(repositories[TIED])
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (folder / name).read_text("utf-8") == (repositories[TIED] / name).read_text("utf-8")


def test_older_releases_can_read_the_tokenizer_and_know_its_class(repositories: dict[str, Path]) -> None:
    """Tokenizers 0.19 reads merges as strings alone; transformers 4.40's pipeline asks config.json for a class."""
    merges = read_json(repositories[TIED] / "tokenizer.json")["model"]["merges"]
    assert (len(merges), merges[0]) == (50_000, "Ġ t")
    assert (repositories[TIED] / "tokenizer.json").stat().st_size < 2_200_000
    for file in ("config.json", "tokenizer_config.json"):
        assert read_json(repositories[TIED] / file)["tokenizer_class"] == "GPT2Tokenizer"


FOREIGN = {
    "merges with spaces": {"type": "BPE", "vocab": {"a": 0, " ": 1, "a ": 2, "a a": 3}, "merges": ["a_ ", "a _a"]},
    "no merges": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"},
    "characters": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "é": 3}, "merges": ["a_b"]},
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_tokenizer_keeps_what_strings_cannot_hold(
    tiny_model: PreTrainedModel, kind: str, tmp_path: Path
) -> None:
    parts = dict(FOREIGN[kind])
    if "merges" in parts:
        parts["merges"] = [merge.split("_") for merge in parts["merges"]]
    theirs = Tokenizer.from_str(json.dumps({"model": parts, "added_tokens": []}))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=theirs, eos_token="a")
    tokenizer.save_pretrained(tmp_path / "theirs")
    folder = build_repository(tiny_model, tmp_path / "ours", tokenizer=tokenizer)
    expected = read_json(tmp_path / "theirs" / "tokenizer.json")
    if kind == "characters":
        expected["model"]["merges"] = ["a b"]
    else:
        assert (folder / "tokenizer.json").read_bytes() == (tmp_path / "theirs" / "tokenizer.json").read_bytes()
    assert read_json(folder / "tokenizer.json") == expected
    loaded = AutoTokenizer.from_pretrained(folder)
    for text in ("a a", "ab", "aéa ab"):
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_the_card_holds_the_facts_and_the_hub_can_read_it(
    models: dict[str, PreTrainedModel], repositories: dict[str, Path]
) -> None:
    card = ModelCard.load(repositories[TIED] / "README.md")
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text-generation"
    assert f"\n# {TIED}\n" in card.text
    rows = [line.strip("| ").split(" | ") for line in card.text.splitlines() if line.startswith("| ")]
    assert dict(row for row in rows if len(row) == 2) == {
        "parameters": f"{sum(weight.numel() for weight in models[TIED].parameters()):,}",
        "layers, heads, width": "2, 2, 16",
        "context": "40 tokens",
        "validation loss": "3.25",
        "price": "$name $5",
    }


def test_no_file_names_the_machine_it_was_made_on(repositories: dict[str, Path]) -> None:
    for folder in repositories.values():
        for name, data in content(folder).items():
            assert str(folder.parent).encode() not in data, name


@pytest.mark.parametrize("occupied_by", ["folder", "empty folder", "file"])
def test_what_exists_is_refused_in_one_line_and_left_alone(
    tiny_model: PreTrainedModel, tmp_path: Path, occupied_by: str
) -> None:
    place = tmp_path / "place"
    if occupied_by == "file":
        place.write_text("mine")
    else:
        place.mkdir()
    if occupied_by == "folder":
        (place / "notes.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(FileExistsError) as error:
        build_repository(tiny_model, place)
    assert str(place) in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_replace_leaves_nothing_of_the_old_model_and_all_else(tiny_model: PreTrainedModel, tmp_path: Path) -> None:
    build_repository(tiny_model, tmp_path / "place", max_shard_size="1KB")
    (tmp_path / "place" / "LICENSE").write_text("somebody's")
    (tmp_path / "place" / "scores.json").write_text("{}")
    (tmp_path / "place" / "README.md").write_text("somebody's")
    (tmp_path / "place" / "older_gpt_scratch.py").write_text("# of an older release")
    (tmp_path / "place" / "figures").mkdir()
    (tmp_path / "place" / "figures" / "a.png").write_bytes(b"x")
    assert len(list((tmp_path / "place").glob("model-*.safetensors"))) > 1
    build_repository(tiny_model, tmp_path / "place", replace=True, kept=["README.md"])
    assert list(tmp_path.iterdir()) == [tmp_path / "place"]
    assert (tmp_path / "place" / "README.md").read_text() == "somebody's"
    assert (tmp_path / "place" / "figures" / "a.png").read_bytes() == b"x"
    shutil.rmtree(tmp_path / "place" / "figures")
    build_repository(tiny_model, tmp_path / "place", replace=True)
    assert (tmp_path / "place" / "LICENSE").read_text() == "somebody's"
    assert (tmp_path / "place" / "scores.json").read_text() == "{}"
    (tmp_path / "place" / "LICENSE").unlink()
    (tmp_path / "place" / "scores.json").unlink()
    new = build_repository(tiny_model, tmp_path / "elsewhere" / "place")
    assert content(tmp_path / "place") == content(new)


class FailingTokenizer:
    """The disk is full, or the user stops the program, when it is the tokenizer's turn to be saved."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.seen: list[str] = []

    def save_pretrained(self, folder: Path) -> None:
        self.seen = sorted(path.name for path in folder.iterdir())
        raise self.error


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_error_in_the_middle_leaves_nothing(
    tiny_model: PreTrainedModel, tmp_path: Path, error: BaseException
) -> None:
    tokenizer = FailingTokenizer(error)
    with pytest.raises(type(error)):
        build_repository(tiny_model, tmp_path / "place", tokenizer=tokenizer)
    assert "model.safetensors" in tokenizer.seen  # it was in the middle
    assert list(tmp_path.iterdir()) == []


def test_an_error_in_the_middle_of_replacing_leaves_the_old_folder(
    tiny_model: PreTrainedModel, tmp_path: Path
) -> None:
    build_repository(tiny_model, tmp_path / "place")
    before = content(tmp_path / "place")
    with pytest.raises(OSError, match="No space left"):
        build_repository(
            tiny_model,
            tmp_path / "place",
            tokenizer=FailingTokenizer(OSError(28, "No space left on device")),
            replace=True,
        )
    assert list(tmp_path.iterdir()) == [tmp_path / "place"]
    assert content(tmp_path / "place") == before


@pytest.fixture(params=[0o022, 0o027, 0o002], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    previous = os.umask(request.param)
    yield request.param
    os.umask(previous)


def test_permissions_are_those_of_any_new_file(tiny_model: PreTrainedModel, tmp_path: Path, umask: int) -> None:
    """So that a colleague can read the weights, and only who is meant to."""
    folder = build_repository(tiny_model, tmp_path / "place")
    assert stat.filemode(folder.stat().st_mode) == stat.filemode(stat.S_IFDIR | 0o777 & ~umask)
    file_mode = stat.filemode(stat.S_IFREG | 0o666 & ~umask)
    assert {path.name: stat.filemode(path.stat().st_mode) for path in folder.iterdir()} == dict.fromkeys(
        content(folder), file_mode
    )
    assert os.umask(umask) == umask  # and the mask itself is as before


@pytest.mark.parametrize("name", NAMES)
def test_save_pretrained_writes_the_code_and_the_full_auto_map(
    models: dict[str, PreTrainedModel], name: str, tmp_path: Path
) -> None:
    models[name].save_pretrained(tmp_path / "saved")
    assert_code_and_full_auto_map(tmp_path / "saved")
    loaded = type(models[name]).from_pretrained(tmp_path / "saved")
    loaded.save_pretrained(tmp_path / "again")
    assert content(tmp_path / "again") == content(tmp_path / "saved")


def test_the_trainer_writes_the_code_and_the_full_auto_map(tmp_path: Path) -> None:
    """Into its checkpoints and into the model folder."""
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=1, save_steps=1, report_to=[], use_cpu=True, disable_tqdm=True
    )
    row = {"input_ids": INPUT_IDS[0], "labels": INPUT_IDS[0]}
    trainer = Trainer(random_model(GPTScratchForCausalLM, 6), arguments, train_dataset=[row, row])
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    for folder in (tmp_path / "checkpoint-1", tmp_path / "model"):
        assert_code_and_full_auto_map(folder)


@pytest.mark.parametrize("name", CODE_FILES)
def test_shipped_files_import_only_what_every_user_has_and_each_other(name: str) -> None:
    tree = ast.parse((MODEL_FOLDER / name).read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    siblings = set()
    for node in imports:
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif node.level == 0:
            modules = [node.module]
        else:
            assert (node.level, f"{node.module}.py" in CODE_FILES) == (1, True), ast.unparse(node)
            siblings.add(node.module)
            continue
        for module in modules:
            top = module.split(".")[0]
            assert top in {"torch", "transformers", "huggingface_hub"} | sys.stdlib_module_names, ast.unparse(node)
    # The library reads relative imports with a regular expression, docstrings included.
    assert set(get_relative_imports(MODEL_FOLDER / name)) == siblings
    assert "hf_gpt_scratch" not in get_imports(MODEL_FOLDER / name)


CALLED_AT_IMPORT = {
    "configuration_gpt_scratch.py": {"", "int", "transformers.__version__.split", "dict.fromkeys", "sorted"}
    | {"tuple", "ImportError", "', '.join"},
    "generation_gpt_scratch.py": {"inspect.signature"},
    "loss_gpt_scratch.py": set(),
    "modeling_gpt_scratch.py": {"getattr", "hasattr", "inspect.signature", "ImportError"}
    | {"AUTO_MAP.items", "globals", "place.partition"}
    | {"globals()[place.partition('.')[2]].register_for_auto_class"},
}


@pytest.mark.parametrize("name", CODE_FILES)
def test_importing_shipped_files_does_nothing_but_define_and_look_at_the_library(name: str) -> None:
    """All that is called while a file is imported, outside of functions and classes; see test_import_does_nothing.py
    for what that does.
    """
    tree = ast.parse((MODEL_FOLDER / name).read_text(encoding="utf-8"))
    called = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            continue
        inner = {id(part) for one in ast.walk(node) if isinstance(one, ast.ClassDef) for part in ast.walk(one)}
        parts = [part for part in ast.walk(node) if isinstance(part, ast.Call) and id(part) not in inner]
        called |= {ast.unparse(part.func) for part in parts}
    assert called <= CALLED_AT_IMPORT[name]


@pytest.fixture(scope="module")
def places(repositories: dict[str, Path]) -> dict[str, dict[str, str]]:
    """Names that a user passes to `from_pretrained`, by origin and name."""
    return {
        "folder": {name: str(folder) for name, folder in repositories.items()},
        "hub": {name: f"me/{name}" for name in repositories},
    }


def loading_calls(places: dict[str, str], models: dict[str, PreTrainedModel], card: Path) -> Calls:
    """All that a user does with repositories."""
    calls: Calls = {
        "package": ("import_package", {}),
        "code": (
            "import_code_without_warning",
            {"path": places[TIED], "class_references": [*FULL_AUTO_MAP.values(), PROCESSOR]},
        ),
        "config": ("load_config", {"path": places[TIED]}),
        "tokenizer": ("load_tokenizer", {"path": places[TIED], "texts": TEXTS}),
    }
    for name, path in places.items():
        arguments = {"path": path, "auto_class": AUTO_CLASS[type(models[name])], "save": f"saved/{name}"}
        calls[name] = ("load_model", {**arguments, "input_ids": INPUT_IDS, "output": name})
    for head in ("AutoModel", "AutoModelForSequenceClassification", "AutoModelForTokenClassification"):
        arguments = {"path": places[TIED], "auto_class": head, "save": f"saved/{head}"}
        calls[head] = ("load_model", {**arguments, "input_ids": INPUT_IDS, "output": head})
    for batch_size in (1, 3):
        calls[f"pipeline {batch_size}"] = (
            "continue_prompts",
            {"path": places[TIED], "prompts": PROMPTS, "max_new_tokens": NEW_TOKENS, "batch_size": batch_size},
        )
    calls["processor"] = (
        "sample_with_processor",
        {"path": places[TIED], "input_ids": INPUT_IDS, "max_new_tokens": NEW_TOKENS},
    )
    calls["past context"] = ("go_on_past_context", {"path": places[TIED], "input_ids": INPUT_IDS, "prompts": PROMPTS})
    calls["example"] = ("run_example", {"card": str(card), "path": places[TIED]})
    return calls


@pytest.fixture(scope="module")
def weights_only(repositories: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository whose code lies in another one, as for a fine-tuned model."""
    folder = tmp_path_factory.mktemp("weights") / "only"
    shutil.copytree(repositories[TIED], folder, ignore=shutil.ignore_patterns("*.py"))
    config = read_json(folder / "config.json")
    config["auto_map"] = {key: f"me/{TIED}--{entry}" for key, entry in FULL_AUTO_MAP.items()}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def loaded(
    models: dict[str, PreTrainedModel],
    repositories: dict[str, Path],
    places: dict[str, dict[str, str]],
    weights_only: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Outcome]:
    """One interpreter for each origin."""
    root = tmp_path_factory.mktemp("loaded")
    card = repositories[TIED] / "README.md"
    from_hub = loading_calls(places["hub"], models, card)
    arguments = {"path": "me/only", "auto_class": "AutoModelForCausalLM", "save": "saved/only"}
    from_hub["only"] = ("load_model", {**arguments, "input_ids": INPUT_IDS, "output": "only"})
    arguments = {"path": f"me/{TIED}", "auto_class": "AutoModelForCausalLM", "revision": commit_of(repositories[TIED])}
    from_hub["pinned"] = ("load_model", {**arguments, "input_ids": INPUT_IDS, "output": "pinned"})
    hub = {place: repositories[name] for name, place in places["hub"].items()} | {"me/only": weights_only}
    return {
        "folder": run(root / "folder", loading_calls(places["folder"], models, card)),
        "hub": run(root / "hub", from_hub, hub=hub),
    }


@pytest.mark.parametrize("origin", ORIGINS)
def test_the_interpreter_cannot_import_the_package(loaded: dict[str, Outcome], origin: str) -> None:
    """Without this the tests below would prove nothing."""
    classes, message = loaded[origin].raised("package")
    assert classes[0] == "ModuleNotFoundError"
    assert message == "No module named 'hf_gpt_scratch'"


@pytest.mark.parametrize("origin", ORIGINS)
def test_config_is_the_same(loaded: dict[str, Outcome], models: dict[str, PreTrainedModel], origin: str) -> None:
    config = loaded[origin].returned("config")
    assert config["class"] == "GPTScratchConfig"
    assert config["module"].startswith("transformers_modules.")
    fields = models[TIED].config.to_diff_dict()
    assert {key: config["fields"][key] for key in fields} == fields


@pytest.mark.parametrize("origin", ORIGINS)
@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_bit_identical(
    loaded: dict[str, Outcome],
    models: dict[str, PreTrainedModel],
    expected: dict[str, torch.Tensor],
    name: str,
    origin: str,
) -> None:
    model = loaded[origin].returned(name)
    assert model["class"] == type(models[name]).__name__
    assert model["module"].startswith("transformers_modules.")
    assert model["loading_info"] == NOTHING_AMISS
    assert not model["training"]
    assert torch.equal(loaded[origin].tensor(name), expected[name])


def test_a_pinned_commit_is_bit_identical(loaded: dict[str, Outcome], expected: dict[str, torch.Tensor]) -> None:
    assert loaded["hub"].returned("pinned")["loading_info"] == NOTHING_AMISS
    assert torch.equal(loaded["hub"].tensor("pinned"), expected[TIED])


@pytest.mark.parametrize("origin", ORIGINS)
def test_the_base_of_a_language_model_loads_alone(
    loaded: dict[str, Outcome], models: dict[str, PreTrainedModel], origin: str
) -> None:
    """Inference engines ask for it through `AutoModel` and bring their own head."""
    model = loaded[origin].returned("AutoModel")
    assert (model["class"], model["loading_info"]) == ("GPTScratchModel", NOTHING_AMISS)
    with torch.no_grad():
        hidden_states = models[TIED].model(torch.tensor(INPUT_IDS)).last_hidden_state
    assert torch.equal(loaded[origin].tensor("AutoModel"), hidden_states)


@pytest.mark.parametrize("origin", ORIGINS)
@pytest.mark.parametrize(
    ("auto_class", "new"),
    [
        ("AutoModelForSequenceClassification", ["score.weight"]),
        ("AutoModelForTokenClassification", ["score.bias", "score.weight"]),
    ],
)
def test_a_language_model_gets_a_new_head_for_classification(
    loaded: dict[str, Outcome], models: dict[str, PreTrainedModel], auto_class: str, new: list[str], origin: str
) -> None:
    model = loaded[origin].returned(auto_class)
    assert model["loading_info"] == NOTHING_AMISS | {"missing_keys": new}
    file = loaded[origin].folder / "saved" / auto_class / "model.safetensors"
    base = models[TIED].state_dict()
    base.pop("lm_head.weight")
    assert weight_names(file) == set(base) | set(new)
    with safe_open(file, framework="pt") as weights:
        for name, weight in base.items():
            assert torch.equal(weights.get_tensor(name), weight)


@pytest.mark.parametrize("origin", ORIGINS)
def test_tokenizer_is_the_same(loaded: dict[str, Outcome], origin: str) -> None:
    tokenizer = build_tokenizer(model_max_length=40)
    assert loaded[origin].returned("tokenizer") == {
        "class": "GPT2Tokenizer" if VERSION >= (5, 3) else "TokenizersBackend",
        "token_ids": tokenizer(TEXTS)["input_ids"],
        "pad_token": "<|endoftext|>",
        "padding_side": "left",
        "model_max_length": 40,
        "questions": 0,
    }


@pytest.mark.parametrize("origin", ORIGINS)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_pipeline_continues_each_prompt_as_if_alone(
    loaded: dict[str, Outcome], models: dict[str, PreTrainedModel], batch_size: int, origin: str
) -> None:
    """In a batch the short prompts are padded with the tokenizer's pad token."""
    tokenizer = build_tokenizer()
    lengths = set()
    texts = []
    for prompt in PROMPTS:
        inputs = tokenizer(prompt, return_tensors="pt")
        lengths.add(inputs["input_ids"].shape[1])
        token_ids = models[TIED].generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=50256)
        texts.append(tokenizer.decode(token_ids[0], skip_special_tokens=True))
    assert len(lengths) == len(PROMPTS)
    assert loaded[origin].returned(f"pipeline {batch_size}")["texts"] == texts


@pytest.mark.parametrize("origin", ORIGINS)
def test_logits_processor_comes_out_of_the_repository(
    loaded: dict[str, Outcome], models: dict[str, PreTrainedModel], origin: str
) -> None:
    processor = loaded[origin].returned("processor")
    assert processor["module"].startswith("transformers_modules.")
    greedy = models[TIED].generate(
        torch.tensor(INPUT_IDS), max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=50256
    )
    assert processor["token_ids"] == greedy.tolist()


@pytest.mark.parametrize("origin", ORIGINS)
def test_generation_goes_on_past_the_context(
    loaded: dict[str, Outcome], models: dict[str, PreTrainedModel], repositories: dict[str, Path], origin: str
) -> None:
    """Opted in by a keyword of generate() and of the pipeline, also for who has nothing but the repository."""
    report, model = loaded[origin].returned("past context"), models[TIED]
    ids = torch.tensor(INPUT_IDS)
    for mode in ("exact", "rolling"):
        expected = model.generate(
            ids, max_new_tokens=80, do_sample=False, past_context=mode, eos_token_id=None, pad_token_id=50256
        )
        assert report[mode] == expected.tolist()
    assert report["exact"] != report["rolling"]
    tokenizer = AutoTokenizer.from_pretrained(repositories[TIED])
    for prompt, text in zip(PROMPTS, report["texts"], strict=True):
        assert text.startswith(prompt)
        assert len(tokenizer(text)["input_ids"]) > model.config.max_position_embeddings


@pytest.mark.parametrize("origin", ORIGINS)
def test_the_example_of_the_card_runs_as_printed(loaded: dict[str, Outcome], origin: str) -> None:
    example = loaded[origin].returned("example")
    assert example["filled_in"] == [True]
    assert example["printed"].startswith("The lamp")


@pytest.mark.parametrize("origin", ORIGINS)
def test_importing_the_code_warns_of_nothing(loaded: dict[str, Outcome], origin: str) -> None:
    code = loaded[origin].returned("code")
    assert all(module.startswith("transformers_modules.") for module in code["modules"])
    assert code["printed"] == ""
    # From the Hub the library itself asks to check the code of an unpinned revision.
    asked = [message for message in code["logged"] if message.startswith("A new version of the following files was")]
    assert code["logged"] == ([] if origin == "folder" else asked)


@pytest.mark.parametrize("origin", ORIGINS)
@pytest.mark.parametrize("name", NAMES)
def test_saved_again_it_is_the_same_repository(
    loaded: dict[str, Outcome], repositories: dict[str, Path], name: str, origin: str
) -> None:
    """The weights of the sharded one come together; all else is byte for byte what it was."""
    loaded[origin].returned(name)
    saved = content(loaded[origin].folder / "saved" / name)
    original = content(repositories[name])
    for file in ("README.md", "tokenizer.json", "tokenizer_config.json"):
        original.pop(file, None)
    if name == UNTIED:
        original = {file: data for file, data in original.items() if "safetensors" not in file}
        saved.pop("model.safetensors")
    assert saved == original
    assert_code_and_full_auto_map(loaded[origin].folder / "saved" / name)


def test_saved_again_a_repository_without_code_has_it(
    loaded: dict[str, Outcome], expected: dict[str, torch.Tensor]
) -> None:
    assert loaded["hub"].returned("only")["loading_info"] == NOTHING_AMISS
    assert torch.equal(loaded["hub"].tensor("only"), expected[TIED])
    assert_code_and_full_auto_map(loaded["hub"].folder / "saved" / "only")


@pytest.fixture(scope="module")
def loaded_again(
    loaded: dict[str, Outcome], models: dict[str, PreTrainedModel], tmp_path_factory: pytest.TempPathFactory
) -> Outcome:
    """The third interpreter loads what those before it have saved."""
    heads = ["AutoModel", "AutoModelForSequenceClassification", "AutoModelForTokenClassification"]
    auto_classes = {name: AUTO_CLASS[type(model)] for name, model in models.items()} | {head: head for head in heads}
    calls: Calls = {}
    for origin in ORIGINS:
        for name, auto_class in auto_classes.items():
            place = str(loaded[origin].folder / "saved" / name)
            arguments = {"path": place, "auto_class": auto_class, "input_ids": INPUT_IDS}
            calls[f"{origin} {name}"] = ("load_model", {**arguments, "output": f"{origin} {name}"})
    return run(tmp_path_factory.mktemp("again") / "home", calls)


@pytest.mark.parametrize("origin", ORIGINS)
@pytest.mark.parametrize(
    "name", [*NAMES, "AutoModel", "AutoModelForSequenceClassification", "AutoModelForTokenClassification"]
)
def test_saved_again_it_loads_bit_identical(
    loaded: dict[str, Outcome], loaded_again: Outcome, name: str, origin: str
) -> None:
    assert loaded_again.returned(f"{origin} {name}")["loading_info"] == NOTHING_AMISS
    assert torch.equal(loaded_again.tensor(f"{origin} {name}"), loaded[origin].tensor(name))


@pytest.fixture(scope="module")
def doubled(repositories: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with code that doubles the logits."""
    folder = tmp_path_factory.mktemp("edited") / "doubled"
    shutil.copytree(repositories[TIED], folder)
    file = folder / "modeling_gpt_scratch.py"
    code = file.read_text(encoding="utf-8")
    assert code.count("logits = self.lm_head(") == 1
    file.write_text(code.replace("logits = self.lm_head(", "logits = 2 * self.lm_head("), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def side_by_side(repositories: dict[str, Path], doubled: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """One interpreter loads the plain and the doubled repository; what they have in common differs."""
    root = tmp_path_factory.mktemp("side_by_side")
    shutil.copytree(repositories[TIED], root / "run-1" / "model")
    shutil.copytree(doubled, root / "run-2" / "model")
    pairs = {
        "folders": [(str(repositories[TIED]), None), (str(doubled), None)],
        "folders of one name": [(str(root / "run-1" / "model"), None), (str(root / "run-2" / "model"), None)],
        "hub": [("me/plain", None), ("me/doubled", None)],
        "hub revisions": [("me/plain", "main"), ("me/plain", "doubled")],
    }
    calls: Calls = {}
    for pair, places in pairs.items():
        paths, revisions = zip(*places, strict=True)
        arguments = {"paths": paths, "revisions": revisions, "input_ids": INPUT_IDS}
        calls[pair] = ("load_side_by_side", {**arguments, "outputs": [f"{pair} 1", f"{pair} 2"]})
    hub = {"me/plain": repositories[TIED], "me/doubled": doubled, "me/plain@doubled": doubled}
    return run(root / "home", calls, hub=hub)


@pytest.mark.parametrize("pair", ["folders", "folders of one name", "hub", "hub revisions"])
def test_repositories_in_one_process_run_and_save_each_its_own_code(
    side_by_side: Outcome,
    repositories: dict[str, Path],
    doubled: Path,
    expected: dict[str, torch.Tensor],
    pair: str,
) -> None:
    """Doubling is exact in floating point. It also shows that the comparisons above notice an edited file."""
    if pair != "folders of one name" or VERSION >= (5, 8):  # before, two modules of one name follow each other
        assert len(set(side_by_side.returned(pair)["modules"])) == 2
    assert torch.equal(side_by_side.tensor(f"{pair} 1"), expected[TIED])
    assert torch.equal(side_by_side.tensor(f"{pair} 2"), 2 * expected[TIED])
    for number, repository in enumerate((repositories[TIED], doubled), start=1):
        saved = side_by_side.folder / "saved" / f"{pair} {number}"
        for name in CODE_FILES:
            assert (saved / name).read_bytes() == (repository / name).read_bytes()


UNTRUSTED_CLASSES = ["AutoConfig", *AUTO_CLASS.values(), "pipeline"]


@pytest.fixture(scope="module")
def untrusted(repositories: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A repository whose code leaves marks: first without trust in every way, then with it."""
    root = tmp_path_factory.mktemp("untrusted")
    marker = root / "marks"
    spy = root / "spy"
    shutil.copytree(repositories[TIED], spy)
    for name in CODE_FILES:
        with (spy / name).open("a", encoding="utf-8") as file:
            file.write(f'\nwith open({str(marker)!r}, "a") as marks:\n    marks.write("{name}\\n")\n')
    calls: Calls = {}
    for origin, path in (("folder", str(spy)), ("hub", "me/spy")):
        for trust in (False, None):
            for auto_class in UNTRUSTED_CLASSES:
                arguments = {"path": path, "auto_class": auto_class, "trust_remote_code": trust}
                calls[f"{origin} {trust} {auto_class}"] = ("load_without_trust", arguments)
            tokenizer = {"path": path, "texts": TEXTS, "trust_remote_code": trust}
            calls[f"{origin} {trust} tokenizer"] = ("load_tokenizer", tokenizer)
    home = {"home": str(root / "home" / "home"), "marker": str(marker)}
    calls["before"] = ("remote_code", home)
    calls["trust"] = ("load_config", {"path": "me/spy"})
    calls["after"] = ("remote_code", home)
    return run(root / "home", calls, hub={"me/spy": spy})


@pytest.mark.parametrize("origin", ORIGINS)
@pytest.mark.parametrize("trust", [False, None])
@pytest.mark.parametrize("auto_class", UNTRUSTED_CLASSES)
def test_without_trust_loading_is_refused(
    untrusted: Outcome, auto_class: str, trust: bool | None, origin: str
) -> None:
    """None asks the user, whose stdin is closed here."""
    classes, message = untrusted.raised(f"{origin} {trust} {auto_class}")
    assert classes[0] == "ValueError"
    assert "trust_remote_code=True" in message


@pytest.mark.parametrize("origin", ORIGINS)
@pytest.mark.parametrize("trust", [False, None])
def test_without_trust_the_tokenizer_loads(untrusted: Outcome, trust: bool | None, origin: str) -> None:
    """It has no code of its own. Unless told no before, transformers 5 asks about that of the model all the same."""
    tokenizer = untrusted.returned(f"{origin} {trust} tokenizer")
    assert tokenizer["token_ids"] == build_tokenizer()(TEXTS)["input_ids"]
    assert (tokenizer["padding_side"], tokenizer["model_max_length"]) == ("left", 40)
    assert tokenizer["questions"] == (trust is None)


def test_without_trust_no_code_is_run_nor_even_copied(untrusted: Outcome) -> None:
    assert untrusted.returned("before") == {"imported": [], "copied": [], "marks": []}
    # The control: with trust the code does leave its marks.
    untrusted.returned("trust")
    after = untrusted.returned("after")
    assert "configuration_gpt_scratch.py" in after["copied"]
    assert (len(after["imported"]), after["marks"]) == (4, CODE_FILES)
