"""Proves the loop against a plain PyTorch loop. Resume: checkpoints/test_resume.py; processes: test_distributed.py."""

import inspect
import re
import signal
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hf_gpt_scratch import GPTScratchForCausalLM
from hf_gpt_scratch.data.documents import read_text
from hf_gpt_scratch.data.sample_texts import bundled_text_path
from hf_gpt_scratch.data.tokenizer import load_encoding
from hf_gpt_scratch.data.windows import encode_text, epoch_order_seed
from hf_gpt_scratch.evaluation import perplexity
from hf_gpt_scratch.model.modeling_gpt_scratch import GPTScratchModel
from hf_gpt_scratch.runtime.signals import Interrupted
from hf_gpt_scratch.training import loop
from hf_gpt_scratch.training.loop import train
from hf_gpt_scratch.training.optim import learning_rate_at
from hf_gpt_scratch.training.run import Run
from hf_gpt_scratch.training.settings import TrainingSettings
from tests.texts import split_text
from tests.training.histories import rows, step_losses


def plain_loop(settings: TrainingSettings, frozen: tuple[str, ...] = ()) -> list[float]:
    """The same training without Accelerate, loaders or micro-batches: whole batches, mean loss, AdamW.

    Parameters whose names begin with one of `frozen` get no gradient.
    """
    train_text, _ = split_text(read_text(Path(settings.train_file[0])), settings.train_split)
    token_ids = encode_text(train_text, load_encoding())
    size = settings.max_position_embeddings
    starts = list(range(0, len(token_ids) - size, size))
    torch.manual_seed(settings.seed)
    model = GPTScratchForCausalLM(settings.model_config()).train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    matrices = [p for n, p in model.named_parameters() if n.endswith("proj.weight")]
    others = [p for n, p in model.named_parameters() if not n.endswith("proj.weight")]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, foreach=False)
    batch_size = settings.per_device_train_batch_size * settings.gradient_accumulation_steps
    losses: list[float] = []
    for epoch in range(100):
        generator = torch.Generator().manual_seed(epoch_order_seed(settings.seed, epoch))
        order = torch.randperm(len(starts), generator=generator).tolist()
        for first in range(0, len(starts) // batch_size * batch_size, batch_size):
            if len(losses) == settings.max_steps:
                return losses
            windows = torch.stack(
                [token_ids[starts[i] : starts[i] + size + 1] for i in order[first : first + batch_size]]
            )
            logits = model(windows[:, :-1], use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(len(losses), settings.max_steps, settings)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    return losses


def test_losses_equal_those_of_a_plain_pytorch_loop(tiny_settings: Callable[..., TrainingSettings]) -> None:
    settings = tiny_settings(drop_last=True, max_steps=12, gradient_accumulation_steps=2)
    expected = plain_loop(settings)
    train(settings)
    assert step_losses(settings.output_dir) == pytest.approx(expected, rel=1e-5)
    assert expected[-1] < expected[0] - 0.1  # it learns; equal losses of an untouched model would prove nothing


def test_losses_with_frozen_parts_equal_those_of_a_plain_loop_that_leaves_them_out(
    tiny_settings: Callable[..., TrainingSettings],
) -> None:
    """The norm that is clipped is that of the trained parts; the control trains all."""
    settings = tiny_settings(
        drop_last=True, max_steps=12, max_grad_norm=0.1, freeze=["model.embed_tokens", "model.layers.0"]
    )
    expected = plain_loop(settings, ("model.embed_tokens.", "model.layers.0."))
    train(settings)
    assert step_losses(settings.output_dir) == pytest.approx(expected, rel=1e-5)
    assert expected[-1] < expected[0] - 0.005
    assert plain_loop(settings)[-1] != pytest.approx(expected[-1], rel=1e-4)


def test_history_removed_during_a_run_does_not_cost_the_result(
    tiny_settings: Callable[..., TrainingSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_sample = loop.write_sample

    def remove_and_sample(run: loop.Run) -> None:
        run.history.path.unlink()
        write_sample(run)

    monkeypatch.setattr(loop, "write_sample", remove_and_sample)
    settings = tiny_settings()
    train(settings)
    card = (Path(settings.output_dir) / "model" / "README.md").read_text(encoding="utf-8")
    assert card.count("| 3 | ") == card.count("| 6 | ") == 1  # its table of losses
    assert step_losses(settings.output_dir)[-1] > 0


def test_run_leaves_everything_it_promises(
    tiny_settings: Callable[..., TrainingSettings], capsys: pytest.CaptureFixture
) -> None:
    settings = tiny_settings(max_steps=10)
    result = train(settings)
    folder = Path(settings.output_dir)
    assert sorted(path.name for path in folder.iterdir()) == [
        ".lock",
        "checkpoints",
        "history.jsonl",
        "loss.pdf",
        "loss.png",
        "model",
        "settings.json",
    ]
    begin = rows(folder, "run")[0]
    assert begin["processes"] == 1
    assert begin["precision"] == "fp32"
    assert begin["versions"]["torch"] == version("torch")  # PyTorch's own may name the build as well
    assert begin["steps"] == len(step_losses(folder)) == 10
    assert begin["settings"]["seed"] == 42
    # Evaluated before the first step, every 3 steps and at the end; each token of an epoch counted once.
    assert [row["global_step"] for row in rows(folder, "evaluation")] == [0, 3, 6, 9, 10]
    assert rows(folder, "step")[8]["tokens_seen"] == begin["train_tokens"] - 1
    assert [row["global_step"] for row in rows(folder, "sample")] == [9, 10]
    end = rows(folder, "end")[0]
    assert end["perplexity"] == perplexity(result.validation_loss)
    output = capsys.readouterr().out
    for promised in (
        "device cpu",
        "processes 1",
        "precision fp32",
        "torch ",
        "parameters",
        "training loss",
        "sample:",
    ):
        assert promised in output


def test_validation_is_over_the_whole_text_and_training_goes_on_as_if_not_looked_at(
    tiny_settings: Callable[..., TrainingSettings], tmp_path: Path
) -> None:
    """Evaluating and sampling more often changes no step, dropout included."""
    often = tiny_settings(dropout=0.2, output_dir=str(tmp_path / "often"), eval_steps=1)
    never = tiny_settings(dropout=0.2, output_dir=str(tmp_path / "never"), eval_steps=99, sample_tokens=0)
    results = [train(often), train(never)]
    assert step_losses(often.output_dir) == step_losses(never.output_dir)
    assert results[0].validation_loss == results[1].validation_loss


@pytest.mark.parametrize(
    "how",
    [
        {"gradient_checkpointing": True},
        # Compiling takes a minute and a C++ compiler.
        pytest.param({"torch_compile": True}, marks=pytest.mark.slow),
    ],
)
def test_how_a_step_is_computed_does_not_change_the_losses(
    tiny_settings: Callable[..., TrainingSettings], tmp_path: Path, how: dict
) -> None:
    plain = tiny_settings(output_dir=str(tmp_path / "plain"))
    other = tiny_settings(output_dir=str(tmp_path / "other"), **how)
    train(plain)
    train(other)
    assert step_losses(other.output_dir) == pytest.approx(step_losses(plain.output_dir), rel=1e-6)


def test_bf16_where_the_device_has_it(tiny_settings: Callable[..., TrainingSettings]) -> None:
    settings = tiny_settings(mixed_precision="bf16")
    train(settings)
    assert rows(settings.output_dir, "run")[0]["precision"] == "bf16"
    assert step_losses(settings.output_dir)[0] == pytest.approx(10.83, abs=0.1)


def test_memory_that_is_not_there_is_one_line_and_the_checkpoint_stays(
    tiny_settings: Callable[..., TrainingSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    huge = tiny_settings(hidden_size=2_000_000, num_attention_heads=2)
    with pytest.raises(OSError, match="out of memory: .* GB more asked for, .* GB are free: turn down --per_device"):
        train(huge)
    assert not Path(huge.output_dir).exists()
    settings = tiny_settings(save_steps=2)
    optimizer_step = loop.optimizer_step

    def fail_at_step_4(run: loop.Run, *arguments: object) -> tuple[float, float, bool]:
        if run.progress.global_step == 3:
            torch.empty(2**56, dtype=torch.uint8)
        return optimizer_step(run, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "optimizer_step", fail_at_step_4)
        with pytest.raises(OSError, match="the last checkpoint is intact: --resume continues from it"):
            train(settings)
    train(TrainingSettings(**{**settings.to_dict(), "resume": True}))
    assert len(step_losses(settings.output_dir)) == 6


def test_step_is_short_enough_to_be_read() -> None:
    """The step that a reader looks for stands in one function of at most 30 lines without its docstring."""
    source = inspect.getsource(loop.optimizer_step)
    code = source.split('"""')[2]
    assert len([line for line in code.splitlines() if line.strip()]) <= 30


def test_step_reads_the_device_once(
    tiny_settings: Callable[..., TrainingSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss and gradient norm in one list; the count of labels stays a tensor, and is copied on the way."""
    reads, counts = [], []
    optimizer_step, forward = loop.optimizer_step, GPTScratchForCausalLM.forward

    class Reads(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is torch.ops.aten._local_scalar_dense.default:
                reads.append("number")
            return function(*args, **(kwargs or {}))

    def counted_list(tensor: torch.Tensor, tolist: Callable = torch.Tensor.tolist) -> object:
        reads.append("list")
        return tolist(tensor)

    def step(run: Run, batch: dict[str, torch.Tensor], num_tokens: torch.Tensor) -> tuple[float, float, bool]:
        assert num_tokens.shape == ()
        with Reads(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.Tensor, "tolist", counted_list)
            figures = optimizer_step(run, batch, num_tokens)
        reads.append("end")
        return figures

    def noted(self: GPTScratchForCausalLM, *args: object, **kwargs: object) -> object:
        counts.append(kwargs.get("num_items_in_batch"))
        return forward(self, *args, **kwargs)

    # They read on a CPU alone: positions there cost nothing, and other AdamW has its step on the device.
    monkeypatch.setattr(GPTScratchModel, "refuse_beyond_context", lambda *_: None)
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *_: None)
    monkeypatch.setattr(GPTScratchForCausalLM, "forward", noted)
    monkeypatch.setattr(loop, "optimizer_step", step)
    train(tiny_settings(gradient_accumulation_steps=2, max_steps=3))
    assert reads == ["list", "end"] * 3
    assert {type(count) for count in counts if count is not None} == {torch.Tensor}


def test_long_validation_text_is_sampled_with_its_error_shown(
    tiny_settings: Callable[..., TrainingSettings], capsys: pytest.CaptureFixture
) -> None:
    """Eight windows of many; the mean of all lies within four standard errors, and the training is the same."""
    text = [str(bundled_text_path())]
    sampled = tiny_settings(validation_file=text)
    result = train(sampled)
    shown = capsys.readouterr().out
    assert re.search(r"evaluations score 8 of the \d+ windows of the validation text, every 3 steps, and 8 at", shown)
    evaluations = rows(sampled.output_dir, "evaluation")
    assert [row["global_step"] for row in evaluations] == [0, 3, 6]
    assert (
        f"validation loss {result.validation_loss:.3f} ± {evaluations[-1]['standard_error']:.3f}, bits per byte "
        in shown
    )
    error = evaluations[-1]["standard_error"]
    assert result.standard_error == rows(sampled.output_dir, "end")[0]["standard_error"] == error
    card = (result.repository / "README.md").read_text(encoding="utf-8")
    assert f"{result.validation_loss:.3f} ± {error:.3f} nats per token" in card
    assert f"| {result.validation_loss:.3f} ± {error:.3f} |" in card
    whole = tiny_settings(validation_file=text, eval_iter=0, output_dir=sampled.output_dir + "-whole")
    assert train(whole).standard_error is None
    assert step_losses(whole.output_dir) == step_losses(sampled.output_dir)
    for part, all_of_it in zip(evaluations, rows(whole.output_dir, "evaluation"), strict=True):
        assert "standard_error" not in all_of_it
        assert abs(part["validation_loss"] - all_of_it["validation_loss"]) < 4 * part["standard_error"]
        assert part["validation_loss"] != all_of_it["validation_loss"]


@pytest.mark.parametrize("number", [0, signal.SIGTERM], ids=["no signal", "SIGTERM"])
def test_process_that_is_lost_after_a_signal_is_no_error_of_the_others(
    tiny_settings: Callable[..., TrainingSettings], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The launcher stops all of a run when one process dies; what gloo says to those that are left is no news then."""

    def lost(run: Run, *rest: object) -> None:
        run.signals.received = number
        raise RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer")

    monkeypatch.setattr(loop, "optimizer_step", lost)
    with pytest.raises(Interrupted if number else RuntimeError, match="^$" if number else "gloo") as raised:
        train(tiny_settings())
    assert getattr(raised.value, "exit_code", None) == (128 + number if number else None)
