"""The training loop: plain Accelerate, to be read from top to bottom.

An optimizer step takes one batch of processes * micro-batches * windows. Its loss is the sum over the batch's tokens
divided by their number, whatever the split: the same on one process or many, in one micro-batch or many.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch.utils.data import DataLoader
from tqdm import tqdm

from hf_gpt_scratch.data.tokenizer import text_to_token_ids, token_ids_to_text
from hf_gpt_scratch.data.windows import IGNORE_INDEX, draw_like_torch_loader
from hf_gpt_scratch.evaluation import LossSum, evaluation_mode, perplexity, sum_losses
from hf_gpt_scratch.hub.repository import build_repository
from hf_gpt_scratch.runtime.cli import is_lost_process
from hf_gpt_scratch.runtime.environment import peak_memory
from hf_gpt_scratch.runtime.files import name_file_in_errors
from hf_gpt_scratch.runtime.out_of_memory import is_out_of_memory, out_of_memory_line
from hf_gpt_scratch.runtime.signals import Interrupted, StopSignals, leave_process_group
from hf_gpt_scratch.runtime.stopwatch import Stopwatch
from hf_gpt_scratch.training.bad_steps import may_be_applied
from hf_gpt_scratch.training.build import set_up
from hf_gpt_scratch.training.checkpoints.checkpoint import random_state, restore_random_state
from hf_gpt_scratch.training.checkpoints.output_folder import UNFINISHED_MODEL, FolderLock
from hf_gpt_scratch.training.distributed import on_main_process, unshard, unsharded_model
from hf_gpt_scratch.training.minutes.time_budget import note_start, note_step, seconds_besides_steps
from hf_gpt_scratch.training.optim import learning_rate_at, set_learning_rate
from hf_gpt_scratch.training.plan import batches_together
from hf_gpt_scratch.training.preflight import is_compiled
from hf_gpt_scratch.training.reporting.card_sections import card_details
from hf_gpt_scratch.training.reporting.progress_bar import StepDisplay, evaluation_bar, warn
from hf_gpt_scratch.training.reporting.trackers import check_trackers, start_trackers
from hf_gpt_scratch.training.run import Run
from hf_gpt_scratch.training.settings import TrainingSettings
from hf_gpt_scratch.training.stopping import SignalCriterion, WorkStopped, agreed_signal, stop_at_signal, until_signal


LOSSES = ("train_loss", "validation_loss", "standard_error")  # the last one only of a part of the text
STOPPED, GO_ON = "stopped by signal", "continue with the same command and --resume"


@dataclass
class TrainingResult:
    """The results of a run and their folder; losses in nats per token."""

    repository: Path
    train_loss: float
    validation_loss: float
    seconds: float
    skipped_steps: int
    is_main_process: bool
    bits_per_byte: float | None = None  # of the validation text; None: its bytes are not known
    standard_error: float | None = None  # of a validation loss over a part of the text


def train(settings: TrainingSettings, begun: float | None = None) -> TrainingResult:
    """Train a model as the settings say. Collective: call on every process.

    Args:
        settings: of the run.
        begun: when the `minutes` of the settings began, by `time.perf_counter()`; None: now.

    Raises:
        ValueError, OSError: settings, text, folder or checkpoint do not allow it; nothing was written. Or memory has
            run out.
        Interrupted: Ctrl-C, SIGTERM, SIGHUP or SIGUSR1, after the step under way and a checkpoint.
        Diverged: a step's loss or gradient was not finite or a spike.
    """
    stopwatch = Stopwatch(begun)
    check_trackers(settings.report_to or [])
    run = None
    with FolderLock(Path(settings.output_dir)) as lock:
        try:
            with StopSignals(f"{STOPPED} before the first step: start again with the same command") as signals:
                run = set_up(settings, lock, signals, stopwatch)
                return train_run(run)
        except Exception as error:
            is_started = run is not None and run.progress.global_step > 0
            if run is None or not (is_started or isinstance(error, Interrupted)):
                lock.withdraw()
            if signals.received and is_lost_process(error):  # the launcher stops all of them, and reports the lost one
                raise Interrupted("", signals.received) from None
            if is_out_of_memory(error):
                raise OSError(out_of_memory_line(error, less_memory(settings, is_started))) from error
            raise


def less_memory(settings: TrainingSettings, is_started: bool) -> str:
    """Name the settings that make a run take less memory."""
    ways = [
        f"--per_device_train_batch_size {settings.per_device_train_batch_size} (with more micro-batches in a step)"
    ]
    ways += [f"--{name}" for name in ("block_size", "hidden_size", "num_hidden_layers")]
    saving = [
        f"--{name}" for name in ("gradient_checkpointing", "optimizer_in_backward") if not getattr(settings, name)
    ]
    resumed = "; the last checkpoint is intact: --resume continues from it" if is_started else ""
    return f"turn down {', '.join(ways)}{', or add ' * bool(saving)}{' or '.join(saving)}{resumed}"


def train_run(run: Run) -> TrainingResult:
    """Train a run that is set up to its end. Collective: call on every process."""
    settings, progress, signals = run.settings, run.progress, run.signals
    signals.message = f"{STOPPED} at step {progress.global_step}, where it began: {GO_ON}"
    if settings.report_to:
        start_trackers(run.accelerator, settings, run.history, progress.global_step)
    if progress.global_step == 0:
        # Restore the generators afterwards, so that the first evaluation does not affect training.
        with torch.random.fork_rng():
            torch.manual_seed(settings.seed)
            first = settings.eval_iter if settings.initial_eval_iter is None else settings.initial_eval_iter
            with run.stopwatch.part("evaluations"):
                evaluate(run, run.evaluation_plan.windows(first), first)
        note_start(run)
    elif progress.global_step == run.num_steps and progress.whole_losses is not None:  # resumed at its end
        record_evaluation(run, *progress.whole_losses)
    parts = run.stopwatch.parts
    display = StepDisplay(run.num_steps, progress.global_step, run.accelerator.is_main_process, parts)
    with signals.noted(), closing(display):
        if progress.is_step_open:
            after_step(run)
        while progress.global_step < run.num_steps:
            train_epoch(run, display)
        signals.message = f"{STOPPED} after the last step, which is saved: {GO_ON}"
    return finish(run)


def train_epoch(run: Run, display: StepDisplay) -> None:
    """Train to the end of the epoch or of the run; after a resume from the middle of the epoch."""
    progress = run.progress
    run.start_epoch()
    for batch in run.loaders.train:
        started = time.perf_counter()
        count = run.accelerator.reduce((batch["shift_labels"] != IGNORE_INDEX).sum(), "sum")
        num_tokens = count.to("cpu", non_blocking=True)  # has arrived once the step has read its loss: one wait
        learning_rate = learning_rate_at(progress.global_step, progress.schedule_steps or run.num_steps, run.settings)
        set_learning_rate(run.optimizer, learning_rate)
        figures = optimizer_step(run, batch, count)
        progress.finish_step(int(num_tokens))
        note_step(run)
        record_step(run, display, *figures, learning_rate, int(num_tokens) / (time.perf_counter() - started))
        after_step(run)
        if progress.global_step == run.num_steps:
            return


def after_step(run: Run) -> None:
    """Evaluate, sample, save, push and stop, each where it is due after a step.

    Raises:
        Interrupted: a process got a signal. Everything is saved, and an evaluation or sample that it cut off comes
            again, from its beginning, in the resumed run.
    """
    settings, progress, step = run.settings, run.progress, run.progress.global_step
    is_last, ends_epoch = step == run.num_steps, progress.step_in_epoch == len(run.samplers.train)
    is_best = False
    before = replace(progress, is_step_open=True), random_state(run.accelerator.device)
    try:
        if settings.eval_steps and (step - settings.eval_first_step) % settings.eval_steps == 0:
            with run.stopwatch.part("evaluations"):
                losses = evaluate(run, run.evaluation_plan.windows(settings.eval_iter), settings.eval_iter)
            is_best = settings.load_best_model_at_end and progress.note_if_best(losses[1])
        if ends_epoch or is_last:
            with run.stopwatch.part("samples"):
                write_sample(run)
    except WorkStopped as stop:
        saved, draws = before
        progress.restore(saved)
        restore_random_state(draws, run.accelerator.device)
        raise Interrupted(saved_line(run, run.save()), stop.signal_number) from None
    progress.is_step_open = False
    if ends_epoch:
        progress.finish_epoch()
    # Where steps are being skipped the weights may be broken, and older checkpoints are worth more.
    may_be_broken = progress.skipped_in_a_row > 0
    is_due = not may_be_broken and bool(settings.save_steps and step % settings.save_steps == 0)
    is_pushed = not may_be_broken and settings.push_steps > 0 and step % settings.push_steps == 0 and not is_last
    checkpoint = run.save() if is_last or is_due or is_best or is_pushed else None
    if checkpoint and is_pushed and not agreed_signal(run.accelerator, run.signals):
        with run.signals.heeded(saved_line(run, checkpoint)):  # a large model takes many seconds to write
            push_unfinished(run)
    # All processes save or none does, whichever of them got the signal.
    if number := agreed_signal(run.accelerator, run.signals):
        raise Interrupted(saved_line(run, checkpoint or run.save()), number)


def saved_line(run: Run, checkpoint: Path) -> str:
    """Describe the end of a run after a signal, once it is saved."""
    return f"{STOPPED}: saved {checkpoint} at step {run.progress.global_step}; {GO_ON}"


def optimizer_step(run: Run, batch: dict[str, torch.Tensor], num_tokens: torch.Tensor) -> tuple[float, float, bool]:
    """Compute forward, backward, clipping and step over this process's share of the batch.

    `batch` has `input_ids` and `shift_labels`, both [micro-batches * windows, T]; `num_tokens` are the labels that
    count in all shares, int64 []. The learning rate is set before.

    Returns:
        The loss in nats per token over all processes, the gradient's norm before clipping, and whether the step was
        applied.

    Raises:
        Diverged: the step must not be applied, and the settings say to stop then.
    """
    accelerator, model, optimizer, settings = run.accelerator, run.model, run.optimizer, run.settings
    # Accelerate divides each loss by the micro-batches, and DDP averages over processes. Both are undone, because
    # num_items_in_batch has divided by the tokens of the whole step already.
    scale = settings.gradient_accumulation_steps * accelerator.num_processes
    step_loss = torch.zeros((), device=accelerator.device)
    for micro_batch in split_batch(batch, settings.per_device_train_batch_size):
        with accelerator.accumulate(model):
            kwargs = {"num_items_in_batch": num_tokens, "skip_logits": settings.chunked_loss}
            loss = model(**micro_batch, use_cache=False, **kwargs).loss
            accelerator.backward(loss * scale)
            step_loss += loss.detach()
    if run.steps_in_backward:
        norm = run.steps_in_backward.pop_grad_norm()
    else:
        norm = unshard(accelerator.clip_grad_norm_(run.parameters, settings.max_grad_norm or math.inf))
    # One reduction and one wait for the device; all processes get the same bits, so that all decide alike.
    figures = accelerator.reduce(torch.stack([step_loss, norm / accelerator.num_processes]), "sum")
    total_loss, grad_norm = figures.tolist()
    # fp16 overflows now and then: the scaler then skips the step itself and lowers its scale.
    is_overflow = accelerator.scaler is not None and math.isfinite(total_loss) and not math.isfinite(grad_norm)
    is_applied = is_overflow or may_be_applied(total_loss, grad_norm, run.progress, settings, run.checkpoint_dir)
    if is_applied:
        optimizer.step()
    elif accelerator.scaler is not None:
        accelerator.scaler.update()
    optimizer.zero_grad()
    return total_loss, grad_norm, is_applied


def split_batch(batch: dict[str, torch.Tensor], size: int) -> Iterator[dict[str, torch.Tensor]]:
    """Split a step's batch into micro-batches of `size` windows."""
    for parts in zip(*(tensor.split(size) for tensor in batch.values()), strict=True):
        yield dict(zip(batch, parts, strict=True))


