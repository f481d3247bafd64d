"""What other people's tools do with a head that is the embedding, and with a token that ends texts and pads them."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_model, save_model
from torch.nn.utils.parametrizations import weight_norm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import AutoTokenizer, DataCollatorForLanguageModeling

from hf_gpt_scratch import GPTScratchForCausalLM


pytestmark = pytest.mark.ecosystem

IDS = torch.arange(40).view(2, 20) * 100


def is_tied(model: GPTScratchForCausalLM) -> bool:
    return model.lm_head.weight is model.model.embed_tokens.weight


@pytest.fixture
def tied(repository: Path) -> GPTScratchForCausalLM:
    return GPTScratchForCausalLM.from_pretrained(repository).eval()


@pytest.fixture
def untied(repository: Path) -> GPTScratchForCausalLM:
    """The same weights, but for a head of its own."""
    model = GPTScratchForCausalLM.from_pretrained(repository, tie_word_embeddings=False).eval()
    with torch.no_grad():
        model.lm_head.weight.copy_(2 * model.model.embed_tokens.weight)
    return model


def test_an_average_of_the_weights(tied: GPTScratchForCausalLM) -> None:
    """PyTorch's `AveragedModel` has one matrix too, with the average that is computed here."""
    average = AveragedModel(tied, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    optimizer = torch.optim.SGD(tied.parameters(), lr=0.1)
    expected = {}
    for _ in range(3):
        tied(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(tied)
        now = {name: weight.detach().clone() for name, weight in tied.named_parameters()}
        expected = {name: 0.9 * expected.get(name, weight) + 0.1 * weight for name, weight in now.items()}
    assert is_tied(average.module)
    for weights, is_average in ((expected, True), (now, False)):  # the control: it is not the last step
        found = [average.module.get_parameter(name) - weight for name, weight in weights.items()]
        assert (max(gap.abs().max().item() for gap in found) < 1e-6) == is_average


def test_a_model_written_by_safetensors(
    tied: GPTScratchForCausalLM, untied: GPTScratchForCausalLM, repository: Path, tmp_path: Path
) -> None:
    """`save_model` writes the one matrix once, and `load_model` refuses where there should be one and are two."""
    save_model(tied, tmp_path / "tied.safetensors")
    save_model(untied, tmp_path / "untied.safetensors")
    with safe_open(tmp_path / "tied.safetensors", "pt") as file:
        assert set(tied.state_dict()) - set(file.keys()) == {"model.embed_tokens.weight"}
    again = GPTScratchForCausalLM(tied.config).eval()
    assert load_model(again, tmp_path / "tied.safetensors") == (set(), [])
    assert is_tied(again)
    assert torch.equal(again(IDS).logits, tied(IDS).logits)
    with pytest.raises(RuntimeError, match='Missing key.*"model.embed_tokens.weight"'):
        load_model(untied, tmp_path / "tied.safetensors")
    with pytest.raises(RuntimeError, match='Unexpected key.*"model.embed_tokens.weight"'):
        load_model(tied, tmp_path / "untied.safetensors")


def test_weight_normalization_of_the_head(tied: GPTScratchForCausalLM, tmp_path: Path) -> None:
    """The logits stay, and the folder, which could not be loaded, is not written."""
    expected = tied(IDS).logits
    weight_norm(tied.lm_head)
    torch.testing.assert_close(tied(IDS).logits, expected, rtol=1e-5, atol=1e-4)
    with pytest.raises(RuntimeError, match="shared tensors .*lm_head.parametrizations.weight.original1"):
        tied.save_pretrained(tmp_path)


def test_an_end_of_text_that_pads_is_not_learned(repository: Path) -> None:
    """By transformers' collator, which masks by the id: also the ends that are meant."""
    tokenizer = AutoTokenizer.from_pretrained(repository)
    assert tokenizer.pad_token == tokenizer.eos_token
    texts = [tokenizer(text + tokenizer.eos_token) for text in ("The lamp went out", "The lamp")]
    labels = DataCollatorForLanguageModeling(tokenizer, mlm=False)(texts)["labels"]
    assert [(row != -100).sum().item() for row in labels] == [len(text["input_ids"]) - 1 for text in texts]


SHARDED = """
import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from torch.distributed.fsdp import fully_shard

from hf_gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM

config = GPTScratchConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, dropout=0.0)
accelerator = Accelerator(cpu=True, fsdp_plugin=FullyShardedDataParallelPlugin(fsdp_version=2))
prepared = accelerator.prepare(GPTScratchForCausalLM(config))
assert (accelerator.num_processes, str(accelerator.distributed_type)) == (2, "DistributedType.MULTI_CPU")
assert type(prepared).__name__ == "DistributedDataParallel"

mesh = torch.distributed.init_device_mesh("cpu", (2,))
with torch.device("meta"):
    model = GPTScratchForCausalLM(config)
fully_shard(model, mesh=mesh)
model.to_empty(device="cpu")
assert model.lm_head.weight is model.model.embed_tokens.weight
assert model.lm_head.weight.to_local().numel() == model.lm_head.weight.numel() / 2

for parts in (["model.embed_tokens"], ["model.embed_tokens", "lm_head"]):
    model = GPTScratchForCausalLM(config)
    for name in parts:
        fully_shard(model.get_submodule(name), mesh=mesh)
    fully_shard(model, mesh=mesh)
    try:
        model(torch.arange(10)[None])
    except ValueError as error:
        assert "weight' is shared with a parameter already managed by another FSDP group" in str(error)
        assert "use fully_shard([module_a, module_b])" in str(error)
    else:
        raise AssertionError(parts)
torch.distributed.destroy_process_group()
"""


def test_what_shards_it(environment: dict, project_root: Path, tmp_path: Path) -> None:
    """PyTorch's FSDP2 keeps one matrix in one group, and refuses two groups; Accelerate on a CPU does not shard."""
    (tmp_path / "sharded.py").write_text(SHARDED)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    result = subprocess.run(
        [*command, tmp_path / "sharded.py"],
        env=environment | {"PYTHONPATH": str(project_root)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
