"""Proves which changes make a resumed run another one, which only other digits, and how draws go on."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from hf_gpt_scratch.training.checkpoints import resume as resume_module
from hf_gpt_scratch.training.checkpoints.checkpoint import SavedState, random_state
from hf_gpt_scratch.training.checkpoints.manifest import MANIFEST, digest, read_manifest, write_manifest
from hf_gpt_scratch.training.checkpoints.resume import incompatibilities, nondeterminism_warnings, restore_draws
from hf_gpt_scratch.training.loop import train
from hf_gpt_scratch.training.progress import Progress
from hf_gpt_scratch.training.settings import TrainingSettings
from tests.training.histories import rows, step_losses, without_speed


def state(processes: int = 2, windows: int = 4, accumulated: int = 1, **changes: object) -> SavedState:
    settings = {
        "per_device_train_batch_size": windows,
        "gradient_accumulation_steps": accumulated,
        "dropout": 0.0,
        "data_order": "seeded",
        "seed": 7,
        **changes,
    }
    environment = {"torch": "2.13.0", "device": "cpu (1 threads)"}
    return SavedState(Progress(global_step=5), settings, processes, environment=environment, text_sha256="a")


def test_nothing_is_said_of_the_same_run() -> None:
    assert list(incompatibilities(state(), state(), 99)) == []
    assert list(nondeterminism_warnings(state(), state())) == []


@pytest.mark.parametrize("split", [(1, 8, 1), (1, 4, 2), (8, 1, 1), (4, 2, 1), (2, 2, 2)])
def test_same_batch_split_otherwise_is_the_same_run_but_for_rounding(split: tuple[int, int, int]) -> None:
    assert list(incompatibilities(state(), state(*split), 99)) == []
    (line,) = nondeterminism_warnings(state(), state(*split))
    assert line.startswith("a step was 2 processes x 4 windows x 1 micro-batches, is ")
    assert "dropout" not in line
    (line,) = nondeterminism_warnings(state(dropout=0.1), state(*split, dropout=0.1))
    assert line.endswith("dropout draws other numbers from here on")


def test_another_batch_is_another_run() -> None:
    (line,) = incompatibilities(state(2), state(1), 99)
    assert "a step had 2 processes x 4 windows x 1 micro-batches, has 1 processes x 4 windows" in line
    assert "--gradient_accumulation_steps" in line


def test_step_of_all_windows_is_the_same_whatever_was_asked_for() -> None:
    """An older version did not cut the batch, and two processes cut it to another product."""
    assert list(incompatibilities(state(2, 5000), state(1, 47), 47)) == []
    assert list(incompatibilities(state(1, 47), state(2, 24), 47)) == []
    assert len(list(incompatibilities(state(1, 46), state(2, 24), 47))) == 1


def test_order_drawn_after_dropout_does_not_survive_another_split() -> None:
    drawn = {"data_order": "torch_dataloader"}
    assert list(incompatibilities(state(**drawn), state(1, 8, **drawn), 99)) == []
    (line,) = incompatibilities(state(**drawn, dropout=0.1), state(1, 8, **drawn, dropout=0.1), 99)
    assert "--data_order torch_dataloader" in line


def test_other_text_and_other_versions_are_named() -> None:
    other = state()
    other.text_sha256, other.environment = "b", {"torch": "2.14.0", "device": "cpu (1 threads)"}
    assert list(incompatibilities(state(), other, 99)) == [
        "the training or validation text has changed (other tokens, whatever its path)"
    ]
    assert list(nondeterminism_warnings(state(), other)) == [
        "torch was 2.13.0, is 2.14.0: losses may differ in their last digits"
    ]


def test_another_kind_of_processor_is_named_where_the_old_one_is_known() -> None:
    before, now = state(), state()
    before.environment, now.environment = {"processor": "AVX512 x"}, {"processor": "AVX2 x"}
    (line,) = nondeterminism_warnings(before, now)
    assert line == "processor was AVX512 x, is AVX2 x: losses may differ in their last digits"
    before.environment = {}  # of an older version
    assert list(nondeterminism_warnings(before, now)) == []


def test_another_model_is_another_run_where_its_hash_is_known() -> None:
    first, second = state(), state()
    first.model_sha256, second.model_sha256 = "a", "b"
    (line,) = incompatibilities(first, second, 99)
    assert line == "the model is another one: --model_name_or_path has another config"
    first.model_sha256 = ""
    assert list(incompatibilities(first, second, 99)) == []


class Process:
    """As much of an Accelerator as says which process this is."""

    def __init__(self, index: int, count: int) -> None:
        self.process_index, self.num_processes, self.is_main_process = index, count, index == 0
        self.device = torch.device("cpu")


def test_draws_go_on_or_begin_anew_differently_on_each_process(tmp_path: Path) -> None:
    torch.manual_seed(1)
    save_file(random_state(torch.device("cpu")), tmp_path / "rng_0.safetensors")
    expected = torch.rand(3)
    restore_draws(tmp_path, state(1), Accelerator())
    assert torch.equal(torch.rand(3), expected)
    draws = []
    for process in (0, 1, 2, 1):
        restore_draws(tmp_path, state(1), Process(process, 3))
        draws.append(torch.rand(3).tolist())
    assert draws[0] == expected.tolist()
    assert draws[1] == draws[3]  # a pure function of seed, step and process
    assert len({tuple(draw) for draw in draws}) == 3


def test_missing_random_state_of_the_same_number_of_processes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="rng_1.safetensors"):
        restore_draws(tmp_path, state(2), Process(1, 2))


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


def test_checkpoint_of_before_a_hyperparameter_is_of_the_same_run(
    tiny_settings: Callable[..., TrainingSettings], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """As version 0.1.0 wrote it: neither its settings nor its hash know of norm_type."""
    settings = tiny_settings(**RESUME_SETTINGS)
    train(settings)
    checkpoint = Path(settings.output_dir) / "checkpoints" / "step-00000008"
    facts = read_manifest(checkpoint)
    del facts["files"], facts["settings"]["norm_type"], facts["settings"]["cpu_speedups"]
    facts["settings"]["fast_dropout"] = True
    config = json.loads((Path(settings.output_dir) / "model" / "config.json").read_text())
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings", "hidden_act")
    names += ("qkv_bias", "tie_word_embeddings", "vocab_size", "intermediate_size", "layer_norm_eps")
    facts["model_sha256"] = digest({name: config[name] for name in names})
    (checkpoint / MANIFEST).unlink()
    write_manifest(checkpoint, facts)
    resumed_run(settings, 8, tmp_path / "resumed")
    said = capsys.readouterr().out
    assert "resumed from" in said
    assert "saved by version 0.1.0, whose dropout drew other numbers" in said
    with pytest.raises(ValueError, match="--norm_type was layernorm, is rmsnorm; the model is another one"):
        resumed_run(replace(settings, norm_type="rmsnorm"), 8, tmp_path / "other")


@pytest.mark.parametrize("data_order", ["seeded", pytest.param("torch_dataloader", marks=pytest.mark.nightly)])
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
    monkeypatch.setattr(resume_module, "restore_draws", lambda *_: None)
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
    "changes",
    [
        {},
        pytest.param({"max_steps": 7}, marks=pytest.mark.nightly),
        pytest.param({"eval_iter": 1}, marks=pytest.mark.nightly),
        {"load_best_model_at_end": True},
    ],
    ids=str,
)
def test_evaluations_are_the_same_after_a_resume_at_the_end(
    tiny_settings: Callable[..., TrainingSettings], changes: dict, capsys: pytest.CaptureFixture
) -> None:
    """The last step has an evaluation, or it comes after the checkpoint, or it is of a part of the text."""
    settings = tiny_settings(data_order="torch_dataloader", **changes)
    first = train(settings)
    expected = rows(settings.output_dir, "evaluation")
    capsys.readouterr()
    for _ in range(2):
        again = train(TrainingSettings(**{**settings.to_dict(), "resume": True}))
        assert rows(settings.output_dir, "evaluation") == expected
        assert (again.train_loss, again.validation_loss) == (first.train_loss, first.validation_loss)
        assert f"validation loss {first.validation_loss:.3f}" in capsys.readouterr().out


@pytest.mark.parametrize("data_order", ["seeded", pytest.param("torch_dataloader", marks=pytest.mark.nightly)])
def test_finished_run_becomes_longer_as_if_it_had_been_asked_for_at_once(
    tiny_settings: Callable[..., TrainingSettings], data_order: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """With a constant rate; from the end of an epoch and from its middle, with dropout and accumulation."""
    changes = {**RESUME_SETTINGS, "lr_scheduler_type": "constant", "data_order": data_order, "eval_steps": 3}
    whole = tiny_settings(**changes, output_dir=str(tmp_path / "whole"))
    train(whole)
    steps_per_epoch = rows(whole.output_dir, "run")[0]["steps_per_epoch"]
    longer = tiny_settings(**{**changes, "max_steps": steps_per_epoch}, output_dir=str(tmp_path / "longer"))
    train(longer)
    for max_steps in (12, 15):
        capsys.readouterr()
        train(replace(longer, max_steps=max_steps, resume=True))
        before = steps_per_epoch if max_steps == 12 else 12
        said = f"the run becomes longer: {max_steps} steps in place of {before}, at the learning rate 0.0015"
        assert said in capsys.readouterr().out
    assert step_losses(longer.output_dir) == step_losses(whole.output_dir)
    weights = [load_file(Path(s.output_dir) / "model" / "model.safetensors") for s in (longer, whole)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])
    assert json.loads((Path(longer.output_dir) / "settings.json").read_text())["max_steps"] == 15


def test_one_more_epoch_of_a_finished_run_is_at_the_lowest_rate(
    tiny_settings: Callable[..., TrainingSettings], capsys: pytest.CaptureFixture
) -> None:
    """The chapter's exercise: a cosine is not stretched, and the run says so."""
    settings = tiny_settings(max_steps=-1, num_train_epochs=1)
    train(settings)
    steps = len(step_losses(settings.output_dir))
    train(replace(settings, num_train_epochs=2, resume=True))
    lowest = settings.min_learning_rate
    said = f"the run becomes longer: {2 * steps} steps in place of {steps}, at the learning rate {lowest:g} from step"
    assert f"{said} {steps} on" in capsys.readouterr().out
    rates = [row["learning_rate"] for row in rows(settings.output_dir, "step")]
    assert len(rates) == 2 * steps
    assert set(rates[steps:]) == {lowest}
    assert rates[steps - 1] > lowest


