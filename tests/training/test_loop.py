"""Proves the loop: losses against a plain PyTorch loop, bit for bit on resume; other splits: test_distributed.py."""

import inspect
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from hf_gpt_scratch import GPTScratchForCausalLM
from hf_gpt_scratch.data.tokenizer import load_encoding
from hf_gpt_scratch.data.windows import encode_text, epoch_order_seed, read_text, split_text
from hf_gpt_scratch.evaluation import perplexity
from hf_gpt_scratch.training import loop
from hf_gpt_scratch.training import run as run_module
from hf_gpt_scratch.training.loop import train
from hf_gpt_scratch.training.optim import learning_rate_at
from hf_gpt_scratch.training.settings import TrainingSettings
from tests.training.histories import rows, step_losses, without_speed


def plain_loop(settings: TrainingSettings) -> list[float]:
    """The same training without Accelerate, loaders or micro-batches: whole batches, mean loss, AdamW."""
    train_text, _ = split_text(read_text(Path(settings.train_file[0])), settings.train_split)
    token_ids = encode_text(train_text, load_encoding())
    size = settings.max_position_embeddings
    starts = list(range(0, len(token_ids) - size, size))
    torch.manual_seed(settings.seed)
    model = GPTScratchForCausalLM(settings.model_config()).train()
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


RESUME_SETTINGS = {
    "dropout": 0.1,
    "gradient_accumulation_steps": 2,
    "per_device_train_batch_size": 2,
    "max_steps": 15,
    "save_steps": 4,
    "save_total_limit": 9,
}


def resumed_run(settings: TrainingSettings, step: int, folder: Path) -> TrainingSettings:
    """Copy a finished run as if it had been killed after the save of `step`, and resume it."""
    shutil.copytree(settings.output_dir, folder)
    for checkpoint in (folder / "checkpoints").iterdir():
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)
    resumed = TrainingSettings(**{**settings.to_dict(), "output_dir": str(folder), "resume": True})
    train(resumed)
    return resumed


@pytest.mark.parametrize("data_order", ["seeded", "torch_dataloader"])
def test_resume_is_bit_identical(
    tiny_settings: Callable[..., TrainingSettings], tmp_path: Path, data_order: str
) -> None:
    """In the middle of an epoch, with dropout, accumulation, warm-up, evaluations and samples in between."""
    settings = tiny_settings(data_order=data_order, **RESUME_SETTINGS)
    train(settings)
    steps_per_epoch = rows(settings.output_dir, "run")[0]["steps_per_epoch"]
    assert steps_per_epoch == 9
    for step in (4, 8, 12):
        folder = tmp_path / f"resumed-at-{step}"
        resumed_run(settings, step, folder)
        for event in ("step", "evaluation", "sample"):
            expected = [without_speed(row) for row in rows(settings.output_dir, event)]
            assert [without_speed(row) for row in rows(folder, event)] == expected, (step, event)
        for name in ("model.safetensors", "optimizer.safetensors", "rng_0.safetensors"):
            file = Path("checkpoints", "step-00000015", name)
            assert (folder / file).read_bytes() == (settings.output_dir / file).read_bytes(), (step, name)