def record_step(
    run: Run,
    display: StepDisplay,
    loss: float,
    grad_norm: float,
    is_applied: bool,
    learning_rate: float,
    tokens_per_second: float,
) -> None:
    """Show a step, and record it in the history and the trackers."""
    progress, flops, was_raised = run.progress, run.flops, run.flops.is_raised
    peak_before = flops.peak
    mfu, memory = flops.utilization(tokens_per_second), peak_memory(run.accelerator.device)
    if flops.peak > peak_before and not was_raised and run.accelerator.is_main_process:
        fastest = "the MFU is from now on that of the fastest step"
        warn(
            f"step {progress.global_step} reached {tokens_per_second * flops.per_token / 1e9:,.0f} GFLOP/s, more than "
            f"the peak of the start: {fastest if flops.is_raised else f'it is {flops.peak / 1e9:,.0f} measured again'}"
        )
    display.num_steps, display.seconds_besides = run.num_steps, seconds_besides_steps(run)
    display.show(progress.global_step, loss, tokens_per_second, mfu, memory, progress.skipped_steps)
    values = {"loss": loss, "learning_rate": learning_rate, "grad_norm": grad_norm}
    # JSON has no NaN, and a tracker cannot plot it.
    finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
    speed = {"tokens_per_second": round(tokens_per_second, 1), "mfu": round(mfu, 4), "peak_memory_bytes": memory}
    run.history.append(
        "step",
        global_step=progress.global_step,
        epoch=progress.epoch,
        tokens_seen=progress.tokens_seen,
        **finite,
        **speed,
        seconds_left=round(display.seconds_left(progress.global_step), 3),
        **({} if is_applied else {"skipped": True}),
    )
    run.history.note_lost_output(progress.global_step)
    known = {name: value for name, value in (finite | speed).items() if value is not None}
    run.accelerator.log(known, step=progress.global_step)


