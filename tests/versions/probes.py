"""What a user does with an exported folder, step by step, in an interpreter that knows nothing of this package.

tests/fresh_interpreter makes these calls, once for each version of transformers. A probe returns what must be the same
with every version: tensors up to rounding, everything else exactly. What must be right whatever the version, it checks
itself. tests/versions/conftest.py makes the folders below EXPORTED.
"""

import contextlib
import functools
import inspect
import io
import json
import math
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch.nn import functional as F  # noqa: N812
from transformers import AutoConfig, AutoTokenizer


EXPORTED = Path(os.environ.get("EXPORTED", ""))
FOLDER, BYTES, OLDER = (EXPORTED / name for name in ("tiny", "bytes", "older"))
CODE_FILES = "*_gpt_scratch.py"
IDS = torch.tensor(
    [[464, 20450, 11, 290, 262, 1657, 13, 366, 40, 531], [2215, 262, 8966, 373, 1468, 11, 673, 531, 284, 262]]
)
MASK = torch.ones_like(IDS)
PADDING = 4  # tokens in front of the second row
PADDED, PAD_MASK = IDS.clone(), MASK.clone()
PADDED[1, :PADDING], PAD_MASK[1, :PADDING] = 50256, 0
LABELS = IDS.clone()
LABELS[:, 0], LABELS[0, 3:5] = -100, -100  # the first never counts; some versions of Trainer count it all the same
BYTE_IDS = torch.tensor([[39, 71, 68, 220, 75, 64, 76, 79]])
TEXTS = [
    "The lamp", "When the bell rang, she said", "", " ", "a  b   c\n\n\t\r\nd ", "naïve café — 10,000 Ω ½ ﬁ",
    "<|endoftext|>", "x<|endoftext|>y <|endoftext|>", "日本語 \U0001f600\u200d\U0001f525 e\u0301",
    "I'll we've DON'T can't .", "\x00\x7f\u00ad\ufeff", "1234567890 0x1F https://a.b/?c=d&e", "don 't ! ? ,",
]  # fmt: skip
NAMES = {
    "dots": "my.model.v1.0", "dashes": "my-model-v1", "blanks": "a model of mine", "relative": "./plain",
    "slash": "plain/", "link": "linked",
}  # fmt: skip

Calls = dict[str, tuple[str, dict[str, Any]]]
PROBES: Calls = {}
STOCK: Calls = {"continuous_batching_of_stock": ("continuous_batching_of_stock", {})}  # with the library's own model


