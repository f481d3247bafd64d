"""What is right here and silently wrong elsewhere, both in one test; README.md of this folder has the table.

They stand here because this folder is run with the pinned versions alone: the next ones may have become right.
"""

import copy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DataLoaderConfiguration
from safetensors.numpy import load_file, save_file
from transformers import (
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    HfArgumentParser,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)

from hf_gpt_scratch import GPTScratchForCausalLM
from hf_gpt_scratch.conversion.writers.safetensors_writer import write_model
from hf_gpt_scratch.conversion.writers.tensor_blocks import row_blocks
from hf_gpt_scratch.data.documents import read_text
from hf_gpt_scratch.data.tokenizer import load_encoding
from hf_gpt_scratch.data.windows import TokenWindows, encode_text
from hf_gpt_scratch.training.command_line import parse_settings
from hf_gpt_scratch.training.loop import train
from hf_gpt_scratch.training.settings import TrainingSettings
from tests.markers import nightly
from tests.texts import split_text
from tests.training.histories import rows, step_losses
from tests.training.runs_in_one_world import copy_at_step


pytestmark = pytest.mark.ecosystem

TINY = {
    "vocabulary": "bytes", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "max_position_embeddings": 64, "warmup_steps": 1, "max_steps": 6, "eval_steps": 9, "sample_tokens": 1,
    "save_steps": 3, "peak_flops": 1e12,
}  # fmt: skip


@pytest.fixture(scope="module")
def models(repository: Path, stock: Path) -> dict[str, torch.nn.Module]:
    """The same weights in our class and in transformers' GPT-2."""
    ours = GPTScratchForCausalLM.from_pretrained(repository).eval()
    return {"ours": ours, "GPT-2": GPT2LMHeadModel.from_pretrained(stock).eval()}


@pytest.fixture
def fresh_accelerate_state() -> Callable[[], None]:
    """Accelerate keeps its settings for the life of the process."""

    def reset() -> None:
        AcceleratorState._reset_state(True)
        GradientState._reset_state()

    yield reset
    reset()


@torch.no_grad()
def test_texts_packed_in_one_row(models: dict) -> None:
    """With `use_cache`, which is on by default, the library does not look for the beginnings of texts."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 50257, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "initializer_range": 0.3,
    }  # fmt: skip
    peers = {"Llama": LlamaForCausalLM(LlamaConfig(**sizes)), "NeoX": GPTNeoXForCausalLM(GPTNeoXConfig(**sizes))}
    ids = torch.randint(50257, (1, 40), generator=torch.Generator().manual_seed(0))
    lengths = [11, 9, 20]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    for name, model in (models | peers).items():
        model.eval()
        alone = torch.cat([model(part).logits for part in ids.split(lengths, dim=1)], dim=1)
        gaps = [
            (model(ids, position_ids=positions, **options).logits - alone).abs().max().item()
            for options in ({}, {"use_cache": False})
        ]
        gaps = [gap / alone.abs().max().item() for gap in gaps]
        if name == "ours":
            assert max(gaps) < 1e-6
        else:
            assert gaps[0] > 0.1, name
            assert gaps[1] < 5e-6, name


def test_losses_of_trainer(models: dict, tmp_path: Path) -> None:
    """In training and evaluation. For rows of 16 tokens GPT-2's are 15 / 16 of the truth: its class has no
    "ForCausalLM" in its name.
    """
    ids = torch.randint(50257, (8, 16), generator=torch.Generator().manual_seed(0))
    examples = [{"input_ids": row, "labels": row} for row in ids]
    for name, model in models.items():
        with torch.no_grad():
            logits = model(ids).logits[:, :-1].flatten(0, 1)
        truth = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten()).item()
        arguments = TrainingArguments(
            str(tmp_path / name), max_steps=1, logging_steps=1, save_strategy="no", use_cpu=True, report_to="none",
            disable_tqdm=True,
        )  # fmt: skip
        trainer = Trainer(copy.deepcopy(model), arguments, train_dataset=examples, eval_dataset=examples)
        measured = trainer.evaluate()["eval_loss"]
        trainer.train()
        (logged,) = (row["loss"] for row in trainer.state.log_history if "loss" in row)
        assert [measured / truth, logged / truth] == pytest.approx([1 if name == "ours" else 15 / 16] * 2, rel=1e-5)


def test_what_was_scored_last_is_saved(
    models: dict, short_text: Path, tmp_path: Path, fresh_accelerate_state: Callable[[], None]
) -> None:
    """With schedule-free AdamW, `Trainer` scores averaged weights, and saves others unless it has just scored."""
    ids = torch.randint(300, (16, 32), generator=torch.Generator().manual_seed(0))
    examples = [{"input_ids": row, "labels": row} for row in ids]
    arguments = TrainingArguments(
        str(tmp_path / "theirs"), max_steps=10, optim="schedule_free_adamw", lr_scheduler_type="constant",
        learning_rate=3e-3, save_strategy="no", use_cpu=True, report_to="none", disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(copy.deepcopy(models["GPT-2"]), arguments, train_dataset=examples, eval_dataset=examples)
    trainer.train()
    for is_scored_before in (False, True):
        scored = trainer.evaluate()["eval_loss"] if is_scored_before else None
        trainer.save_model()
        saved = GPT2LMHeadModel.from_pretrained(tmp_path / "theirs")
        scored = scored or trainer.evaluate()["eval_loss"]
        again = Trainer(saved, arguments, eval_dataset=examples).evaluate()["eval_loss"]
        assert (again == pytest.approx(scored, rel=1e-3)) == is_scored_before
        trainer.model.train()
        trainer.optimizer.train()  # as at the end of train()

    fresh_accelerate_state()
    settings = TrainingSettings(output_dir=str(tmp_path / "ours"), train_file=[str(short_text)], **TINY)
    result = train(settings)
    _, text = split_text(read_text(short_text), settings.train_split)
    tokens = TokenWindows(encode_text(text, load_encoding("bytes")), settings.max_position_embeddings)
    windows = [tokens[index] for index in range(len(tokens))]
    saved = GPTScratchForCausalLM.from_pretrained(result.repository).eval()
    with torch.no_grad():
        logits = saved(torch.stack([window["input_ids"] for window in windows])).logits.flatten(0, 1)
    labels = torch.cat([window["shift_labels"] for window in windows])
    again = torch.nn.functional.cross_entropy(logits, labels).item()
    assert again == pytest.approx(result.validation_loss, rel=1e-6)


@dataclass
class TwoSettings:
    learning_rate: float = 1.0
    resume: bool = False


def test_values_of_a_yaml_file(tmp_path: Path) -> None:
    """YAML reads 3e-4 and 'false' as texts, and the library's parser leaves them so: the second counts as true."""
    path = tmp_path / "settings.yaml"
    path.write_text("learning_rate: 3e-4\nresume: 'false'\n")
    (theirs,) = HfArgumentParser(TwoSettings).parse_yaml_file(str(path))
    assert (theirs.learning_rate, theirs.resume) == ("3e-4", "false")
    ours = parse_settings(["--config", str(path)])
    assert (ours.learning_rate, ours.resume) == (3e-4, False)


