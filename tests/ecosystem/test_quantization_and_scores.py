"""torchao and lm-evaluation-harness, both judged by the perplexity of the bundled story."""

import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


pytestmark = pytest.mark.ecosystem


def quantize(path: str, text_file: str) -> dict:
    """Mean loss in nats per token with float32 and with int8 weights."""
    import torch
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TorchAoConfig

    ids = AutoTokenizer.from_pretrained(path)(Path(text_file).read_text(encoding="utf-8"))["input_ids"]
    rows = torch.tensor(ids[: len(ids) // 64 * 64]).view(-1, 64)
    options = {"trust_remote_code": True}
    plain = AutoModelForCausalLM.from_pretrained(path, **options).eval()
    config = TorchAoConfig(Int8WeightOnlyConfig())
    quantized = AutoModelForCausalLM.from_pretrained(path, quantization_config=config, **options).eval()

    def loss(model) -> float:
        with torch.no_grad():
            return torch.stack([model(row[None], labels=row[None]).loss for row in rows]).mean().item()

    kind = type(quantized.model.layers[0].self_attn.q_proj.weight).__name__
    return {"plain": loss(plain), "quantized": loss(quantized), "kind": kind}


@pytest.mark.works("torchao", "int8 weights: perplexity within 1 %")
def test_int8_weights(call: Callable, repository: Path, sample_text: Path) -> None:
    report = call(quantize, path=repository, text_file=sample_text)
    assert "Int8" in report["kind"] or "Quantized" in report["kind"]
    assert report["quantized"] != report["plain"]  # the control: it is not the same model after all
    assert abs(math.exp(report["quantized"] - report["plain"]) - 1) < 0.01


def quantize_as_configured(path: str, stock: str) -> dict:
    """Ours and GPT-2 of the same weights by TorchAoConfig: what is int8, and what of it is saved."""
    import json

    import torch
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import AutoModelForCausalLM, TorchAoConfig

    ids, report = torch.arange(30)[None] * 100, {}
    for name, folder in (("ours", path), ("GPT-2", stock)):
        options = {"trust_remote_code": True}
        plain = AutoModelForCausalLM.from_pretrained(folder, **options).eval()
        config = TorchAoConfig(Int8WeightOnlyConfig())
        model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, **options).eval()
        model.save_pretrained(name)
        reloaded = AutoModelForCausalLM.from_pretrained(name, **options).eval()
        kinds = [type(weight).__name__ for weight in model.parameters()]
        with torch.no_grad():
            logits = [one(ids).logits for one in (plain, model, reloaded)]
        report[name] = {
            "int8": sum("Int8" in kind or "Quantized" in kind for kind in kinds),
            "moved": (logits[1] - logits[0]).abs().max().item(),
            "reloaded": (logits[2] - logits[1]).abs().max().item(),
            "saved as": json.loads(Path(name, "config.json").read_text(encoding="utf-8"))["quantization_config"],
        }
    return report


def test_what_torchao_is_configured_for_is_done(call: Callable, repository: Path, stock: Path) -> None:
    """On GPT-2, whose projections are Conv1D, nothing is quantized, and the folder says int8."""
    report = call(quantize_as_configured, path=repository, stock=stock)
    assert report["ours"]["int8"] == 12  # layers, and q, k, v, o, up and down in each
    assert report["ours"]["moved"] > 1e-4
    assert report["ours"]["reloaded"] == 0
    assert report["GPT-2"]["int8"] == 0
    assert report["GPT-2"]["moved"] == 0
    assert "Int8WeightOnly" in str(report["GPT-2"]["saved as"])


def quantize_in_place(path: str) -> dict:
    """What torchao's `quantize_` alone makes of our model: kinds of weights, and how it is saved."""
    import torch
    from torchao.quantization import Int8WeightOnlyConfig, quantize_
    from transformers import AutoModelForCausalLM

    ids, models = torch.arange(30)[None] * 100, []
    for _ in range(2):
        models.append(AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True).eval())
        quantize_(models[-1], Int8WeightOnlyConfig())
    model, again = models
    report = {name: type(model.get_submodule(name).weight).__name__ for name in ("lm_head", "model.embed_tokens")}
    try:
        model.save_pretrained("saved")
    except RuntimeError as error:
        report["refused"] = str(error)
    torch.save(model.state_dict(), "state.pt")
    with torch.no_grad():
        expected = model(ids).logits
        again.model.norm.weight.mul_(2)
        report["before"] = (again(ids).logits - expected).abs().max().item()
        again.load_state_dict(torch.load("state.pt", weights_only=False), assign=True)
        report["after"] = (again(ids).logits - expected).abs().max().item()
    return report


def test_quantize_unties_the_head(call: Callable, repository: Path) -> None:
    """The head becomes int8 and the embedding stays: that is saved as a state of PyTorch, and not as a folder."""
    report = call(quantize_in_place, path=repository)
    assert (report["lm_head"], report["model.embed_tokens"]) == ("Int8Tensor", "Parameter")
    assert "invalid python storage" in report["refused"]
    assert report["before"] > 0.1
    assert report["after"] == 0


def score(path: str, text_file: str) -> dict:
    """lm-evaluation-harness on a task of our own."""
    import json

    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    text = Path(text_file).read_text(encoding="utf-8")
    Path("text.jsonl").write_text(json.dumps({"text": text}) + "\n", encoding="utf-8")
    task = {
        "task": "story",
        "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(Path("text.jsonl").resolve())}},
        "test_split": "test", "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "byte_perplexity"}, {"metric": "bits_per_byte"}],
    }  # fmt: skip
    Path("tasks").mkdir()
    Path("tasks/story.yaml").write_text(json.dumps(task), encoding="utf-8")
    model = HFLM(pretrained=path, trust_remote_code=True, batch_size=4, max_length=64, device="cpu")
    module = type(model.model).__module__
    results = simple_evaluate(model=model, tasks=["story"], task_manager=TaskManager(include_path="tasks"),
                              bootstrap_iters=0)  # fmt: skip
    return {"bits_per_byte": results["results"]["story"]["bits_per_byte,none"], "module": module}


@pytest.mark.works("lm_eval", "a local task: the perplexity of `scripts/evaluate.py` to 1e-4")
def test_lm_evaluation_harness(call: Callable, repository: Path, sample_text: Path, project_root: Path) -> None:
    report = call(score, path=repository, text_file=sample_text)
    assert report["module"].startswith("transformers_modules.")
    command = [sys.executable, project_root / "scripts" / "evaluate.py", "--model", repository, "--file", sample_text]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    tokens, size = map(int, re.search(r"tokens (\d+), bytes (\d+)", printed).groups())
    perplexity = float(re.search(r"perplexity ([\d.]+)", printed)[1])
    theirs = math.exp(report["bits_per_byte"] * math.log(2) * size / tokens)
    assert theirs == pytest.approx(perplexity, rel=1e-4)
    # The control: windows of another length give another figure.
    printed = subprocess.run([*command, "--block-size", "32"], check=True, capture_output=True, text=True).stdout
    assert float(re.search(r"perplexity ([\d.]+)", printed)[1]) != pytest.approx(theirs, rel=1e-3)