def kept(function: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Let a call leave its name while it runs, for a hang, and write its tensors to a file of its name."""

    @functools.wraps(function)
    def wrapper(**arguments: Any) -> dict[str, Any]:
        name = "_".join([function.__name__, *map(str, arguments.values())])
        Path("running").write_text(name, encoding="utf-8")
        with torch.no_grad():
            found = function(**arguments) or {}
        tensors = {key: value.contiguous() for key, value in found.items() if isinstance(value, torch.Tensor)}
        if tensors:
            save_file(tensors, f"{name}.safetensors")
        return {key: value for key, value in found.items() if key not in tensors}

    return wrapper


def probe(function: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    PROBES[function.__name__] = (function.__name__, {})
    return kept(function)


def load(path: str | Path = FOLDER, auto: str = "CausalLM", **options: Any) -> Any:
    name = f"AutoModelFor{auto}" if auto else "AutoModel"
    return getattr(transformers, name).from_pretrained(str(path), trust_remote_code=True, **options).eval()


@functools.cache
def model() -> Any:
    """The language model that the probes share; one that changes its model loads its own."""
    return load()


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def thin(logits: torch.Tensor) -> torch.Tensor:
    """A seventh of the vocabulary, so that files stay small."""
    return logits[..., ::7].clone()


def tied(causal: Any) -> bool:
    return causal.lm_head.weight.data_ptr() == causal.get_input_embeddings().weight.data_ptr()


def refusal(call: Callable[[], Any]) -> str:
    """The message of the ValueError that the call has to raise."""
    try:
        call()
    except ValueError as error:
        return str(error).strip()
    raise AssertionError("it was not refused")


@probe
def config() -> dict[str, Any]:
    found = AutoConfig.from_pretrained(str(FOLDER), trust_remote_code=True)
    names = (
        "model_type vocab_size max_position_embeddings hidden_size num_hidden_layers num_attention_heads n_embd "
        "intermediate_size hidden_act dropout qkv_bias layer_norm_eps tie_word_embeddings use_cache bos_token_id "
        "eos_token_id pad_token_id initializer_range"
    )
    return {name: getattr(found, name) for name in names.split()}


@probe
def config_refusals() -> None:
    kind = type(AutoConfig.from_pretrained(str(FOLDER), trust_remote_code=True))
    wrong = (
        {"dropout": 1.5}, {"dropout": math.nan}, {"hidden_size": 191}, {"hidden_act": "nope"}, {"vocab_size": 0},
        {"vocab_size": "many"}, {"n_embd": 96, "hidden_size": 48}, {"layer_norm_eps": 0.0}, {"n_layer": True},
    )  # fmt: skip
    for fields in wrong:
        assert len(refusal(lambda fields=fields: kind(**fields)).splitlines()) == 1, fields


def tokenizer_values(tokenizer: Any) -> dict[str, Any]:
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    assert [tokenizer.decode(row) for row in ids] == TEXTS
    batch = tokenizer(TEXTS[:2], return_tensors="pt", padding=True)
    return {
        "ids": ids,
        "batch": [batch["input_ids"].tolist(), batch["attention_mask"].tolist()],
        "side": tokenizer.padding_side,
        "special": [tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token],
        "special_ids": [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id],
        "sizes": [len(tokenizer), tokenizer.model_max_length],
    }


def asks_for_trust(**options: Any) -> bool:
    """Return True if loading the tokenizer asks whether the code of the model may be run."""
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        AutoTokenizer.from_pretrained(str(FOLDER), **options)
    return "run the custom code" in shown.getvalue()


@probe
def tokenizer() -> dict[str, Any]:
    return tokenizer_values(AutoTokenizer.from_pretrained(str(FOLDER), trust_remote_code=True))


@probe
def tokenizer_without_trust() -> dict[str, Any]:
    """Standard input is closed: a question gets no answer."""
    return tokenizer_values(AutoTokenizer.from_pretrained(str(FOLDER)))


@probe
def tokenizer_without_question() -> None:
    """The class of the tokenizer is one of the library; the model's code is none of its business."""
    if asks_for_trust():
        raise RuntimeError("it asks whether the model's code may be run")


@probe
def tokenizer_with_trust_refused() -> dict[str, Any]:
    assert not asks_for_trust(trust_remote_code=False)
    return tokenizer_values(AutoTokenizer.from_pretrained(str(FOLDER), trust_remote_code=False))


@probe
def tokenizer_of_bytes() -> dict[str, Any]:
    return tokenizer_values(AutoTokenizer.from_pretrained(str(BYTES)))


@probe
def trust_is_asked_for() -> None:
    message = refusal(lambda: transformers.AutoModelForCausalLM.from_pretrained(str(BYTES)))
    assert "trust_remote_code" in message


@probe
def load_report() -> dict[str, Any]:
    causal, info = transformers.AutoModelForCausalLM.from_pretrained(
        str(FOLDER), trust_remote_code=True, output_loading_info=True
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        assert not info[kind], f"{kind}: {info[kind]}"
    assert tied(causal)
    assert not causal.training
    assert causal.can_generate()
    weights = {name: value.abs().sum() for name, value in sorted(causal.named_parameters())}
    return {"names": list(weights), "sums": torch.stack(list(weights.values())), "count": causal.num_parameters()}


@probe
def fresh_weights() -> None:
    settings = AutoConfig.from_pretrained(str(FOLDER), trust_remote_code=True)
    torch.manual_seed(1)
    fresh = transformers.AutoModelForCausalLM.from_config(settings, trust_remote_code=True)
    assert tied(fresh)
    std = settings.initializer_range
    for name, value in fresh.named_parameters():
        if "norm" in name and name.endswith("weight"):
            assert (value == 1).all(), name
        elif name.endswith("bias"):
            assert (value == 0).all(), name
        else:
            is_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            wanted = std / math.sqrt(2 * settings.num_hidden_layers) if is_residual else std
            assert abs(value.std().item() / wanted - 1) < 0.15, f"{name}: {value.std()} is not {wanted}"


@probe
def logits() -> dict[str, Any]:
    return {"logits": thin(model()(IDS).logits), "kept": thin(model()(IDS, logits_to_keep=2).logits)}


@probe
def logits_left_padded() -> dict[str, Any]:
    found = model()(PADDED, attention_mask=PAD_MASK).logits
    close(found[1, PADDING:], model()(IDS[1:, PADDING:]).logits[0])
    return {"logits": thin(found[PAD_MASK.bool()])}


@probe
def logits_packed() -> dict[str, Any]:
    positions = torch.arange(10).repeat(2)[None]
    found = model()(IDS.reshape(1, 20), position_ids=positions, use_cache=False).logits
    close(found.reshape(2, 10, -1), model()(IDS).logits)
    return {"logits": thin(found)}


def in_chunks(ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    found, past = [], None
    for start, end in ((0, 5), (5, 8), (8, 9), (9, 10)):
        seen = {} if mask is None else {"attention_mask": mask[:, :end]}
        output = model()(ids[:, start:end], past_key_values=past, use_cache=True, **seen)
        past = output.past_key_values
        found.append(output.logits)
    return torch.cat(found, dim=1)


@probe
def logits_cached() -> dict[str, Any]:
    for mask in (None, MASK):
        found = in_chunks(IDS, mask)
        close(found, model()(IDS).logits)
    padded = in_chunks(PADDED, PAD_MASK)[PAD_MASK.bool()]
    close(padded, model()(PADDED, attention_mask=PAD_MASK).logits[PAD_MASK.bool()])
    return {"logits": thin(found), "padded": thin(padded)}


@probe
def eager_and_sdpa() -> dict[str, Any]:
    for name in ("eager", "sdpa"):
        own = load(attn_implementation=name)
        assert own.config._attn_implementation == name
        found = own(PADDED, attention_mask=PAD_MASK).logits[PAD_MASK.bool()]
        close(found, model()(PADDED, attention_mask=PAD_MASK).logits[PAD_MASK.bool()])
    return {"default": model().config._attn_implementation}


@probe
def attention_switched() -> None:
    own = load(attn_implementation="sdpa")
    own.set_attn_implementation("eager")
    assert own.config._attn_implementation == "eager"
    assert own(IDS, output_attentions=True).attentions  # sdpa has none
    close(own(IDS).logits, model()(IDS).logits)


@probe
def hidden_states() -> dict[str, Any]:
    states = model()(IDS, output_hidden_states=True).hidden_states
    close(model().lm_head(states[-1]), model()(IDS).logits)
    assert model()(IDS).hidden_states is None
    return {"states": torch.stack(list(states))}


@probe
def attentions() -> dict[str, Any]:
    output = load(attn_implementation="eager")(IDS, output_attentions=True)
    weights = torch.stack(list(output.attentions))
    close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    close(output.logits, model()(IDS).logits)
    return {"weights": weights}


@probe
def tuples() -> dict[str, Any]:
    output = model()(IDS, labels=IDS, return_dict=False)
    assert isinstance(output, tuple)
    close(output[1], model()(IDS).logits)
    states = load(auto="")(IDS, return_dict=False)
    assert isinstance(states, tuple)
    return {"loss": output[0], "states": states[0]}


def generate(ids: torch.Tensor = IDS, mask: torch.Tensor | None = MASK, tokens: int = 20, **options: Any) -> Any:
    """The new ids."""
    options = {"do_sample": False, "max_new_tokens": tokens} | options
    return model().generate(ids, attention_mask=mask, **options)[:, ids.shape[1] :].tolist()


@probe
def greedy() -> dict[str, Any]:
    found = generate()
    assert all(len(set(row)) > 8 for row in found), "a text that repeats one token proves little"
    assert found == generate(use_cache=False)
    assert found[:1] == generate(IDS[:1], MASK[:1])
    return {"ids": found}


@probe
def greedy_without_mask() -> dict[str, Any]:
    found = generate(IDS[:1], None)
    assert found == generate(IDS[:1], MASK[:1])
    return {"ids": found}


@probe
def greedy_left_padded() -> dict[str, Any]:
    found = generate(PADDED, PAD_MASK)
    assert found[1:] == generate(IDS[1:, PADDING:], MASK[1:, PADDING:])
    assert found == generate(PADDED, PAD_MASK, use_cache=False)
    return {"ids": found}


@probe
def greedy_from_embeddings() -> None:
    embeds = model().get_input_embeddings()(IDS)
    found = model().generate(inputs_embeds=embeds, attention_mask=MASK, max_new_tokens=20, do_sample=False)
    assert found.tolist() == generate()


@probe
def greedy_scores() -> dict[str, Any]:
    options = {"return_dict_in_generate": True, "output_scores": True, "do_sample": False, "max_new_tokens": 4}
    return {"scores": thin(torch.stack(list(model().generate(IDS, attention_mask=MASK, **options).scores)))}


@probe
def static_cache() -> None:
    assert generate(cache_implementation="static") == generate()


@probe
def prompt_lookup() -> None:
    assert generate(IDS[:1], MASK[:1], prompt_lookup_num_tokens=3) == generate(IDS[:1], MASK[:1])


@probe
def beam() -> dict[str, Any]:
    return {"ids": generate(tokens=12, num_beams=3), "padded": generate(PADDED, PAD_MASK, tokens=12, num_beams=3)}


def shipped(name: str) -> Any:
    """A class of the code that the model came with."""
    return getattr(sys.modules[type(model()).__module__], name)


def check_continuous_batching(own: Any) -> None:
    """Prompts of several lengths together, against each alone."""
    rows = [IDS[0, :5].tolist(), IDS[0, 5:].tolist(), IDS[1, :7].tolist()]
    tokens, sizes = {"do_sample": False, "max_new_tokens": 6}, {"num_blocks": 16, "max_batch_tokens": 64}
    if hasattr(transformers, "ContinuousBatchingConfig"):
        options = {"continuous_batching_config": transformers.ContinuousBatchingConfig(**sizes)}
        sizes = {}
    else:
        options = {}
    settings = transformers.GenerationConfig(**tokens, **sizes, eos_token_id=-1, pad_token_id=0)
    # Before: 5.5 and 5.6 leave a model, also the library's own, in a state in which generate() is wrong afterwards.
    alone = [own.generate(torch.tensor([row]), eos_token_id=None, **tokens)[0, len(row) :].tolist() for row in rows]
    results = own.generate_batch(rows, generation_config=settings, **options)
    errors = [str(result.error) for result in results.values() if result.error]
    if errors or len(results) < len(rows):
        raise RuntimeError(errors[0] if errors else f"{len(results)} of {len(rows)} texts came")
    assert [result.generated_tokens for result in results.values()] == alone


@probe
def continuous_batching() -> None:
    check_continuous_batching(load())


@kept
def continuous_batching_of_stock() -> None:
    """For versions that cannot do it, or not on a CPU."""
    settings = transformers.GPT2Config(n_layer=1, n_embd=32, n_head=2, bos_token_id=0, eos_token_id=0)
    check_continuous_batching(transformers.GPT2LMHeadModel(settings).eval())


SAMPLING = {"do_sample": True, "temperature": 1.0, "top_k": 0}


@probe
def sampled() -> dict[str, Any]:
    processor = shipped("TemperatureTopKLogitsProcessor")
    torch.manual_seed(123)
    found = generate(logits_processor=[processor(1.4, 25)], **SAMPLING)
    assert generate(logits_processor=[processor(0.0)], **SAMPLING) == generate()
    return {"ids": found}


@probe
def seeded_draw() -> dict[str, Any]:
    temperature, draw = shipped("TemperatureTopKLogitsProcessor"), shipped("SeededDrawLogitsProcessor")
    state = torch.get_rng_state()
    found = generate(logits_processor=[temperature(1.4, 25), draw(123)])
    alone = generate(IDS[1:], MASK[1:], logits_processor=[temperature(1.4, 25), draw(124)])
    assert found[1:] == alone
    assert torch.equal(state, torch.get_rng_state())
    return {"ids": found}


LONG = IDS.repeat(1, 4)  # 40 of 48 positions


def by_windows(num_tokens: int) -> list[list[int]]:
    """Greedy decoding as "exact" is defined: each token from the last window alone."""
    ids = LONG
    for _ in range(num_tokens):
        window = ids[:, -model().config.max_position_embeddings :]
        ids = torch.cat([ids, model()(window).logits[:, -1:].argmax(-1)], dim=1)
    return ids[:, LONG.shape[1] :].tolist()


@probe
def past_context_exact() -> dict[str, Any]:
    found = generate(LONG, torch.ones_like(LONG), past_context="exact")
    assert found == by_windows(20)
    assert found == generate(LONG, torch.ones_like(LONG), past_context="exact", use_cache=False)
    mask = torch.ones_like(LONG)
    mask[1, :PADDING] = 0
    return {"ids": found, "padded": generate(LONG.masked_fill(mask == 0, 50256), mask, past_context="exact")}


@probe
def past_context_rolling() -> dict[str, Any]:
    found = generate(LONG, None, past_context="rolling", tokens=40)
    assert found == generate(LONG, torch.ones_like(LONG), past_context="rolling", tokens=40)
    return {"ids": found}


@probe
def past_context_refused() -> None:
    for options in ({}, {"past_context": "no such mode"}, {"past_context": "rolling", "use_cache": False}):
        message = refusal(lambda options=options: generate(LONG, torch.ones_like(LONG), **options))
        assert len(message.splitlines()) == 1, message


@probe
def losses() -> dict[str, Any]:
    plain = model()(IDS, labels=LABELS).loss
    shifted = F.pad(LABELS, (0, 1), value=-100)[:, 1:].contiguous()
    wanted = F.cross_entropy(model()(IDS).logits.flatten(0, 1), shifted.flatten(), ignore_index=-100)
    close(plain, wanted)
    for options in ({"labels": LABELS}, {"shift_labels": shifted}, {"labels": LABELS, "shift_labels": shifted}):
        for skip in ({}, {"skip_logits": True}):
            close(model()(IDS, **options, **skip).loss, wanted)
            for count in (5, torch.tensor(5)):
                total = wanted * (shifted != -100).sum()
                close(model()(IDS, num_items_in_batch=count, **options, **skip).loss, total / 5)
    assert model()(IDS, labels=LABELS, skip_logits=True).logits is None
    return {"loss": plain}


def gradients(own: Any, **options: Any) -> torch.Tensor:
    own.zero_grad()
    with torch.enable_grad():
        own(IDS, labels=LABELS, **options).loss.backward()
    return torch.stack([weight.grad.norm() for _, weight in sorted(own.named_parameters())])


@probe
def gradient() -> dict[str, Any]:
    own = load().train()
    found = gradients(own)
    close(gradients(own, skip_logits=True), found)
    return {"norms": found}


@probe
def gradient_checkpointing() -> None:
    own = load().train()
    wanted, calls = gradients(own), []
    own.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    for options in ({}, {"use_reentrant": False}, {"use_reentrant": True}):
        calls.clear()
        own.gradient_checkpointing_enable(*([options] if options else []))
        close(gradients(own), wanted)
        assert len(calls) == 2, f"the layer was computed {len(calls)} times"
    own.gradient_checkpointing_disable()
    calls.clear()
    close(gradients(own), wanted)
    assert len(calls) == 1


def check_saved(folder: str) -> None:
    """All code files, and an auto_map that finds all classes in them."""
    code = {file.name for file in FOLDER.glob(CODE_FILES)}
    assert {file.name for file in Path(folder).glob("*.py")} == code
    auto_map = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))["auto_map"]
    assert auto_map == json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))["auto_map"]
    assert {f"{value.split('.')[0]}.py" for value in auto_map.values()} <= code


