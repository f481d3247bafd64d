"""transformers itself, with a model that it knows only from a folder: training, decoding, export, offload."""

from collections.abc import Callable
from pathlib import Path

import pytest


pytestmark = pytest.mark.ecosystem

PROMPTS = ["Tom the ferry", "There were only two people on the ferry, Nell", "Is it"]


def load(path: str, **options):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True, **options).eval()
    assert type(model).__module__.startswith("transformers_modules.")
    return model, AutoTokenizer.from_pretrained(path)


def greedy(model, tokenizer, text: str, new_tokens: int = 20, **options) -> list[int]:
    inputs = tokenizer(text, return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False, eos_token_id=None, **options)
    return ids[0, inputs["input_ids"].shape[1] :].tolist()


def train(path: str, text_file: str) -> dict:
    """Six steps in one go, and three and three; returns the losses and the largest differences of weights."""
    import torch
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    _, tokenizer = load(path)
    ids = tokenizer(Path(text_file).read_text(encoding="utf-8"), return_tensors="pt")["input_ids"][0]
    rows = [{"input_ids": row, "labels": row} for row in ids[: 32 * 40].view(-1, 32)]

    def trainer(folder: str) -> Trainer:
        arguments = TrainingArguments(
            folder, max_steps=6, save_steps=3, per_device_train_batch_size=4, gradient_accumulation_steps=2,
            learning_rate=1e-3, report_to="none", push_to_hub=False, use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        model, _ = load(path)
        return Trainer(model=model, args=arguments, train_dataset=rows[:32], eval_dataset=rows[32:])

    whole = trainer("whole")
    before = whole.evaluate()["eval_loss"]
    with torch.no_grad():
        model, _ = load(path)
        plain = torch.stack([model(row["input_ids"][None], labels=row["labels"][None]).loss for row in rows[32:]])
    whole.train()
    resumed = trainer("resumed")
    resumed.train(resume_from_checkpoint="whole/checkpoint-3")
    whole.save_model("saved")
    saved = AutoModelForCausalLM.from_pretrained("saved", trust_remote_code=True)
    middle = AutoModelForCausalLM.from_pretrained("whole/checkpoint-3", trust_remote_code=True)
    end = whole.model.state_dict()

    def difference(model) -> float:
        return max(float((end[name] - weight).abs().max()) for name, weight in model.state_dict().items())

    return {
        "before": before,
        "plain": plain.mean().item(),
        "after": whole.evaluate()["eval_loss"],
        "resumed_steps": resumed.state.global_step,
        "resumed": difference(resumed.model),
        "saved": difference(saved),
        "middle": difference(middle),
    }


@pytest.mark.works("transformers", "`Trainer`: train, evaluate, resume, save")
def test_trainer(call: Callable, repository: Path, sample_text: Path) -> None:
    report = call(train, path=repository, text_file=sample_text)
    assert report["before"] == pytest.approx(report["plain"], rel=1e-5)
    assert report["after"] < report["before"]
    assert report["resumed_steps"] == 6
    assert report["resumed"] == 0
    assert report["saved"] == 0
    assert report["middle"] > 1e-4  # the control: without the last three steps the weights are others


def decode(path: str, stock: str) -> dict:
    """The same prompts in many ways."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig, pipeline

    model, tokenizer = load(path)
    peer = AutoModelForCausalLM.from_pretrained(stock).eval()
    report = {"greedy": [greedy(model, tokenizer, text) for text in PROMPTS]}
    report["stock greedy"] = [greedy(peer, tokenizer, text) for text in PROMPTS]

    generator = pipeline("text-generation", model=path, trust_remote_code=True)
    outputs = generator(PROMPTS, batch_size=3, max_new_tokens=20, do_sample=False, return_full_text=False)
    report["pipeline"] = [output[0]["generated_text"] for output in outputs]
    report["texts"] = [tokenizer.decode(ids) for ids in report["greedy"]]

    report["beam"] = [greedy(model, tokenizer, text, num_beams=4) for text in PROMPTS]
    report["stock beam"] = [greedy(peer, tokenizer, text, num_beams=4) for text in PROMPTS]

    calls, drafted = [], []
    model.register_forward_hook(lambda *_: calls.append(1))
    torch.manual_seed(0)
    strange = AutoModelForCausalLM.from_config(model.config, trust_remote_code=True).eval()
    same, _ = load(path)
    for assistant in (same, strange):
        assistant.register_forward_hook(lambda *_: drafted.append(1))
        # Left alone, an assistant stops where it is unsure: a strange one after one token.
        assistant.generation_config.update(num_assistant_tokens=4, assistant_confidence_threshold=0.0)
    # A text that begins again as it began, and one in which there is nothing to look up.
    again, never = PROMPTS[1] + report["texts"][1] + PROMPTS[1], PROMPTS[2]
    report["greedy again"] = greedy(model, tokenizer, again)
    for name, texts, options in [
        ("assisted", PROMPTS, {"assistant_model": same}),
        ("badly assisted", PROMPTS, {"assistant_model": strange}),
        ("looked up", [again], {"prompt_lookup_num_tokens": 4}),
        ("not looked up", [never], {"prompt_lookup_num_tokens": 4}),
    ]:
        calls.clear()
        drafted.clear()
        report[name] = [greedy(model, tokenizer, text, **options) for text in texts]
        report[f"{name} calls"] = len(calls)
        report[f"{name} drafts"] = len(drafted)

    config = GenerationConfig(max_new_tokens=20, do_sample=False, eos_token_id=-1, pad_token_id=0)
    ids = [tokenizer(text)["input_ids"] for text in PROMPTS]
    results = load(path)[0].generate_batch(ids, generation_config=config)
    by_prompt = {tuple(result.prompt_ids): result.generated_tokens for result in results.values()}
    report["continuous batching"] = [by_prompt[tuple(prompt)] for prompt in ids]
    return report


@pytest.fixture(scope="module")
def decoded(repository: Path, stock: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    from tests import fresh_interpreter

    outcome = fresh_interpreter.run(
        tmp_path_factory.mktemp("decode") / "run",
        {"call": ("decode", {"path": str(repository), "stock": str(stock)})},
        functions=Path(__file__),
        env={"HF_HUB_OFFLINE": "1"},
    )
    return outcome.returned("call")


@pytest.mark.works("transformers", "`pipeline`, in batches of unequal prompts")
def test_pipeline(decoded: dict) -> None:
    assert decoded["pipeline"] == decoded["texts"]
    assert len(set(decoded["texts"])) == 3  # the prompts matter, so that a mix-up would be seen


@pytest.mark.works("transformers", "beam search")
def test_beam_search_finds_what_stock_gpt2_finds(decoded: dict) -> None:
    assert decoded["greedy"] == decoded["stock greedy"]
    assert decoded["beam"] == decoded["stock beam"]
    assert decoded["beam"] != decoded["greedy"]


@pytest.mark.works("transformers", "assisted decoding: good drafts accepted, bad ones rejected")
def test_assisted_decoding(decoded: dict) -> None:
    """Of the model itself all four drafts are right, which with its own token makes five of each call; of a strange
    one none is, and each call gives the token that it would have given alone.
    """
    assert decoded["assisted"] == decoded["badly assisted"] == decoded["greedy"]
    assert decoded["assisted calls"] == 3 * 20 / 5
    assert decoded["badly assisted drafts"] >= 3 * 60
    assert decoded["badly assisted calls"] >= 3 * 20 - 2


@pytest.mark.works("transformers", "prompt-lookup decoding")
def test_prompt_lookup(decoded: dict) -> None:
    assert decoded["looked up"] == [decoded["greedy again"]]
    assert decoded["looked up calls"] <= 10
    assert decoded["not looked up"] == decoded["greedy"][2:]
    assert decoded["not looked up calls"] >= 18  # the control: without something to look up, a call for each token


@pytest.mark.works("transformers", "continuous batching, `generate_batch`")
def test_continuous_batching(decoded: dict) -> None:
    assert decoded["continuous batching"] == decoded["greedy"]


def compile_decoding(path: str) -> dict:
    """generate() with a static cache and the forward pass of a token compiled in one graph."""
    import torch
    from torch._dynamo.utils import counters
    from transformers.generation import CompileConfig

    model, tokenizer = load(path)
    compile_config = CompileConfig(fullgraph=True, mode="default")
    compile_config._compile_all_devices = True  # on a CPU the library compiles only if told so
    expected = greedy(model, tokenizer, PROMPTS[0])
    left = greedy(model, tokenizer, PROMPTS[0], cache_implementation="static", compile_config=CompileConfig())
    unasked = counters["stats"]["unique_graphs"]
    static = greedy(model, tokenizer, PROMPTS[0], cache_implementation="static", compile_config=compile_config)
    graphs = counters["stats"]["unique_graphs"]
    model.generation_config.cache_implementation, model.generation_config.compile_config = "static", compile_config
    again = greedy(model, tokenizer, PROMPTS[0])
    return {"plain": expected, "left": left, "unasked": unasked, "static": static, "again": again, "graphs": graphs,
            "more": counters["stats"]["unique_graphs"] - graphs, "breaks": sum(counters["graph_break"].values()),
            "torch": torch.__version__}  # fmt: skip


@pytest.mark.works("transformers", "static cache with `torch.compile`, one graph")
@pytest.mark.nightly
def test_static_cache_with_compile(call: Callable, repository: Path) -> None:
    report = call(compile_decoding, path=repository)
    assert report["left"] == report["static"] == report["again"] == report["plain"]
    assert report["unasked"] == 0
    assert report["graphs"] >= 1
    assert report["breaks"] == report["more"] == 0  # compiled once for all calls


def take_the_old_name(path: str) -> dict:
    """Greedy ids and the number of tokens in each call, of our model behind one that knows one name of the cache."""
    import torch
    from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel

    inner, tokenizer = load(path)

    class Wrapper(PreTrainedModel, GenerationMixin):
        config_class = PreTrainedConfig
        _supports_sdpa = True

        def __init__(self) -> None:
            super().__init__(inner.config)
            self.inner, self.generation_config = inner, inner.generation_config
            self.calls: list = []

        def call(self, input_ids, cache, mask, positions):
            self.calls.append([input_ids.shape[1], cache is not None])
            return self.inner(input_ids, mask, positions, past_key_values=cache, use_cache=True)

    class OldName(Wrapper):
        def forward(self, input_ids, attention_mask=None, position_ids=None, past_key_values=None, **kwargs):
            return self.call(input_ids, past_key_values, attention_mask, position_ids)

    class NewName(Wrapper):
        def forward(self, input_ids, attention_mask=None, position_ids=None, cache=None, **kwargs):
            return self.call(input_ids, cache, attention_mask, position_ids)

    report = {"inner": {"ids": greedy(inner, tokenizer, PROMPTS[0], 8)}}
    for kind in (OldName, NewName):
        model = kind().eval()
        with torch.no_grad():
            report[kind.__name__] = {"ids": greedy(model, tokenizer, PROMPTS[0], 8), "calls": model.calls}
    return report


def test_a_model_that_knows_the_old_name_of_the_cache_alone(call: Callable, repository: Path) -> None:
    """It is called with one token and nothing before it: other ids, without an error. Ours knows both."""
    report = call(take_the_old_name, path=repository)
    widths = [width for width, _ in report["NewName"]["calls"]]
    assert widths[1:] == [1] * 7
    assert report["OldName"]["calls"] == [[width, False] for width in widths]
    assert report["NewName"]["calls"] == [[width, True] for width in widths]
    assert report["OldName"]["ids"] != report["inner"]["ids"]
    assert report["NewName"]["ids"] == report["inner"]["ids"]


def say_nothing_and_something(path: str) -> dict:
    """What `generate()` logs where rows end at one of two ends of text, and where it is to compile on a CPU."""
    import logging

    import torch
    from torch._dynamo.utils import counters
    from transformers.generation import CompileConfig

    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger("transformers").addHandler(handler)
    model, tokenizer = load(path)
    ids = torch.tensor([tokenizer(text)["input_ids"][:3] for text in PROMPTS[:2]])
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 20, "do_sample": False}
    report = {"free": model.generate(ids, eos_token_id=None, **options).tolist()}
    model.generation_config.pad_token_id = None
    lines.clear()
    ends = [report["free"][0][6], report["free"][1][12]]
    report |= {"ends": ends, "ended": model.generate(ids, eos_token_id=ends, **options).tolist(), "said": lines[:]}
    options |= {"cache_implementation": "static", "compile_config": CompileConfig()}
    report["static"] = model.generate(ids, eos_token_id=None, **options).tolist()
    return report | {"skipped": lines[len(report["said"]) :], "graphs": counters["stats"]["unique_graphs"]}


def test_ends_are_not_spoken_of_and_a_compilation_that_is_skipped_is(call: Callable, repository: Path) -> None:
    report = call(say_nothing_and_something, path=repository)
    assert report["said"] == []
    (row, other), first = report["ended"], report["ends"][0]
    end = row.index(first, 3)
    assert row[end:] == [first] * len(row[end:])  # the first end pads
    assert len(row[end:]) > 1
    assert other == report["free"][1][: len(other)]
    assert report["static"] == report["free"]
    assert report["graphs"] == 0
    assert len(report["skipped"]) == 1
    assert "unable to meet the criteria for compilation. Compilation will be skipped" in report["skipped"][0]


def export_program(path: str) -> dict:
    """torch.export with a length that is left open."""
    import torch

    model, tokenizer = load(path)
    ids = tokenizer(PROMPTS[1], return_tensors="pt")["input_ids"]
    example = {"input_ids": ids, "use_cache": False}
    shapes = {"input_ids": {1: torch.export.Dim("length", min=2, max=64)}, "use_cache": None}
    program = torch.export.export(model, (), example, dynamic_shapes=shapes)
    torch.export.save(program, "model.pt2")
    program = torch.export.load("model.pt2").module()
    longer = torch.cat([ids, ids.flip(1)], dim=1)
    with torch.no_grad():
        expected = model(longer).logits
        exported = program(input_ids=longer, use_cache=False).logits
        other = program(input_ids=longer.roll(1, dims=1), use_cache=False).logits
    return {"same": (exported - expected).abs().max().item(), "other": (other - expected).abs().max().item()}


@pytest.mark.works("torch", "`torch.export`, any length")
def test_torch_export(call: Callable, repository: Path) -> None:
    report = call(export_program, path=repository)
    assert report["same"] < 1e-5
    assert report["other"] > 0.1


def export_generation(path: str) -> dict:
    """The library's own exporter of the first and of a later step of generate(), against the model itself."""
    import copy

    import torch
    from transformers.exporters.exporter_dynamo import DynamoConfig, DynamoExporter
    from transformers.exporters.utils import decompose_for_generation, get_leaf_tensors

    model, tokenizer = load(path)
    stages = decompose_for_generation(model, dict(tokenizer(PROMPTS[1], return_tensors="pt")))
    report: dict = {"same": [], "other": [], "tensors": []}
    for is_dynamic in (False, True):
        config = DynamoConfig(dynamic=is_dynamic)
        for part, arguments in stages.values():
            program = DynamoExporter().export(part, arguments, config=config).program.module()
            others = arguments | {"input_ids": arguments["input_ids"] + 1}
            with torch.no_grad():
                expected = get_leaf_tensors(part(**copy.deepcopy(arguments)))
                for name, given in {"same": arguments, "other": others}.items():
                    found = get_leaf_tensors(program(**copy.deepcopy(given)))
                    assert found.keys() == expected.keys()
                    report[name].append(max(float((found[key] - expected[key]).abs().max()) for key in expected))
            report["tensors"].append(len(expected))
    return report


@pytest.mark.works("transformers", "`DynamoExporter`: prefill and decoding step, fixed and any length")
@pytest.mark.nightly
def test_export_of_generation(call: Callable, repository: Path) -> None:
    report = call(export_generation, path=repository)
    assert max(report["same"]) < 1e-5
    assert min(report["other"]) > 0.1
    assert report["tensors"] == [5, 5, 5, 5]  # logits, and of each of the two layers keys and values


def offload(path: str) -> dict:
    """device_map="auto" where memory holds the embeddings only: 12.9 of 13.3 MB."""
    plain, tokenizer = load(path)
    model, _ = load(path, device_map="auto", max_memory={"cpu": "13200KB"}, offload_folder="offloaded")
    return {
        "devices": sorted(set(map(str, model.hf_device_map.values()))),
        "meta": sum(parameter.device.type == "meta" for parameter in model.parameters()),
        "plain": greedy(plain, tokenizer, PROMPTS[1]),
        "offloaded": greedy(model, tokenizer, PROMPTS[1]),
    }


@pytest.mark.works("accelerate", '`device_map="auto"` with layers on the disk')
def test_offload_to_disk(call: Callable, repository: Path) -> None:
    report = call(offload, path=repository)
    assert report["devices"] == ["cpu", "disk"]
    assert report["meta"] > 0
    assert report["offloaded"] == report["plain"]


def classify(path: str, labels_are_drawn: bool) -> dict:
    """Learn whether a row of words holds "not"; the accuracy on rows that were not seen."""
    import random

    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments, set_seed

    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=2, trust_remote_code=True)
    draw = random.Random(0)
    rows = []
    for index in range(600):
        words = draw.choices(
            ["lamp", "sea", "night", "keeper", "door", "light", "stone", "wind", "rope", "glass"],
            k=draw.randint(4, 10),
        )
        label = index % 2
        if label:
            words.insert(draw.randrange(len(words)), "not")
        rows.append(tokenizer(" ".join(words)) | {"labels": draw.randrange(2) if labels_are_drawn else label})
    arguments = TrainingArguments(
        "classifier", num_train_epochs=10, per_device_train_batch_size=16, learning_rate=2e-3, report_to="none",
        use_cpu=True, disable_tqdm=True, save_strategy="no",
    )  # fmt: skip

    def collate(batch: list[dict]) -> dict:
        return dict(tokenizer.pad([dict(row) for row in batch], return_tensors="pt"))

    trainer = Trainer(model=model, args=arguments, train_dataset=rows[:450], data_collator=collate)
    trainer.train()
    predicted = torch.tensor(trainer.predict(rows[450:]).predictions).argmax(dim=-1)
    return {"accuracy": (predicted == torch.tensor([row["labels"] for row in rows[450:]])).float().mean().item()}


@pytest.mark.works("transformers", "sequence classification: a toy task learned to over 95 %")
def test_classification(call: Callable, repository: Path) -> None:
    assert call(classify, path=repository, labels_are_drawn=False)["accuracy"] > 0.95


@pytest.mark.nightly
def test_classification_of_drawn_labels_is_not_learned(call: Callable, repository: Path) -> None:
    """The control: the accuracy is on rows that were not seen."""
    assert call(classify, path=repository, labels_are_drawn=True)["accuracy"] < 0.7


def test_trainer_has_no_muon() -> None:
    from transformers.training_args import OptimizerNames

    names = {name.value for name in OptimizerNames}
    assert "adamw_torch_fused" in names
    assert not [name for name in names if "muon" in name]