VALUES = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.mark.parametrize("array", [VALUES.T, VALUES[:, ::2], np.asfortranarray(VALUES)], ids=["T", "::2", "fortran"])
def test_arrays_that_do_not_lie_row_by_row(tmp_path: Path, array: np.ndarray) -> None:
    """The library writes the memory from the first value on, whatever the strides, and says nothing."""
    save_file({"x": array}, tmp_path / "theirs.safetensors")
    assert not np.array_equal(load_file(tmp_path / "theirs.safetensors")["x"], array)
    (path,) = write_model(tmp_path, {"x": array.shape}, (("x", rows) for rows in row_blocks(array)), "float32", 10**9)
    assert np.array_equal(load_file(path)["x"], array)


def test_tensors_that_share_memory_or_wait_for_their_first_use(tmp_path: Path) -> None:
    """Tensors without values or dimensions are fine, and shared memory is refused.

    Conjugated and negated ones wait for their first use, lie row by row, and are written as they were before.
    """
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"none": torch.zeros(0, 3), "one": torch.tensor(2.0)}, path)
    loaded = safetensors.torch.load_file(path)
    assert (loaded["none"].shape, loaded["one"]) == ((0, 3), torch.tensor(2.0))
    values = torch.ones(4)
    with pytest.raises(RuntimeError, match="Some tensors share memory"):
        safetensors.torch.save_file({"whole": values, "part": values[:2]}, path)
    numbers = torch.tensor([1 + 2j])
    for waiting, written in ((numbers.conj(), numbers), (numbers.conj().imag, numbers.imag)):
        assert waiting.is_contiguous()
        safetensors.torch.save_file({"a": waiting}, path)
        assert torch.equal(safetensors.torch.load_file(path)["a"], written)
        assert not torch.equal(waiting, written)
        # The control: computed before.
        safetensors.torch.save_file({"a": waiting.resolve_conj().resolve_neg()}, path)
        assert torch.equal(safetensors.torch.load_file(path)["a"], waiting)


def batches_after_resume(
    folder: Path, reset: Callable[[], None], *, is_seedable: bool = False, sets_epoch: bool = False
) -> tuple[list[list[int]], list[list[int]]]:
    """The batches of a second epoch under Accelerate, and of one saved after two of them and resumed as documented."""
    seen = []
    for is_resumed in (False, True):
        reset()
        torch.manual_seed(0)
        configuration = DataLoaderConfiguration(use_seedable_sampler=is_seedable)
        accelerator = Accelerator(cpu=True, dataloader_config=configuration)
        loader = accelerator.prepare(torch.utils.data.DataLoader(range(20), batch_size=2, shuffle=True))
        if is_resumed:
            accelerator.load_state(str(folder))
        for epoch in [1] if is_resumed else [0, 1]:
            if sets_epoch:
                loader.set_epoch(epoch)
            batches = seen[0][:2] if is_resumed else []
            for batch in accelerator.skip_first_batches(loader, 2) if is_resumed else loader:
                batches.append(batch.tolist())
                if (epoch, len(batches), is_resumed) == (1, 2, False):
                    accelerator.save_state(str(folder))
        seen.append(batches)
    return seen[0], seen[1]