@probe
def save_and_load() -> None:
    load().save_pretrained("saved")
    AutoTokenizer.from_pretrained(str(FOLDER)).save_pretrained("saved")
    check_saved("saved")
    again = load("saved")
    assert tied(again)
    close(again(IDS).logits, model()(IDS).logits)
    before, after = (AutoTokenizer.from_pretrained(path) for path in (str(FOLDER), "saved"))
    assert before(TEXTS)["input_ids"] == after(TEXTS)["input_ids"]
    again.save_pretrained("saved again")
    check_saved("saved again")


@probe
def save_and_load_other_classes() -> None:
    base = load(auto="")
    base.save_pretrained("saved base")
    check_saved("saved base")
    close(load("saved base", auto="")(IDS).last_hidden_state, base(IDS).last_hidden_state)
    labels = load(auto="SequenceClassification", num_labels=3)
    labels.save_pretrained("saved labels")
    check_saved("saved labels")
    close(load("saved labels", auto="SequenceClassification")(IDS).logits, labels(IDS).logits)


@kept
def load_saved(path: str) -> dict[str, Any]:
    """What another version has saved."""
    check_saved(path)
    causal = load(path)
    assert tied(causal)
    close(causal(IDS).logits, model()(IDS).logits)
    return {}


@probe
def two_classes() -> None:
    base, labels, causal = load(auto=""), load(auto="TokenClassification", num_labels=2), load()
    states = base(PADDED, attention_mask=PAD_MASK).last_hidden_state
    close(causal.lm_head(states), causal(PADDED, attention_mask=PAD_MASK).logits)
    close(labels.score(states), labels(PADDED, attention_mask=PAD_MASK).logits)