@pytest.mark.parametrize("given", [None, 2])
def test_lengthened_run_keeps_the_warmup_that_was_fitted_to_its_first_length(
    tiny_settings: Callable[..., TrainingSettings], given: int | None
) -> None:
    """Everything that the length decides is left to the defaults: half of 9 steps is 4, of 27 it would be 13."""
    settings = tiny_settings(
        max_steps=-1, num_train_epochs=1, warmup_steps=given, eval_steps=None, save_steps=None, sample_tokens=0
    )
    train(settings)
    train(replace(settings, num_train_epochs=3, warmup_steps=None, resume=True))
    begun, longer = rows(settings.output_dir, "run")
    warmup_steps = given or 4
    assert [row["settings"]["warmup_steps"] for row in (begun, longer)] == [warmup_steps] * 2
    steps = rows(settings.output_dir, "step")
    assert (len(steps), begun["steps"], longer["steps"]) == (27, 9, 27)
    assert max(steps, key=lambda row: row["learning_rate"])["global_step"] == warmup_steps + 1
    with pytest.raises(ValueError, match=f"--warmup_steps was {warmup_steps}, is 3"):
        train(replace(settings, num_train_epochs=4, warmup_steps=3, resume=True))
    with pytest.raises(ValueError, match="the run had 27 steps, has 3: it can only become longer"):
        train(replace(settings, max_steps=3, warmup_steps=None, resume=True))