def evaluate(run: Run, num_windows: int, num_batches: int | None = None) -> list[float]:
    """Compute, print and record training and validation loss, and the standard error of one over a part of the text.

    Args:
        run: the run.
        num_windows: of the validation text, spread over it, and as many of the training text.
        num_batches: instead of all of them: as many batches, the first ones.

    Raises:
        WorkStopped: a process got a signal; nothing was recorded.
    """
    progress, sampler, started = run.progress, run.samplers.validation, time.perf_counter()
    sampler.num_sampled = num_windows
    taken = num_batches or len(run.loaders.validation)
    run.shuffle_train_eval()
    train_loss = sum_of_losses(run, run.loaders.train_eval, taken).mean
    if run.settings.data_order == "torch_dataloader":
        draw_like_torch_loader(shuffle=False)
    validation = sum_of_losses(run, run.loaders.validation, taken)
    if run.settings.minutes is not None and progress.global_step and validation.num_tokens:
        seconds = time.perf_counter() - started
        progress.note_scoring(seconds * run.settings.window_size / validation.num_tokens)
    losses = [train_loss, validation.mean]
    if num_windows < sampler.num_windows and math.isfinite(validation.standard_error):
        losses.append(validation.standard_error)
    record_evaluation(run, *losses)
    known = dict(zip(LOSSES, losses, strict=False)) | run.in_bits_per_byte(validation.mean)
    run.accelerator.log(known, step=progress.global_step)
    run.loss_plot.refresh()
    progress.set_losses(losses if num_windows == run.evaluation_plan.at_end and not num_batches else None)
    return losses