@probe
def pipeline() -> dict[str, Any]:
    generator = transformers.pipeline("text-generation", model=str(FOLDER), trust_remote_code=True)
    options = {"max_new_tokens": 12, "do_sample": False}
    alone, batched = generator(TEXTS[0], **options), generator(TEXTS[:2], batch_size=2, **options)
    assert alone == batched[0]
    return {"texts": [output[0]["generated_text"] for output in batched]}


def train_one_step(own: Any, **options: Any) -> torch.Tensor:
    arguments = transformers.TrainingArguments(
        "trained", max_steps=1, per_device_train_batch_size=2, learning_rate=1e-2, report_to=[], use_cpu=True,
        save_strategy="no", disable_tqdm=True, **options,
    )  # fmt: skip
    rows = [{"input_ids": row, "labels": labels} for row, labels in zip(IDS, LABELS, strict=True)]
    with torch.enable_grad():
        return torch.tensor(transformers.Trainer(own, arguments, train_dataset=rows).train().training_loss)


@probe
def trainer() -> dict[str, Any]:
    own = load()
    loss = train_one_step(own)
    close(loss, model()(IDS, labels=LABELS).loss)
    after = own.eval()(IDS, labels=LABELS).loss
    assert after < loss
    assert tied(own)
    return {"after": after}


