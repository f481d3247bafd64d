"""Proves the counts of a run: steps, epochs, skipped steps and the best loss, and that they can be restored."""

from dataclasses import replace

from hf_gpt_scratch.training.progress import Progress


def test_steps_and_epochs_are_counted() -> None:
    progress = Progress(order_seed=5, whole_losses=[1.0, 2.0])
    progress.finish_step(7)
    progress.finish_step(3)
    assert (progress.global_step, progress.step_in_epoch, progress.tokens_seen) == (2, 2, 10)
    assert progress.whole_losses is None  # of other weights
    progress.finish_epoch()
    assert (progress.global_step, progress.epoch, progress.step_in_epoch, progress.order_seed) == (2, 1, 0, None)


def test_only_a_lower_loss_is_the_best() -> None:
    progress = Progress()
    assert [progress.note_if_best(loss) for loss in (3.0, 2.0, 2.0, 2.5)] == [True, True, False, False]
    assert progress.best_validation_loss == 2.0


def test_skipped_steps_in_a_row_end_with_an_applied_one() -> None:
    progress = Progress()
    progress.skip_step()
    progress.skip_step()
    assert (progress.skipped_steps, progress.skipped_in_a_row) == (2, 2)
    for number in range(4):
        progress.apply_step((number, 1.0), window=3)
    assert (progress.skipped_steps, progress.skipped_in_a_row) == (2, 0)
    assert progress.recent_steps == [[1, 1.0], [2, 1.0], [3, 1.0]]


def test_another_moment_is_restored_as_a_whole() -> None:
    progress = Progress(global_step=4, recent_steps=[[1.0, 2.0]])
    before = replace(progress, is_step_open=True)
    progress.finish_step(1)
    progress.apply_step((2.0, 3.0), window=8)
    progress.finish_epoch()
    progress.restore(before)
    assert progress == before
    assert progress.recent_steps == [[1.0, 2.0]]