def test_resume_without_the_random_state_would_differ(
    tiny_settings: Callable[..., TrainingSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the test above."""
    settings = tiny_settings(**RESUME_SETTINGS)
    train(settings)
    monkeypatch.setattr(run_module, "restore_draws", lambda *_: None)
    resumed = resumed_run(settings, 4, tmp_path / "resumed")
    assert step_losses(resumed.output_dir)[:4] == step_losses(settings.output_dir)[:4]
    assert step_losses(resumed.output_dir) != step_losses(settings.output_dir)


def test_finished_run_can_be_resumed_without_harm(
    tiny_settings: Callable[..., TrainingSettings], tmp_path: Path
) -> None:
    settings = tiny_settings()
    first = train(settings)
    again = train(TrainingSettings(**{**settings.to_dict(), "resume": True}))
    assert again.validation_loss == first.validation_loss
    assert len(step_losses(settings.output_dir)) == 6


@pytest.mark.parametrize(
    "changes", [{}, {"max_steps": 7}, {"eval_iter": 1}, {"load_best_model_at_end": True}], ids=str
)
def test_evaluations_are_the_same_after_a_resume_at_the_end(
    tiny_settings: Callable[..., TrainingSettings], changes: dict, capsys: pytest.CaptureFixture
) -> None:
    """Where the last step has an evaluation, where it comes after the checkpoint, and where it is of a part."""
    settings = tiny_settings(data_order="torch_dataloader", **changes)
    first = train(settings)
    expected = rows(settings.output_dir, "evaluation")
    capsys.readouterr()
    for _ in range(2):
        again = train(TrainingSettings(**{**settings.to_dict(), "resume": True}))
        assert rows(settings.output_dir, "evaluation") == expected
        assert (again.train_loss, again.validation_loss) == (first.train_loss, first.validation_loss)
        assert f"validation loss {first.validation_loss:.3f}" in capsys.readouterr().out


def test_resume_refuses_what_would_be_another_run(tiny_settings: Callable[..., TrainingSettings]) -> None:
    settings = tiny_settings()
    train(settings)
    changed = TrainingSettings(**{**settings.to_dict(), "resume": True, "learning_rate": 5e-4, "dropout": 0.2})
    with pytest.raises(ValueError, match="cannot resume") as caught:
        train(changed)
    assert "--learning_rate was 0.0015, is 0.0005" in str(caught.value)
    assert "--dropout was 0.0, is 0.2" in str(caught.value)
    assert len(step_losses(settings.output_dir)) == 6


def test_changed_text_is_another_run(tiny_settings: Callable[..., TrainingSettings], tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(Path(tiny_settings().train_file[0]).read_text())
    settings = tiny_settings(train_file=[str(text)], max_steps=3, warmup_steps=0)
    train(settings)
    text.write_text(text.read_text().replace("lamp", "ship"))
    with pytest.raises(ValueError, match="the training or validation text has changed"):
        train(TrainingSettings(**{**settings.to_dict(), "resume": True}))


def test_same_text_at_another_path_is_the_same_run(
    tiny_settings: Callable[..., TrainingSettings], short_text: Path, tmp_path: Path
) -> None:
    text, held_out = tmp_path / "text.txt", tmp_path / "held_out.txt"
    for path in (text, held_out):
        shutil.copy(short_text, path)
    texts = {"train_file": [str(text)], "validation_file": [str(held_out)]}
    settings = tiny_settings(**texts, save_steps=3, save_total_limit=9)
    train(settings)
    expected = step_losses(settings.output_dir)
    shutil.rmtree(Path(settings.output_dir) / "checkpoints" / "step-00000006")
    (tmp_path / "elsewhere").mkdir()
    moved = [str(path.rename(tmp_path / "elsewhere" / f"{path.stem}-2.txt")) for path in (text, held_out)]
    texts = {"train_file": moved[:1], "validation_file": moved[1:]}
    train(TrainingSettings(**{**settings.to_dict(), **texts, "resume": True}))
    assert step_losses(settings.output_dir) == expected
    # The control: the other way round it is another text.
    Path(moved[0]).write_text(Path(moved[0]).read_text().replace("lamp", "ship"))
    with pytest.raises(ValueError, match="the training or validation text has changed"):
        train(TrainingSettings(**{**settings.to_dict(), **texts, "resume": True}))


def test_another_split_goes_on_with_the_same_batches_and_says_so(
    tiny_settings: Callable[..., TrainingSettings], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    settings = tiny_settings(max_steps=12, save_steps=5, save_total_limit=9)
    train(settings)
    changed = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    resumed = resumed_run(TrainingSettings(**{**settings.to_dict(), **changed}), 5, tmp_path / "resumed")
    assert "a step was 1 processes x 4 windows x 1 micro-batches, is 1 processes x 2 wind" in capsys.readouterr().out
    assert step_losses(resumed.output_dir) == pytest.approx(step_losses(settings.output_dir), rel=1e-6)
    with pytest.raises(ValueError, match="a step had 1 processes x 4 windows x 1 micro-batches, has"):
        train(TrainingSettings(**{**settings.to_dict(), "per_device_train_batch_size": 2, "resume": True}))


def test_run_stopped_before_its_first_checkpoint_starts_again(
    tiny_settings: Callable[..., TrainingSettings], capsys: pytest.CaptureFixture
) -> None:
    settings = tiny_settings(save_steps=4)
    train(settings)
    expected, history = step_losses(settings.output_dir), Path(settings.output_dir, "history.jsonl")
    shutil.rmtree(Path(settings.output_dir, "checkpoints"))
    again = TrainingSettings(**{**settings.to_dict(), "resume": True})
    with pytest.raises(FileNotFoundError, match="holds no valid checkpoint"):
        train(again)  # six steps are more than one interval: checkpoints were there, and somebody deleted them
    lines = history.read_text().splitlines(keepends=True)
    history.write_text("".join(lines[:4]) + lines[4][:9])
    train(again)
    assert "holds no checkpoint yet: starting from the first step" in capsys.readouterr().out
    assert step_losses(settings.output_dir) == expected


def test_best_checkpoint_is_kept_and_becomes_the_result(
    tiny_settings: Callable[..., TrainingSettings], capsys: pytest.CaptureFixture
) -> None:
    """A rate far too high makes the loss rise, so that the best weights are not the last."""
    settings = tiny_settings(
        max_steps=12, eval_steps=2, learning_rate=0.5, lr_scheduler_type="constant", load_best_model_at_end=True
    )
    result = train(settings)
    losses = {row["global_step"]: row["validation_loss"] for row in rows(settings.output_dir, "evaluation")[1:7]}
    best = min(losses, key=losses.get)
    assert best < 12
    assert result.validation_loss == losses[best]
    names = sorted(path.name for path in Path(settings.output_dir, "checkpoints").iterdir())
    assert f"step-{best:08d}" in names
    assert names[-1] == "step-00000012"
    assert len(names) <= 3
    # Where it is damaged, the last weights are taken and it is said.
    Path(settings.output_dir, "checkpoints", f"step-{best:08d}", "state.json").unlink()
    result = train(TrainingSettings(**{**settings.to_dict(), "resume": True}))
    assert result.validation_loss != losses[best]
    assert "the best checkpoint, cannot be used (state.json is missing)" in capsys.readouterr().out


def test_damaged_checkpoint_is_named_and_the_one_before_is_taken(
    tiny_settings: Callable[..., TrainingSettings], capsys: pytest.CaptureFixture
) -> None:
    settings = tiny_settings(save_steps=3)
    train(settings)
    expected = step_losses(settings.output_dir)
    newest = Path(settings.output_dir, "checkpoints", "step-00000006", "model.safetensors")
    newest.write_bytes(newest.read_bytes()[:-1])
    train(TrainingSettings(**{**settings.to_dict(), "resume": True}))
    output = capsys.readouterr().out
    assert "step-00000006 is left out: model.safetensors is damaged" in output
    assert "step-00000003" in output
    assert step_losses(settings.output_dir) == expected


@pytest.mark.parametrize("fault", ["garbled", "deleted", "removed"])
def test_result_is_written_whatever_became_of_the_history(
    tiny_settings: Callable[..., TrainingSettings], tmp_path: Path, capsys: pytest.CaptureFixture, fault: str
) -> None:
    """Killed after step 3, and the row of the first evaluation damaged then; or checkpoints copied without it."""
    settings = tiny_settings(save_steps=3, save_total_limit=9)
    whole = train(settings)
    expected = step_losses(settings.output_dir)
    folder = tmp_path / "damaged"
    shutil.copytree(settings.output_dir, folder)
    shutil.rmtree(folder / "checkpoints" / "step-00000006")
    shutil.rmtree(folder / "model")
    lines = (folder / "history.jsonl").read_text().splitlines(keepends=True)
    assert '"evaluation"' in lines[1]
    if fault == "removed":
        (folder / "history.jsonl").unlink()
        (folder / "settings.json").unlink()
    else:
        lines[1] = lines[1][:30] + "\n" if fault == "garbled" else ""
        (folder / "history.jsonl").write_text("".join(lines))
    result = train(TrainingSettings(**{**settings.to_dict(), "output_dir": str(folder), "resume": True}))
    assert result.validation_loss == whole.validation_loss
    assert (folder / "model" / "model.safetensors").read_bytes() == (
        Path(settings.output_dir) / "model" / "model.safetensors"
    ).read_bytes()
    assert (folder / "loss.png").is_file()
    assert (folder / "settings.json").is_file()
    assert step_losses(folder) == (expected[3:] if fault == "removed" else expected)
    word = "is missing: it begins anew at step 3" if fault == "removed" else "kept as history.damaged.jsonl"
    assert word in capsys.readouterr().err
    assert [row["global_step"] for row in rows(folder, "evaluation")] == ([6] if fault == "removed" else [3, 6])


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


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"train_file": ["missing.txt"]}, "missing.txt does not exist"),
        ({"max_position_embeddings": 900}, "has 5[0-9][0-9] tokens and needs 901 for one window"),
        ({"train_split": 0.9999}, "the validation text is too short: it has 1 tokens and needs 2"),
        ({"resume": True}, "holds no valid checkpoint"),
        ({"drop_last": True, "per_device_train_batch_size": 99}, "windows, but with --drop_last one step needs 99"),
        ({"mixed_precision": "fp16"}, "fp16"),
        ({"attn_implementation": "flash_attention_2"}, "(?i)flash"),
        ({"report_to": ["nothing-like-it"]}, "nothing-like-it"),
        ({"sample_prompt": "word " * 40}, "sample_prompt"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    tiny_settings: Callable[..., TrainingSettings], changes: dict, reason: str
) -> None:
    settings = tiny_settings(**changes)
    with pytest.raises((ValueError, OSError, ImportError), match=reason):
        train(settings)
    assert not Path(settings.output_dir).exists()


@pytest.mark.parametrize("was_there", ["nothing", "folder", "folder with lock"])
@pytest.mark.parametrize("place", ["evaluate", "optimizer_step", "start_trackers", "describe"])
def test_run_that_fails_before_its_first_step_leaves_nothing_behind(
    tiny_settings: Callable[..., TrainingSettings],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    was_there: str,
) -> None:
    settings = tiny_settings(output_dir=str(tmp_path / "new" / "run"), report_to=["tensorboard"])
    folder = Path(settings.output_dir)
    if was_there != "nothing":
        folder.mkdir(parents=True)
    if was_there == "folder with lock":
        (folder / ".lock").touch()
    before = sorted(tmp_path.rglob("*"))

    def fail(*_: object) -> None:
        assert (folder / "settings.json").is_file()
        raise RuntimeError("not to be foreseen")

    with monkeypatch.context() as patch:
        patch.setattr(run_module if place == "describe" else loop, place, fail)
        with pytest.raises(RuntimeError, match="not to be foreseen"):
            train(settings)
    assert sorted(tmp_path.rglob("*")) == before
    train(settings)  # the corrected command


def test_run_that_fails_before_its_first_step_deletes_nothing_of_others(
    tiny_settings: Callable[..., TrainingSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny_settings()
    folder = Path(settings.output_dir)

    def fail(*_: object) -> None:
        (folder / "notes.txt").write_text("of somebody else", encoding="utf-8")
        (folder / "logs").mkdir()
        raise RuntimeError("not to be foreseen")

    monkeypatch.setattr(loop, "evaluate", fail)
    with pytest.raises(RuntimeError, match="not to be foreseen"):
        train(settings)
    assert sorted(path.name for path in folder.iterdir()) == ["logs", "notes.txt"]


def test_refused_start_takes_its_lock_back(tiny_settings: Callable[..., TrainingSettings], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(FileNotFoundError):
        train(tiny_settings(train_file=["missing.txt"]))
    assert list((tmp_path / "run").iterdir()) == []


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
        with pytest.raises(OSError, match="the last checkpoint is as it was: --resume goes on from it"):
            train(settings)
    train(TrainingSettings(**{**settings.to_dict(), "resume": True}))
    assert len(step_losses(settings.output_dir)) == 6


def test_used_folder_is_never_written_into(tiny_settings: Callable[..., TrainingSettings], tmp_path: Path) -> None:
    settings = tiny_settings(max_steps=3, warmup_steps=0)
    train(settings)
    before = sorted(Path(settings.output_dir).rglob("*"))
    with pytest.raises(FileExistsError, match="holds another run: continue it with --resume"):
        train(settings)
    assert sorted(Path(settings.output_dir).rglob("*")) == before
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"meow")
    with pytest.raises(FileExistsError, match="is not empty"):
        train(tiny_settings(output_dir=str(tmp_path / "photos")))
    with pytest.raises(NotADirectoryError, match="is a file"):
        train(tiny_settings(output_dir=str(tmp_path / "photos" / "cat.jpg")))
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.jpg"]


def test_step_is_short_enough_to_be_read() -> None:
    """The step that a reader looks for stands in one function of at most 30 lines without its docstring."""
    source = inspect.getsource(loop.optimizer_step)
    code = source.split('"""')[2]
    assert len([line for line in code.splitlines() if line.strip()]) <= 30