@probe
def trainer_label_smoothing() -> None:
    loss = train_one_step(load(), label_smoothing_factor=0.1)
    rows, targets = model()(IDS).logits[:, :-1].flatten(0, 1), LABELS[:, 1:].flatten()
    close(loss, torch.nn.functional.cross_entropy(rows, targets, label_smoothing=0.1))


def half(**options: Any) -> None:
    own = load(**options)
    assert own.dtype == torch.bfloat16
    assert tied(own)
    wanted = model()(IDS).logits
    error = (own(IDS).logits.float() - wanted).abs() / wanted.std()
    assert error.mean() < 0.03  # bfloat16 has 8 bits; 0.0098 and 0.093 were seen
    assert error.max() < 0.3


@probe
def torch_dtype() -> None:
    half(torch_dtype=torch.bfloat16)


@probe
def dtype() -> None:
    half(dtype=torch.bfloat16)


def classifier(auto: str, **options: Any) -> Any:
    own = load(auto=auto, **options)
    std = own.config.initializer_range
    assert 0.5 * std < own.score.weight.std() < 1.5 * std, "the weights of the head are not fresh ones"
    own.score.weight.copy_(torch.linspace(-1, 1, own.score.weight.numel()).view_as(own.score.weight))
    return own


@probe
def sequence_classification() -> dict[str, Any]:
    own, mask = classifier("SequenceClassification", num_labels=3), {"attention_mask": PAD_MASK}
    found = own(PADDED, **mask).logits
    close(found[1], own(IDS[1:, PADDING:]).logits[0])
    right = torch.cat([IDS[1:, PADDING:], torch.full((1, PADDING), 50256)], dim=1)
    close(own(right, attention_mask=PAD_MASK[1:].flip(1)).logits[0], found[1])
    targets = torch.tensor([2, 0])
    loss = own(PADDED, labels=targets, **mask).loss
    close(loss, F.cross_entropy(found, targets))
    many = classifier("SequenceClassification", num_labels=3, problem_type="multi_label_classification")
    wanted = F.binary_cross_entropy_with_logits(found, F.one_hot(targets, 3).float())
    close(many(PADDED, labels=F.one_hot(targets, 3).float(), **mask).loss, wanted)
    one = classifier("SequenceClassification", num_labels=1)
    score = one(PADDED, labels=torch.tensor([0.5, 1.5]), **mask)
    close(score.loss, F.mse_loss(score.logits[:, 0], torch.tensor([0.5, 1.5])))
    return {"logits": found, "loss": loss, "regression": score.loss}


