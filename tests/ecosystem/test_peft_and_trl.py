"""PEFT and TRL: adapters of the attention and of the tied embeddings, supervised and preference training."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest


pytestmark = pytest.mark.ecosystem


def load(path: str):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules.")
    return model, AutoTokenizer.from_pretrained(path)


def lora(path: str) -> dict:
    """Train, save, load and merge; largest differences of logits."""
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    base, tokenizer = load(path)
    frozen = {name: weight.clone() for name, weight in base.state_dict().items()}
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    model = get_peft_model(base, LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM"))
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    ids = tokenizer(
        "The keeper of the lamp went down to the sea and did not come back.", return_tensors="pt"
    ).input_ids
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-2)
    losses = []
    for _ in range(8):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval().save_pretrained("adapter")

    with torch.no_grad():
        expected = model(input_ids=ids).logits
        loaded = PeftModel.from_pretrained(load(path)[0], "adapter").eval()
        merged = PeftModel.from_pretrained(load(path)[0], "adapter").merge_and_unload().eval()
        merged.save_pretrained("merged")
        logits = {
            "loaded": loaded(input_ids=ids).logits,
            "merged": merged(input_ids=ids).logits,
            "merged and saved": AutoModelForCausalLM.from_pretrained("merged", trust_remote_code=True)
            .eval()(input_ids=ids)
            .logits,
            "base": load(path)[0].eval()(input_ids=ids).logits,
        }
    now = model.get_base_model().state_dict()
    moved = [name for name, weight in frozen.items() if not torch.equal(
        weight, now.get(name, now.get(name.replace("_proj.", "_proj.base_layer."))))]  # fmt: skip
    differences = {name: (other - expected).abs().max().item() for name, other in logits.items()}
    return {"losses": losses, "trained": trained, "moved": moved, "differences": differences}


@pytest.mark.works("peft", "LoRA on q, k, v and o: train, save, load, merge")
def test_lora(call: Callable, repository: Path) -> None:
    report = call(lora, path=repository)
    assert report["losses"][-1] < report["losses"][0]
    assert len(report["trained"]) == 2 * 4 * 2  # layers, projections, A and B
    assert report["moved"] == []
    assert report["differences"]["loaded"] == 0
    assert report["differences"]["merged"] < 1e-4
    assert report["differences"]["merged and saved"] < 1e-4
    assert report["differences"]["base"] > 1e-2  # the control: the adapter does something


def adapt_tied_embeddings(path: str, stock: str) -> dict:
    """Losses of drawn adapters of the one matrix that is embedding and head: as made, reloaded and merged."""
    import copy
    import warnings

    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import GPT2LMHeadModel

    ids, report = torch.arange(40).view(2, 20) * 100, {}

    def loss(model: torch.nn.Module) -> float:
        return model.eval()(input_ids=ids, labels=ids).loss.item()

    for name, embedding, attention in (("ours", "embed_tokens", "q_proj"), ("GPT-2", "wte", "c_attn")):
        base = load(path)[0] if name == "ours" else GPT2LMHeadModel.from_pretrained(stock)
        for kind, options in {
            "LoRA": {"target_modules": [embedding]},
            "LoRA tied": {"target_modules": [embedding, "lm_head"], "ensure_weight_tying": True},
            "whole tied": {
                "target_modules": [attention],
                "modules_to_save": [embedding],
                "ensure_weight_tying": True,
            },
        }.items():
            torch.manual_seed(0)
            with warnings.catch_warnings(record=True) as caught, torch.no_grad():
                warnings.simplefilter("always")
                made = get_peft_model(copy.deepcopy(base), LoraConfig(r=4, task_type="CAUSAL_LM", **options))
                for weight in made.parameters():
                    if weight.requires_grad:
                        weight += 0.2 * torch.randn_like(weight)
                made.save_pretrained("adapter")
                loaded = PeftModel.from_pretrained(copy.deepcopy(base), "adapter")
                losses = {"made": loss(made), "reloaded": loss(loaded)}
                merged = loaded.merge_and_unload()
            report[f"{name}, {kind}"] = losses | {
                "merged": loss(merged),
                "tied": merged.get_input_embeddings().weight is merged.get_output_embeddings().weight,
                "warned": any("tie_word_embeddings=True" in str(one.message) for one in caught),
            }
    return report


def test_adapters_of_tied_embeddings(call: Callable, repository: Path, stock: Path) -> None:
    """Asked for tied ones, PEFT does it for our embedding, whose name it knows, and not for GPT-2's `wte`."""
    report = call(adapt_tied_embeddings, path=repository, stock=stock)
    for name in ("ours", "GPT-2"):
        assert report[f"{name}, LoRA"]["merged"] > 1.5 * report[f"{name}, LoRA"]["made"]  # the head has it then too
        assert report[f"{name}, LoRA"]["warned"] == (name == "ours")
        reloaded, made = report[f"{name}, LoRA tied"]["reloaded"], report[f"{name}, LoRA tied"]["made"]
        assert (reloaded == pytest.approx(made, rel=1e-6)) == (name == "ours")
        whole = report[f"{name}, whole tied"]
        assert whole["reloaded"] == pytest.approx(whole["made"], rel=1e-6)
        assert whole["merged"] == pytest.approx(whole["made"], rel=1e-6)
        assert whole["tied"] == (name == "ours")
    ours = report["ours, LoRA tied"]
    assert ours["merged"] > 1.5 * ours["made"]  # added twice: merge what was saved whole
    assert ours["warned"]