def record_evaluation(
    run: Run, train_loss: float, validation_loss: float, standard_error: float | None = None
) -> None:
    """Record the losses of this moment, unless they are the last ones in the history already, and show them.

    The standard error is that of a validation loss over a part of the text.
    """
    step = run.progress.global_step
    losses = {"train_loss": train_loss, "validation_loss": validation_loss}
    if standard_error is not None:
        losses["standard_error"] = standard_error
    bits_per_byte = run.in_bits_per_byte(validation_loss)
    losses |= bits_per_byte
    values = {"global_step": step, "epoch": run.epoch, "tokens_seen": run.progress.tokens_seen, **losses}
    last = run.history.rows("evaluation")[-1:] if run.accelerator.is_main_process else []
    # A version before this one did not record bits per byte.
    if [row | bits_per_byte for row in last] != [{"event": "evaluation", **values}]:
        run.history.append("evaluation", **values)
    about = "" if standard_error is None else f" ± {standard_error:.3f}"
    with tqdm.external_write_mode():
        run.say(
            f"epoch {run.epoch:.2f}, step {step}: "
            f"training loss {train_loss:.3f}, validation loss {validation_loss:.3f}{about}"
            + (f", bits per byte {losses['bits_per_byte']:.3f}" if "bits_per_byte" in losses else "")
        )


def sum_of_losses(run: Run, loader: DataLoader, num_batches: int) -> LossSum:
    """Sum the losses over the first batches of a loader, each process computing its share."""
    batches = islice(until_signal(run.accelerator, run.signals, loader), num_batches)
    shown = evaluation_bar(batches, min(num_batches, len(loader)), run.accelerator.is_main_process)
    # Compiled code is made for one shape.
    num_together = 1 if is_compiled(run.settings, run.accelerator) else batches_together(run.settings)
    share = sum_losses(run.model, shown, run.settings.chunked_loss, num_together)
    return sum(gather_object([share]), LossSum(0.0, 0))