@probe
def token_classification() -> dict[str, Any]:
    own, targets = classifier("TokenClassification", num_labels=3), LABELS.remainder(3).where(LABELS > 0, -100)
    output = own(PADDED, attention_mask=PAD_MASK, labels=targets)
    close(output.loss, F.cross_entropy(output.logits.flatten(0, 1), targets.flatten()))
    return {"logits": output.logits[PAD_MASK.bool()], "loss": output.loss}


@probe
def resized_vocabulary() -> None:
    own = load()
    own.resize_token_embeddings(50264)
    assert tied(own)
    assert own.config.vocab_size == own.lm_head.weight.shape[0] == 50264
    assert own(torch.tensor([[50263]])).logits.shape == (1, 1, 50264)
    close(own(IDS).logits[..., :50257], model()(IDS).logits)


@kept
def folder(label: str) -> None:
    """A folder of any name, each with code of its own."""
    shutil.copytree(BYTES, "plain", dirs_exist_ok=True)
    name = NAMES[label]
    if label == "link":
        Path(name).symlink_to("plain")
    elif name.strip("./") != "plain":
        shutil.copytree(BYTES, name)
    close(load(name)(BYTE_IDS).logits, load(BYTES)(BYTE_IDS).logits)
    assert AutoTokenizer.from_pretrained(name)("abc")["input_ids"] == [64, 65, 66]


