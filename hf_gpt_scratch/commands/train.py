"""Pretrain or finetune a model on text: accelerate launch -m hf_gpt_scratch train."""

from collections.abc import Sequence

from hf_gpt_scratch.runtime.cli import quiet_libraries
from hf_gpt_scratch.runtime.launching import first_process, relaunch_if_needed, stop_with_launcher


def main(words: Sequence[str], prog: str | None = None) -> None:
    """Train as the command line says, with the processes and threads that the launcher was asked for."""
    stop_with_launcher()
    relaunch_if_needed()
    from hf_gpt_scratch.training.command_line import parse_settings

    settings = parse_settings(words, prog)
    quiet_libraries()
    from hf_gpt_scratch.runtime.stopwatch import process_start

    begun = process_start(first_process())
    if settings.dry_run:
        from hf_gpt_scratch.training.dry_run import dry_run

        print("\n".join(dry_run(settings, begun)))
        return
    from hf_gpt_scratch.evaluation import perplexity
    from hf_gpt_scratch.training.loop import train
    from hf_gpt_scratch.training.reporting.hub_pushes import push_result

    result = train(settings, begun)
    if not result.is_main_process:
        return
    bits = "" if result.bits_per_byte is None else f"bits per byte {result.bits_per_byte:.3f}, "
    about = "" if result.standard_error is None else f" ± {result.standard_error:.3f}"
    print(
        f"validation loss {result.validation_loss:.3f}{about} nats per token, perplexity "
        f"{perplexity(result.validation_loss):.1f}, {bits}after {result.seconds:.0f} s"
    )
    if result.skipped_steps:
        print(f"{result.skipped_steps} steps were skipped: their loss or gradient was not finite or a spike")
    print(f"plot: {settings.output_dir}/loss.png, history: {settings.output_dir}/history.jsonl")
    print(f'load it: AutoModelForCausalLM.from_pretrained("{result.repository}", trust_remote_code=True)')
    if settings.push_to_hub:
        print("\n".join(push_result(settings, result.repository)))