def test_what_was_written_into_the_result_stays_when_a_run_goes_on(
    tiny_settings: Callable[..., TrainingSettings], capsys: pytest.CaptureFixture
) -> None:
    """A card that was edited, a license; a card as it was is made anew."""
    settings = tiny_settings()
    model = train(settings).repository
    card = (model / "README.md").read_text()
    (model / "LICENSE").write_text("MIT")
    for max_steps in (7, 8):
        train(replace(settings, max_steps=max_steps, resume=True))
        assert (model / "LICENSE").read_text() == "MIT"
        assert f"{max_steps} of {max_steps} steps" in (model / "README.md").read_text() != card
    for max_steps in (9, 10):
        (model / "README.md").write_text("my words")
        train(replace(settings, max_steps=max_steps, resume=True))
        assert (model / "README.md").read_text() == "my words"
        assert f"{model / 'README.md'} was edited since the run ended: kept as it is" in capsys.readouterr().out


def test_rate_of_a_lengthened_run_stays_where_its_cosine_ended(
    tiny_settings: Callable[..., TrainingSettings], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Also when it is lengthened again, and when it is stopped in the added part."""
    settings = tiny_settings(max_steps=6, save_steps=1, save_total_limit=9)
    train(settings)
    first = [row["learning_rate"] for row in rows(settings.output_dir, "step")]
    train(replace(settings, max_steps=8, resume=True))
    assert "8 steps in place of 6, at the learning rate 0.00015 from step 6 on" in capsys.readouterr().out
    resumed_run(replace(settings, max_steps=8), 7, tmp_path / "stopped")
    train(replace(settings, max_steps=9, resume=True))
    for folder, added in ((settings.output_dir, 3), (tmp_path / "stopped", 2)):
        assert [row["learning_rate"] for row in rows(folder, "step")] == [*first, *([1.5e-4] * added)]
    assert step_losses(tmp_path / "stopped") == step_losses(settings.output_dir)[:8]
    with pytest.raises(ValueError, match="the run had 9 steps, has 7: it can only become longer"):
        train(replace(settings, max_steps=7, resume=True))


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
    assert "step-00000006 is left out: model.safetensors is corrupt" in output
    assert "step-00000003" in output
    assert step_losses(settings.output_dir) == expected


def test_broken_settings_file_is_written_again(
    tiny_settings: Callable[..., TrainingSettings], capsys: pytest.CaptureFixture
) -> None:
    settings = tiny_settings(save_steps=3)
    train(settings)
    path = Path(settings.output_dir, "settings.json")
    for content in ("{", "[]"):
        path.write_text(content)
        train(TrainingSettings(**{**settings.to_dict(), "resume": True}))
        assert f"warning: {path} " in (output := capsys.readouterr().out)
        assert "written again" in output
        assert json.loads(path.read_text())["output_dir"] == settings.output_dir


@pytest.mark.parametrize("fault", ["garbled", "deleted", pytest.param("removed", marks=pytest.mark.nightly)])
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
    word = "is missing: it begins again at step 3" if fault == "removed" else "kept as history.damaged.jsonl"
    assert word in capsys.readouterr().err
    assert [row["global_step"] for row in rows(folder, "evaluation")] == ([6] if fault == "removed" else [3, 6])