PROBES |= {f"folder_{label}": ("folder", {"label": label}) for label in NAMES}


def is_older(own: Any) -> bool:
    """The older code adds 1 to its logits."""
    difference = own(BYTE_IDS).logits - load(BYTES)(BYTE_IDS).logits
    assert difference.min() > 0.999 or difference.abs().max() < 1e-5
    return bool(difference.mean() > 0.5)


def models_of_two_ages() -> dict[str, Any]:
    """From two repositories whose folders have one name, and whose code differs, in one process."""
    for age, source in (("new", BYTES), ("old", OLDER)):
        shutil.copytree(source, f"{age}/model", dirs_exist_ok=True)
    return {age: load(f"{age}/model") for age in ("new", "old")}


@probe
def two_ages() -> None:
    for age, own in models_of_two_ages().items():
        assert is_older(own) == (age == "old"), f"the {age} folder runs the code of the other one"
    for age in ("new", "old"):
        assert is_older(load(f"{age}/model")) == (age == "old"), f"the {age} folder, loaded again"


@probe
def two_ages_saved() -> None:
    for age, own in models_of_two_ages().items():
        own.save_pretrained(f"{age} saved/model")
    for age, source in (("new", BYTES), ("old", OLDER)):
        for file in source.glob(CODE_FILES):
            assert Path(f"{age} saved/model/{file.name}").read_bytes() == file.read_bytes(), f"{age}: {file.name}"
        assert is_older(load(f"{age} saved/model")) == (age == "old"), age


