"""LLaMA-Factory trains an exported folder by its own commands, and writes the whole model."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from hf_gpt_scratch import GPTScratchForCausalLM
from tests import fresh_interpreter
from tests.engines.environments import LLAMA_FACTORY, run


pytestmark = [pytest.mark.engines, pytest.mark.timeout(2400)]

PROJECTIONS = {"q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"}
IDS = [[464, 20450, 373, 6016, 13], [1, 2, 3, 4, 5]]
COMMON = {
    "trust_remote_code": True, "dataset_dir": "data", "cutoff_len": 48, "per_device_train_batch_size": 2,
    "max_steps": 6, "learning_rate": 0.01, "lr_scheduler_type": "constant", "logging_steps": 1, "report_to": "none",
    "use_cpu": True, "seed": 0, "do_train": True, "save_only_model": True, "overwrite_cache": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data of both kinds, and an empty torchaudio, which LLaMA-Factory imports for sounds."""
    folder = tmp_path_factory.mktemp("neighbours")
    for name in ("data", "stubs"):
        (folder / name).mkdir()
    (folder / "stubs" / "torchaudio.py").touch()
    pairs = [{"instruction": f"Name {number}", "output": f"ship {number}"} for number in range(12)]
    texts = [{"text": f"Ship {number} came home before the storm."} for number in range(12)]
    about = {
        "pairs": {"file_name": "pairs.json", "columns": {"prompt": "instruction", "response": "output"}},
        "texts": {"file_name": "texts.json", "columns": {"prompt": "text"}},
    }
    for name, content in {"pairs": pairs, "texts": texts, "dataset_info": about}.items():
        (folder / "data" / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def llama_factory(work: Path, command: str, **settings: object) -> str:
    """One of its commands, with its settings in a file as its pages say."""
    (work / "settings.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return run(
        LLAMA_FACTORY, work, "llamafactory-cli", command, "settings.yaml", python_path=work / "stubs", timeout=1200
    )


def losses(folder: Path) -> list[float]:
    """Those of the last `trainer_state.json` in a folder."""
    state = max(folder.rglob("trainer_state.json"), key=lambda path: path.stat().st_mtime_ns)
    rows = json.loads(state.read_text(encoding="utf-8"))["log_history"]
    return [row["loss"] for row in rows if "loss" in row]


def merged_by_hand(repository: Path, adapter: Path) -> GPTScratchForCausalLM:
    """The model with B A alpha / r added to each matrix that the adapter has."""
    settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    assert set(settings["target_modules"]) == PROJECTIONS
    tensors = load_file(adapter / "adapter_model.safetensors")
    model = GPTScratchForCausalLM.from_pretrained(repository)
    for name in [name for name in tensors if ".lora_A." in name]:
        module = name.removeprefix("base_model.model.").partition(".lora_A")[0]
        update = tensors[name.replace(".lora_A.", ".lora_B.")] @ tensors[name]
        with torch.no_grad():
            model.get_submodule(module).weight += update * settings["lora_alpha"] / settings["r"]
    return model


def logits_of(folder: Path, work: Path) -> torch.Tensor:
    """Those of a folder with the code in it, where this package is not."""
    call = {"path": str(folder), "auto_class": "AutoModelForCausalLM", "input_ids": IDS, "output": "logits"}
    outcome = fresh_interpreter.run(work / f"fresh-{folder.name}", {"load": ("load_model", call)})
    assert outcome.returned("load")["module"].startswith("transformers_modules.")
    return outcome.tensor("logits")


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return (one - other).abs().max().item()


@pytest.mark.works("llamafactory", "LoRA, and its export as one merged folder")
def test_llama_factory_trains_lora_and_merges(repository: Path, work: Path) -> None:
    where = {"model_name_or_path": str(repository), "template": "default"}
    llama_factory(
        work, "train", **COMMON, **where, stage="sft", dataset="pairs", finetuning_type="lora", lora_target="all",
        output_dir="lora",
    )  # fmt: skip
    found = losses(work / "lora")
    assert len(found) == 6
    assert found[-1] < 0.9 * found[0]
    llama_factory(
        work, "export", **where, trust_remote_code=True, adapter_name_or_path="lora", finetuning_type="lora",
        export_dir="merged", export_device="cpu", infer_dtype="float32",
    )  # fmt: skip
    with torch.no_grad():
        expected = merged_by_hand(repository, work / "lora")(torch.tensor(IDS)).logits
        before = GPTScratchForCausalLM.from_pretrained(repository)(torch.tensor(IDS)).logits
    merged = logits_of(work / "merged", work)
    assert difference(merged, expected) < 1e-4 * difference(before, expected)


@pytest.mark.works("llamafactory", "all weights trained")
def test_llama_factory_trains_all_weights(repository: Path, work: Path) -> None:
    llama_factory(
        work, "train", **COMMON | {"learning_rate": 1e-3}, model_name_or_path=str(repository), stage="pt",
        dataset="texts", finetuning_type="full", packing=False, output_dir="full",
    )  # fmt: skip
    found = losses(work / "full")
    assert len(found) == 6
    assert found[-1] < 0.9 * found[0]
    with torch.no_grad():
        expected = GPTScratchForCausalLM.from_pretrained(work / "full")(torch.tensor(IDS)).logits
    assert difference(logits_of(work / "full", work), expected) < 1e-5