def test_resume_in_the_middle_of_an_epoch(
    short_text: Path, tmp_path: Path, fresh_accelerate_state: Callable[[], None]
) -> None:
    """Accelerate's load_state and skip_first_batches go on in another shuffle, unless the sampler has a seed and
    `set_epoch` is called; here it is the same to the last bit.
    """
    for options in ({}, {"is_seedable": True}, {"is_seedable": True, "sets_epoch": True}):
        whole, resumed = batches_after_resume(tmp_path / "theirs", fresh_accelerate_state, **options)
        assert sorted(sum(whole, [])) == list(range(20))
        assert (resumed == whole) == ("sets_epoch" in options)
        assert (len(set(sum(resumed, []))) == 20) == ("sets_epoch" in options)
    fresh_accelerate_state()
    tiny = TINY | {"train_file": [str(short_text)]}
    train(TrainingSettings(output_dir=str(tmp_path / "whole"), **tiny))
    fresh_accelerate_state()
    copy_at_step(tmp_path / "whole", tmp_path / "resumed", step=3)
    train(TrainingSettings(output_dir=str(tmp_path / "resumed"), resume=True, **tiny))
    assert rows(tmp_path / "resumed", "run")[-1]["resumed_at_step"] == 3
    assert rows(tmp_path / "whole", "run")[0]["steps_per_epoch"] > 6
    assert step_losses(tmp_path / "resumed") == step_losses(tmp_path / "whole")


# The end of the line is in the string: an unbuffered print writes its own end apart, and two ranks mix their lines.
STARTED = """
print(f"rank {state.process_index} of {state.num_processes}, {state.distributed_type}\\n", end="", flush=True)
"""
THEIRS = f"""
from accelerate import Accelerator

state = Accelerator().state
{STARTED}"""
OURS = f"""
from hf_gpt_scratch.runtime.launching import relaunch_if_needed

relaunch_if_needed()
from hf_gpt_scratch.training.build import build_accelerator
from hf_gpt_scratch.training.settings import TrainingSettings

state = build_accelerator(TrainingSettings()).state
{STARTED}"""


ALONE = "rank 0 of 1, DistributedType.NO"
LAUNCH = ["accelerate.commands.accelerate_cli", "launch", "--quiet"]
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def of_two(kind: str) -> list[str]:
    return [f"rank {rank} of 2, DistributedType.{kind}" for rank in range(2)]


@pytest.mark.parametrize(
    ("launcher", "variables", "theirs", "kind"),
    [
        ([*LAUNCH, "--cpu", "--num_processes", "2"], {}, [ALONE], "MULTI_CPU"),
        nightly([*LAUNCH, "--num_processes", "2"], {"ACCELERATE_USE_CPU": "1"}, [ALONE], "MULTI_CPU"),
        nightly([*LAUNCH, "--config_file", "scripts/configs/ddp_cpu.yaml"], {}, [ALONE], "MULTI_CPU"),
        nightly([*LAUNCH, "--config_file", "scripts/configs/fsdp2.yaml"], {}, [ALONE] * 2, "FSDP"),
        nightly([*LAUNCH, "--multi_gpu", "--num_processes", "2"], {}, [ALONE] * 2, "MULTI_CPU"),
        nightly(TORCHRUN, {}, [ALONE] * 2, "MULTI_CPU"),
        nightly(TORCHRUN, {"ACCELERATE_USE_CPU": "true"}, of_two("MULTI_CPU"), "MULTI_CPU"),
    ],
    ids=["--cpu", "USE_CPU", "MULTI_CPU", "FSDP", "--multi_gpu", "torchrun", "torchrun, USE_CPU"],
)
def test_two_processes_on_a_cpu(
    environment: dict,
    project_root: Path,
    tmp_path: Path,
    launcher: list[str],
    variables: dict[str, str],
    theirs: list[str],
    kind: str,
) -> None:
    """Accelerate alone starts one, or two that know nothing of each other, unless torchrun and a variable tell it;
    here there are two of one run.
    """
    launcher = [str(project_root / word) if word.endswith(".yaml") else word for word in launcher]
    printed = []
    for name, program in (("theirs", THEIRS), ("ours", OURS)):
        (tmp_path / name).with_suffix(".py").write_text(program)
        result = subprocess.run(
            [sys.executable, "-m", *launcher, tmp_path / f"{name}.py"],
            env=environment | variables | {"PYTHONPATH": str(project_root)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == 0, result.stderr
        printed.append(sorted(result.stdout.splitlines()))
    assert printed == [theirs, of_two(kind)]


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--multi_cpu"], "unrecognized arguments: --multi_cpu"), (["--cpu", "--multi_gpu"], "You can only use one of")],
)
def test_options_that_the_launcher_refuses(environment: dict, options: list[str], message: str) -> None:
    command = [sys.executable, "-m", *LAUNCH, *options, "--num_processes", "2", "never_started.py"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode != 0
    assert message in result.stderr
