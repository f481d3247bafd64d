"""Stream a sample while it is made: printed or iterated over, and stopped at any time."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase, TextIteratorStreamer, TextStreamer

from hf_gpt_scratch.generation.decoding import Decoding, Sample, generate_samples


class SampleStopped(Exception):
    """Ends `generate()`, which has no other way out that acts before the next forward pass."""


class StoppableStreamer(TextStreamer):
    """A `TextStreamer` that can be stopped: with `stopped` set, the next token ends `generate()` by `SampleStopped`.

    When text is printed, and what waits because it may be half a character, is up to `TextStreamer`.
    """

    stopped = False

    def put(self, value: Any) -> None:
        """Take the next token ids from `generate()`."""
        if self.stopped:
            raise SampleStopped
        super().put(value)


class StoppableIterator(StoppableStreamer, TextIteratorStreamer):
    """Hands pieces of text from the thread that makes them to the one that iterates, until `stopped` is set."""


def stream_sample(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, decoding: Decoding
) -> Iterator[Sample]:
    """Yield the sample so far, whenever there is more text; the last is what `generate_samples` returns.

    A caller who leaves the loop, or closes the iterator, stops the sample: at most one more token is computed. Without
    a seed all samples that are yielded name the one that was taken.
    """
    seed = decoding.first_seed()
    decoding = replace(decoding, seed=seed)
    streamer = StoppableIterator(tokenizer, skip_special_tokens=True)
    text = ""
    with ThreadPoolExecutor(max_workers=1) as thread:  # leaving the block waits for it
        samples = thread.submit(generate_samples, model, tokenizer, [prompt], decoding, streamer=streamer)
        # Also after an error, or the loop would wait for ever.
        samples.add_done_callback(lambda _: streamer.text_queue.put(streamer.stop_signal))
        try:
            for piece in streamer:
                text += piece
                yield Sample(prompt, text, seed)
        finally:
            streamer.stopped = True
        yield samples.result()[0][0]