@probe
def revision() -> None:
    assert not is_older(load("user/model"))
    assert is_older(load("user/model", revision="older"))
    assert not is_older(load("user/model"))
    assert AutoTokenizer.from_pretrained("user/model", revision="older")("abc")["input_ids"] == [64, 65, 66]


@probe
def code_revision() -> None:
    assert is_older(load("user/model", code_revision="older"))
    assert not is_older(load("user/model", code_revision="main"))
    assert not is_older(load("user/model", revision="older", code_revision="main"))


# What a release to come may do. The code shall notice when it is loaded, before it computes something else.


def renamed_argument(function: Callable[..., Any], names: set[str], new: str) -> Callable[..., Any]:
    """The function with one of its arguments, called one of `names`, under a new name."""
    signature = inspect.signature(function)
    (old,) = names & set(signature.parameters)
    named = [one.replace(name=new) if one.name == old else one for one in signature.parameters.values()]

    @functools.wraps(function)
    def wrapper(*arguments: Any, **options: Any) -> Any:
        bound = wrapper.__signature__.bind(*arguments, **options)
        given = {old if name == new else name: value for name, value in bound.arguments.items()}
        return function(*given.pop("args", ()), **given.pop("kwargs", {}), **given)

    wrapper.__signature__ = signature.replace(parameters=named)
    return wrapper


def rename_mask_argument() -> None:
    from transformers import masking_utils

    function = masking_utils.create_causal_mask
    masking_utils.create_causal_mask = renamed_argument(function, {"past_key_values", "cache"}, "memory")


def rename_forward_argument() -> None:
    """generate() hands the cache to forward() under another name."""
    method = transformers.GenerationMixin.prepare_inputs_for_generation
    inner = renamed_argument(method, {"past_key_values", "cache"}, "memory")

    @functools.wraps(inner)
    def wrapper(*arguments: Any, **options: Any) -> Any:
        for name in {"past_key_values", "cache"} & set(options):
            options["memory"] = options.pop(name)
        inputs = inner(*arguments, **options)
        return {"memory" if name in ("past_key_values", "cache") else name: inputs[name] for name in inputs}

    wrapper.__signature__ = inner.__signature__
    transformers.GenerationMixin.prepare_inputs_for_generation = wrapper


def rename_cache_method(name: str) -> None:
    kinds = [transformers.Cache]
    for kind in kinds:
        kinds.extend(kind.__subclasses__())
        if name in vars(kind):
            setattr(kind, f"new_{name}", vars(kind)[name])
            delattr(kind, name)


FUTURES = {
    "nothing": lambda: None,
    "mask argument": rename_mask_argument,
    "forward argument": rename_forward_argument,
    "Cache.update": functools.partial(rename_cache_method, "update"),
    "Cache.get_seq_length": functools.partial(rename_cache_method, "get_seq_length"),
}


@kept
def future(change: str) -> dict[str, Any]:
    """Load and generate with a transformers 6.7.8 that has renamed something."""
    FUTURES[change]()
    transformers.__version__ = "6.7.8"
    return {"ids": generate()}