def write_sample(run: Run) -> None:
    """Continue the sample prompt greedily; record the text, and print it in one line.

    All processes generate it, because none alone has all weights of a sharded model.

    Raises:
        WorkStopped: a process got a signal; nothing was recorded.
    """
    settings = run.settings
    if not settings.sample_tokens:
        return
    model: Any = run.bare_model  # PreTrainedModel itself has no generate()
    prompt_ids = text_to_token_ids(settings.sample_prompt, run.texts.encoding).to(model.device)
    capacity = settings.context - prompt_ids.shape[1]
    with evaluation_mode(model):
        token_ids = model.generate(
            prompt_ids,
            attention_mask=torch.ones_like(prompt_ids),
            max_new_tokens=min(settings.sample_tokens, capacity),
            do_sample=False,
            suppress_tokens=(run.base.rows_without_token if run.base else None) or None,
            synced_gpus=run.accelerator.is_fsdp2,
            stopping_criteria=[SignalCriterion(run.signals)],
        )
    stop_at_signal(run.accelerator, run.signals)
    text = token_ids_to_text(token_ids.cpu(), run.texts.encoding)
    run.history.append("sample", global_step=run.progress.global_step, epoch=run.progress.epoch, text=text)
    with tqdm.external_write_mode():
        run.say(f"sample: {text.replace(chr(10), ' ')}")


def finish(run: Run) -> TrainingResult:
    """Evaluate, on the whole validation text where that takes a small part of the run, and write the repository."""
    run.load_best_weights()
    with run.stopwatch.part("evaluations"):
        losses = run.progress.whole_losses or evaluate(run, run.evaluation_plan.at_end)
    train_loss, validation_loss, *error = losses
    seconds = time.perf_counter() - run.started
    run.history.note_lost_output(run.progress.global_step)
    more = run.in_bits_per_byte(validation_loss) | dict(zip(LOSSES[2:], error, strict=False))
    figures = {"validation_loss": validation_loss, "perplexity": perplexity(validation_loss), **more}
    parts = {"start": run.start_seconds, **run.stopwatch.parts}
    run.history.append("end", **figures, seconds=seconds, seconds_of_parts=parts)
    repository = run.output_dir / "model"
    kept = ["README.md"] if run.history.is_edited(repository / "README.md") else []
    write_repository(run, repository, kept)
    if kept:
        run.say(f"{repository / 'README.md'} was edited since the run ended: kept as it is")
    run.history.note_card(repository / "README.md", is_kept=bool(kept))
    if not run.accelerator.state.fork_launched:  # otherwise the process group belongs to the caller
        leave_process_group()
    run.accelerator.end_training()
    run.pushes.close()
    skipped_steps = run.progress.skipped_steps
    return TrainingResult(
        repository, train_loss, validation_loss, seconds, skipped_steps, run.accelerator.is_main_process, **more
    )


def write_repository(run: Run, folder: Path, kept: Sequence[str] = ()) -> None:
    """Plot the losses and write the folder that loads without this package, but for the files that are kept.

    Collective: call on every process.
    """
    settings = run.settings
    dtype = getattr(torch, settings.result_dtype or settings.weights_dtype)
    model = unsharded_model(run.accelerator, run.bare_model, dtype)

    def write() -> None:
        run.loss_plot.draw()
        progress = run.progress
        facts = {"training": f"{progress.global_step:,} of {run.num_steps:,} steps, {progress.tokens_seen:,} tokens"}
        for row in run.history.rows("evaluation")[-1:]:  # none if the history of an unfinished model was lost
            loss = row["validation_loss"]
            facts["training loss"] = f"{row['train_loss']:.3f} nats per token"
            about = f" ± {row['standard_error']:.3f}" if "standard_error" in row else ""
            facts["validation loss"] = f"{loss:.3f}{about} nats per token, perplexity {perplexity(loss):.1f}"
            if "bits_per_byte" in row:
                facts["validation loss"] += f", {row['bits_per_byte']:.3f} bits per byte"
        with name_file_in_errors(folder):
            build_repository(
                model,
                folder,
                tokenizer=run.tokenizer,
                card=card_details(settings, run.history, facts),
                replace=True,
                kept=kept,
            )

    on_main_process(run.accelerator, write)


def push_unfinished(run: Run) -> None:
    """Push the current model to its own branch in the background, unless the last push is still running."""
    if broadcast_object_list([run.pushes.is_busy])[0]:
        return
    folder = run.output_dir / UNFINISHED_MODEL
    write_repository(run, folder)
    if run.accelerator.is_main_process:
        run.pushes.start(folder, run.settings, run.progress.global_step)
