"""Proves that a checkpoint brings back every bit, and that a damaged one is never taken for a good one."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from hf_gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
from hf_gpt_scratch.runtime.files import clear_unfinished
from hf_gpt_scratch.training.checkpoints.checkpoint import (
    SavedState,
    load_checkpoint,
    load_random_state,
    newest_valid_checkpoint,
    read_state,
    remove_old_checkpoints,
    save_checkpoint,
)
from hf_gpt_scratch.training.checkpoints.manifest import MANIFEST, read_manifest, write_manifest
from hf_gpt_scratch.training.progress import Progress


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


def save(folder: Path, config: GPTScratchConfig, step: int, steps: int = 2) -> Path:
    model, optimizer = trained(config, steps)
    progress = Progress(global_step=step, epoch=1, step_in_epoch=2, tokens_seen=99, order_seed=2**62, history_bytes=5)
    saved = SavedState(progress, {"seed": 1}, 1, environment={"torch": "x"}, text_sha256="y", model_sha256="z")
    return save_checkpoint(folder, Accelerator(), model, optimizer, saved)


@pytest.mark.parametrize("tied", [True, False])
def test_everything_comes_back_bit_for_bit(tmp_path: Path, tiny_config: GPTScratchConfig, tied: bool) -> None:
    tiny_config.tie_word_embeddings = tied
    model, optimizer = trained(tiny_config, steps=2)
    saved = SavedState(Progress(global_step=2), {}, 1)
    path = save_checkpoint(tmp_path, Accelerator(), model, optimizer, saved)
    drawn = torch.rand(4)

    other, other_optimizer = trained(tiny_config, steps=1)
    assert not torch.equal(other.model.norm.bias, model.model.norm.bias)
    load_checkpoint(path, Accelerator(), other, other_optimizer)
    load_random_state(path, Accelerator())
    assert torch.equal(torch.rand(4), drawn)
    for (name, expected), got in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(expected, got), name
    assert (other.lm_head.weight is other.model.embed_tokens.weight) == tied
    expected, got = optimizer.state_dict(), other_optimizer.state_dict()
    assert json.dumps(expected["param_groups"]) == json.dumps(got["param_groups"])
    for index, values in expected["state"].items():
        for key, value in values.items():
            assert torch.equal(value, got["state"][index][key]), (index, key)


def test_weight_that_lies_transposed_in_memory(tmp_path: Path, tiny_config: GPTScratchConfig) -> None:
    """Its values come back, and its moments; safetensors itself refuses such a tensor."""
    model, _ = trained(tiny_config, steps=0)
    weight = model.model.layers[0].mlp.up_proj.weight
    weight.data = weight.data.T.contiguous().T
    optimizer = torch.optim.AdamW([weight])
    model(torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    optimizer.step()
    with pytest.raises(ValueError, match="non contiguous"):
        save_file({"weight": weight.detach()}, tmp_path / "theirs.safetensors")
    path = save_checkpoint(tmp_path, Accelerator(), model, optimizer, SavedState(Progress(global_step=1), {}, 1))
    saved = load_file(path / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    assert torch.equal(saved, weight)
    moment = optimizer.state[weight]["exp_avg"]
    assert not moment.is_contiguous()
    assert torch.equal(load_file(path / "optimizer.safetensors")["0.exp_avg"], moment)


def test_state_is_json_and_safetensors_only(tmp_path: Path, tiny_config: GPTScratchConfig) -> None:
    path = save(tmp_path, tiny_config, 7)
    assert path.name == "step-00000007"
    names = sorted(file.name for file in path.iterdir())
    assert names == ["manifest.json", "model.safetensors", "optimizer.safetensors", "rng_0.safetensors", "state.json"]
    assert read_state(path).progress == Progress(7, 1, 2, 99, 2**62, 5)
    manifest = json.loads((path / MANIFEST).read_text())
    assert set(manifest.pop("files")) == set(names) - {MANIFEST}
    assert len(manifest.pop("sha256")) == 64
    assert manifest == {
        "global_step": 7,
        "tokens_seen": 99,
        "settings": {"seed": 1},
        "num_processes": 1,
        "environment": {"torch": "x"},
        "text_sha256": "y",
        "model_sha256": "z",
        "vocabulary_sha256": "",
    }
    saved = read_state(path)
    assert (saved.settings, saved.num_processes, saved.environment) == ({"seed": 1}, 1, {"torch": "x"})


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


def test_what_does_not_belong_to_a_checkpoint_is_named_and_not_read(
    tmp_path: Path, tiny_config: GPTScratchConfig
) -> None:
    path = save(tmp_path, tiny_config, 1)
    (path / "extra.bin").write_bytes(b"x")
    found, warnings = newest_valid_checkpoint(tmp_path)
    assert found == path
    assert warnings == [f"{path / 'extra.bin'} does not belong to the checkpoint: not read"]


def test_checkpoint_under_the_name_of_another_step_is_named_and_skipped(
    tmp_path: Path, tiny_config: GPTScratchConfig
) -> None:
    path = save(tmp_path, tiny_config, 2)
    copy = shutil.copytree(path, tmp_path / "step-00000004")
    assert newest_valid_checkpoint(tmp_path) == (path, [f"{copy} is left out: it is the checkpoint of step 2"])


def test_without_any_valid_checkpoint_there_is_one_line(tmp_path: Path, tiny_config: GPTScratchConfig) -> None:
    (save(tmp_path, tiny_config, 1) / MANIFEST).unlink()
    with pytest.raises(FileNotFoundError, match="holds no valid checkpoint.*step-00000001.*is missing") as caught:
        newest_valid_checkpoint(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_newest_are_kept_and_the_best(tmp_path: Path, tiny_config: GPTScratchConfig) -> None:
    paths = [save(tmp_path, tiny_config, step) for step in (1, 2, 9, 10)]
    remove_old_checkpoints(paths[-1], keep=2, best_step=1)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["step-00000001", "step-00000009", "step-00000010"]


def test_damaged_later_checkpoint_is_not_kept_for_the_one_just_written(
    tmp_path: Path, tiny_config: GPTScratchConfig
) -> None:
    """A resume passed over step 6, which was damaged; counting it as the newest would leave no valid one."""
    paths = [save(tmp_path, tiny_config, step) for step in (3, 4, 6)]
    (paths[2] / "state.json").unlink()
    remove_old_checkpoints(paths[1], keep=1)
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-00000004"]


def test_what_only_has_the_name_of_a_checkpoint_is_left_alone(tmp_path: Path, tiny_config: GPTScratchConfig) -> None:
    """A file, a folder and a link; they used to end the run at its first save."""
    for name in ("step-99999999", "step-00000002"):
        (tmp_path / name).write_text("mine")
    (tmp_path / "step-00000099").mkdir()
    (tmp_path / "step-00000099" / "thesis.txt").write_text("mine")
    (tmp_path / "step-7").mkdir()
    (tmp_path / "step-00000000").symlink_to(save(tmp_path / "elsewhere", tiny_config, 0), target_is_directory=True)
    path = save(tmp_path, tiny_config, 1)
    remove_old_checkpoints(path, keep=1)
    path = save(tmp_path, tiny_config, 2)
    remove_old_checkpoints(path, keep=1)
    assert newest_valid_checkpoint(tmp_path)[0] == path
    assert {entry.name: entry.is_dir() for entry in tmp_path.iterdir()} == {
        "elsewhere": True,
        "step-00000002": True,
        "step-00000002.file": False,
        "step-00000099": True,
        "step-7": True,
        "step-99999999": False,
    }
    assert (tmp_path / "step-00000099" / "thesis.txt").read_text() == "mine"
    assert (tmp_path / "elsewhere" / "step-00000000" / "state.json").is_file()


def test_kill_between_two_renames_leaves_a_valid_checkpoint_of_the_step_that_is_replaced(
    tmp_path: Path, tiny_config: GPTScratchConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies on the disk before each rename is copied; there the next run finds the old or the new checkpoint."""
    folder = tmp_path / "checkpoints"
    old = read_manifest(save(folder, tiny_config, 1))
    rename, found = Path.rename, []

    def watched(source: Path, target: Path) -> Path:
        if source.parent != folder:
            return rename(source, target)
        copy = shutil.copytree(folder, tmp_path / f"killed-{len(found)}")
        clear_unfinished(copy)
        found.append(read_manifest(newest_valid_checkpoint(copy)[0]))
        assert [entry.name for entry in copy.iterdir()] == ["step-00000001"]
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", watched)
    new = read_manifest(save(folder, tiny_config, 1, steps=3))
    assert found == [old, old]
    assert new["files"] != old["files"]
    assert [entry.name for entry in folder.iterdir()] == ["step-00000001"]


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
        load_random_state(path, Accelerator())


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "rng_0.safetensors", "state.json"])
@pytest.mark.parametrize("content", [b"", b"\x80\x04.", b"<html>", b"\xff" * 64, b"[]"])
def test_file_that_the_manifest_vouches_for_but_is_none_ends_in_one_line(
    tmp_path: Path, tiny_config: GPTScratchConfig, name: str, content: bytes
) -> None:
    """Someone who can write a file can write its hash too."""
    path = save(tmp_path, tiny_config, 1)
    (path / name).write_bytes(content)
    facts = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).unlink()
    write_manifest(path, {key: value for key, value in facts.items() if key not in ("files", "sha256")})
    assert newest_valid_checkpoint(tmp_path) == (path, [])
    model, optimizer = trained(tiny_config, steps=0)

    def load() -> None:
        load_checkpoint(path, Accelerator(), model, optimizer)
        load_random_state(path, Accelerator())

    with pytest.raises(ValueError, match=name) as caught:
        load()
    assert "\n" not in str(caught.value)