def adapt_all_linear(path: str) -> dict:
    """Adapters of all linear layers where tokens were added to the vocabulary: what is saved of those, and reloaded.

    The base is from a folder, or without one, as a model that was made in memory.
    """
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from safetensors.torch import load_file

    ids, new, report = torch.tensor([[5, 6, 50257, 50259, 7]]), [50257, 50258, 50259], {}

    def base(seed: int):
        torch.manual_seed(seed)
        model = load(path)[0].eval()
        model.resize_token_embeddings(50260)
        return model

    for name, options in {
        "in memory": {}, "folder": {}, "new tokens": {"trainable_token_indices": new}
    }.items():  # fmt: skip
        model = base(1)
        if name != "folder":
            model.name_or_path = ""
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", **options))
        report["adapted"] = sorted({one.split(".")[-2] for one, _ in model.named_modules() if one.endswith("lora_A")})
        with torch.no_grad():
            for weight in model.parameters():
                if weight.requires_grad:
                    weight += 0.2 * torch.randn_like(weight)
            model.save_pretrained(name)
            saved = load_file(f"{name}/adapter_model.safetensors")
            again = PeftModel.from_pretrained(base(2 if name != "new tokens" else 1), name).eval()
            expected = model.eval()(ids).logits
            gap = (again(ids).logits - expected).abs().max().item()
            merged = again.merge_and_unload()
        report[name] = {
            "rows": sorted({len(weight) for key, weight in saved.items() if "lora" not in key}),
            "gap": gap,
            "merged": (merged(ids).logits - expected).abs().max().item(),
            "tied": merged.lm_head.weight is merged.model.embed_tokens.weight,
        }
    return report


