"""Proves that a checkpoint brings back every bit, and that a damaged one is never taken for a good one."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from hf_gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
from hf_gpt_scratch.training.checkpoint import (
    MANIFEST,
    UNFINISHED,
    Progress,
    SavedState,
    damage,
    load_checkpoint,
    load_random_state,
    newest_valid_checkpoint,
    read_state,
    remove_old_checkpoints,
    save_checkpoint,
)


def trained(config: GPTScratchConfig, steps: int) -> tuple[GPTScratchForCausalLM, torch.optim.Optimizer]:
    torch.manual_seed(3)
    model = GPTScratchForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(steps):
        ids = torch.randint(0, config.vocab_size, (2, 8))
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def save(folder: Path, config: GPTScratchConfig, step: int) -> Path:
    model, optimizer = trained(config, steps=2)
    progress = Progress(global_step=step, epoch=1, step_in_epoch=2, tokens_seen=99, order_seed=2**62, history_bytes=5)
    saved = SavedState(progress, {"seed": 1}, 1, [], versions={"torch": "x"})
    return save_checkpoint(folder, Accelerator(), model, optimizer, saved)


@pytest.mark.parametrize("tied", [True, False])
def test_everything_comes_back_bit_for_bit(tmp_path: Path, tiny_config: GPTScratchConfig, tied: bool) -> None:
    tiny_config.tie_word_embeddings = tied
    model, optimizer = trained(tiny_config, steps=2)
    saved = SavedState(Progress(global_step=2), {}, 1, [])
    path = save_checkpoint(tmp_path, Accelerator(), model, optimizer, saved)
    drawn = torch.rand(4)

    other, other_optimizer = trained(tiny_config, steps=1)
    assert not torch.equal(other.model.norm.bias, model.model.norm.bias)
    load_checkpoint(path, Accelerator(), other, other_optimizer)
    load_random_state(path, 0)
    assert torch.equal(torch.rand(4), drawn)
    for (name, expected), got in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(expected, got), name
    assert (other.lm_head.weight is other.model.embed_tokens.weight) == tied
    expected, got = optimizer.state_dict(), other_optimizer.state_dict()
    assert json.dumps(expected["param_groups"]) == json.dumps(got["param_groups"])
    for index, values in expected["state"].items():
        for key, value in values.items():
            assert torch.equal(value, got["state"][index][key]), (index, key)


def test_state_is_json_and_safetensors_only(tmp_path: Path, tiny_config: GPTScratchConfig) -> None:
    path = save(tmp_path, tiny_config, 7)
    assert path.name == "step-00000007"
    names = sorted(file.name for file in path.iterdir())
    assert names == ["manifest.json", "model.safetensors", "optimizer.safetensors", "rng_0.safetensors", "state.json"]
    assert read_state(path).progress == Progress(7, 1, 2, 99, 2**62, 5)
    assert set(json.loads((path / MANIFEST).read_text())) == set(names) - {MANIFEST}


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "rng_0.safetensors", "state.json"])
@pytest.mark.parametrize("fault", ["removed", "empty", "cut", "bit", "appended"])
def test_damage_is_found_and_the_checkpoint_before_is_taken(
    tmp_path: Path, tiny_config: GPTScratchConfig, name: str, fault: str
) -> None:
    good, bad = save(tmp_path, tiny_config, 1), save(tmp_path, tiny_config, 2)
    assert newest_valid_checkpoint(tmp_path) == (bad, [])
    file = bad / name
    content = bytearray(file.read_bytes())
    if fault == "removed":
        file.unlink()
    elif fault == "bit":
        content[random.Random(0).randrange(len(content))] ^= 16
        file.write_bytes(content)
    else:
        file.write_bytes({"empty": b"", "cut": content[:-1], "appended": bytes(content) + b" "}[fault])
    path, warnings = newest_valid_checkpoint(tmp_path)
    assert path == good
    assert len(warnings) == 1
    assert name in warnings[0]


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"\xff", b'{"model.safetensors": 1}'])
def test_damaged_manifest_never_counts(tmp_path: Path, tiny_config: GPTScratchConfig, content: bytes | None) -> None:
    path = save(tmp_path, tiny_config, 1)
    assert damage(path) is None
    if content is None:
        (path / MANIFEST).unlink()
    else:
        (path / MANIFEST).write_bytes(content)
    assert damage(path) is not None
    with pytest.raises(FileNotFoundError, match="holds no valid checkpoint") as caught:
        newest_valid_checkpoint(tmp_path)
    assert "\n" not in str(caught.value)


def test_unfinished_folder_is_no_checkpoint_and_is_removed(tmp_path: Path, tiny_config: GPTScratchConfig) -> None:
    """What a kill in the middle of a save leaves behind."""
    path = save(tmp_path, tiny_config, 1)
    shutil.copytree(path, tmp_path / f"{UNFINISHED}step-00000002")
    assert newest_valid_checkpoint(tmp_path) == (path, [])
    remove_old_checkpoints(tmp_path, keep=1)
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-00000001"]


def test_only_the_newest_are_kept(tmp_path: Path, tiny_config: GPTScratchConfig) -> None:
    for step in (1, 2, 10):
        save(tmp_path, tiny_config, step)
    remove_old_checkpoints(tmp_path, keep=2)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["step-00000002", "step-00000010"]


def test_checkpoint_of_another_model_is_refused(tmp_path: Path, tiny_config: GPTScratchConfig) -> None:
    path = save(tmp_path, tiny_config, 1)
    tiny_config.num_hidden_layers = 2
    model, optimizer = trained(tiny_config, steps=0)
    with pytest.raises(ValueError, match="checkpoint of another model"):
        load_checkpoint(path, Accelerator(), model, optimizer)


def test_random_state_of_another_machine_is_refused(tmp_path: Path, tiny_config: GPTScratchConfig) -> None:
    path = save(tmp_path, tiny_config, 1)
    save_file({"cpu": torch.get_rng_state(), "cuda.7": torch.get_rng_state()}, path / "rng_0.safetensors")
    with pytest.raises(ValueError, match="random state of"):
        load_random_state(path, 0)