def test_all_linear_and_added_tokens(call: Callable, repository: Path) -> None:
    """The head is left out. PEFT saves a resized embedding where it finds the base's configuration to compare with,
    and otherwise silently not: name the new tokens in `trainable_token_indices`.
    """
    report = call(adapt_all_linear, path=repository)
    assert report["adapted"] == ["down_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert report["in memory"]["rows"] == []
    assert report["in memory"]["gap"] > 1e-5
    assert report["folder"]["rows"] == [50260]
    assert report["folder"]["gap"] == 0
    assert report["new tokens"]["rows"] == [3]
    assert report["new tokens"]["gap"] == 0
    assert report["new tokens"]["merged"] < 1e-4
    assert report["new tokens"]["tied"]


def tune_prompts(path: str, stock: str) -> dict:
    """Greedy ids with the cache, without it, and by hand, of drawn prompts and prefixes, for ours and for GPT-2."""
    import torch
    from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model
    from transformers import GPT2LMHeadModel

    ids, report = torch.arange(6)[None] * 100 + 50, {}
    for name in ("ours", "GPT-2"):
        for kind in (PromptTuningConfig, PrefixTuningConfig):
            torch.manual_seed(0)
            base = load(path)[0] if name == "ours" else GPT2LMHeadModel.from_pretrained(stock)
            model = get_peft_model(base, kind(task_type="CAUSAL_LM", num_virtual_tokens=4)).eval()
            for weight in model.prompt_encoder.parameters():
                torch.nn.init.normal_(weight, std=1.0)
            rows = {}
            for way in (True, False):
                options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "use_cache": way}
                rows[f"cache {way}"] = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)[
                    0, 6:
                ].tolist()
            row = ids
            with torch.no_grad():
                for _ in range(8):
                    row = torch.cat([row, model(input_ids=row, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
            report[f"{name} {kind.__name__}"] = rows | {"by hand": row[0, 6:].tolist()}
    return report


def test_prompt_and_prefix_tuning(call: Callable, repository: Path, stock: Path) -> None:
    """With transformers 5.24, GPT-2's prompt is run again on top of the cache, and its prefix is dropped."""
    for name, rows in call(tune_prompts, path=repository, stock=stock).items():
        assert len(set(rows["by hand"])) > 3, name
        assert rows["cache False"] == rows["by hand"], name
        assert (rows["cache True"] == rows["by hand"]) == name.startswith("ours"), name


def fine_tune(path: str) -> dict:
    """A few steps of TRL's SFTTrainer on texts."""
    import torch
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    torch.manual_seed(0)
    model, tokenizer = load(path)
    texts = Dataset.from_dict({"text": [f"Ship {number} came home before the storm." for number in range(16)]})
    arguments = SFTConfig(
        "sft", max_steps=8, learning_rate=3e-3, per_device_train_batch_size=4, max_length=32, report_to="none",
        use_cpu=True, bf16=False, logging_steps=1, disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    trainer = SFTTrainer(model=model, args=arguments, train_dataset=texts, processing_class=tokenizer)
    labels = next(iter(trainer.get_train_dataloader()))["labels"]
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return {"losses": losses, "ends": (labels == tokenizer.eos_token_id).sum(dim=1).tolist()}


@pytest.mark.works("trl", "`SFTTrainer`")
def test_supervised_fine_tuning(call: Callable, repository: Path) -> None:
    report = call(fine_tune, path=repository)
    losses = report["losses"]
    assert report["ends"] == [1, 1, 1, 1]  # the end of each text is learned, though it is the padding token too
    assert len(losses) == 8
    assert losses[-1] < 0.7 * losses[0]


def prepare_batches(path: str) -> dict:
    """TRL's defaults, and what its loader makes of prompts with completions, and of packed texts."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = load(path)
    options = {"report_to": "none", "use_cpu": True, "bf16": False, "disable_tqdm": True}
    defaults = SFTConfig("sft", **options)
    report = {"defaults": [defaults.max_length, defaults.packing]}
    pairs = [{"prompt": "The lamp", "completion": " was bright."}, {"prompt": "A", "completion": " went out."}]
    texts = [{"text": f"Ship {number} came home." + " Again." * (number % 3)} for number in range(6)]
    report["prompts"] = [len(tokenizer(row["prompt"]).input_ids) for row in pairs]
    report["texts"] = [[*tokenizer(row["text"]).input_ids, tokenizer.eos_token_id] for row in texts]
    for name, rows, more in (("pairs", pairs, {}), ("packed", texts, {"packing": True, "max_length": 32})):
        arguments = SFTConfig(name, per_device_train_batch_size=2, **options, **more)
        rows = Dataset.from_list(rows)
        trainer = SFTTrainer(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer)
        batch = next(iter(trainer.get_train_dataloader()))
        report[name] = {key: batch[key].tolist() for key in ("input_ids", "labels", "position_ids") if key in batch}
    return report


def test_batches_of_supervised_fine_tuning(call: Callable, repository: Path) -> None:
    """Prompts are not learned, and no text's first token is learned from the end of the text before it."""
    report = call(prepare_batches, path=repository)
    assert report["defaults"] == [1024, False]
    for length, ids, labels in zip(report["prompts"], *report["pairs"].values(), strict=True):
        end = len(labels) - labels[::-1].index(50256)
        assert labels == [-100] * length + ids[length:end] + [-100] * (len(labels) - end)
    (ids,), (labels,), (positions,) = (report["packed"][name] for name in ("input_ids", "labels", "position_ids"))
    starts = [place for place, position in enumerate(positions) if position == 0]
    found = [ids[start:end] for start, end in zip(starts, [*starts[1:], len(ids)], strict=True)]
    assert len(found) > 2
    assert all(text in report["texts"] for text in found)
    assert positions == [place for text in found for place in range(len(text))]
    assert labels == [label for text in found for label in [-100, *text[1:]]]


def prefer(path: str) -> dict:
    """One step of TRL's DPOTrainer; margins of log-probabilities before and after, computed without TRL."""
    import torch
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    torch.manual_seed(0)
    model, tokenizer = load(path)
    row = {"prompt": "The lamp", "chosen": " was bright.", "rejected": " went out."}

    def margin() -> float:
        values = []
        for end in ("chosen", "rejected"):
            ids = tokenizer(row["prompt"] + row[end], return_tensors="pt").input_ids
            with torch.no_grad():
                values.append(-model(ids, labels=ids).loss.item() * (ids.shape[1] - 1))
        return values[0] - values[1]

    before = margin()
    arguments = DPOConfig(
        "dpo", max_steps=1, learning_rate=1e-3, per_device_train_batch_size=2, max_length=32, report_to="none",
        use_cpu=True, bf16=False, logging_steps=1, disable_tqdm=True, save_strategy="no", trust_remote_code=True,
    )  # fmt: skip
    pairs = Dataset.from_dict({name: [text] * 2 for name, text in row.items()})
    trainer = DPOTrainer(model=model, args=arguments, train_dataset=pairs, processing_class=tokenizer)
    trainer.train()
    loss = next(row["loss"] for row in trainer.state.log_history if "loss" in row)
    return {"loss": loss, "before": before, "after": margin()}


@pytest.mark.works("trl", "`DPOTrainer`, one step")
@pytest.mark.nightly
def test_preferences(call: Callable, repository: Path) -> None:
    report = call(prefer, path=repository)
    assert report["loss"] == pytest.approx(math.log(2), abs=1e-4)  # policy and reference are still equal
    assert report["after"] > report["before"] + 0.01
