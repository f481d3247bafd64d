"""Proves that a sample can be watched while it is made, left at any time, and ends as `generate_samples` says."""

import threading
from collections.abc import Iterator

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from hf_gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
from hf_gpt_scratch.data.tokenizer import build_tokenizer, load_encoding
from hf_gpt_scratch.generation.decoding import Decoding, generate_samples
from hf_gpt_scratch.generation.streaming import StoppableIterator, stream_sample


class CountingModel(GPTScratchForCausalLM):
    """Knows how many forward passes there were, and breaks in the one that it is told."""

    num_passes = 0
    breaks_at = 0

    def forward(self, *args: object, **kwargs: object) -> object:
        self.num_passes += 1
        if self.num_passes == self.breaks_at:
            raise OSError("the disk is gone")
        return super().forward(*args, **kwargs)


@pytest.fixture
def model() -> CountingModel:
    torch.manual_seed(0)
    config = GPTScratchConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=32)
    return CountingModel(config).eval()


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())  # those of earlier tests may end meanwhile
    yield
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("prompt", ["The lamp", "", "Zwölf Boxkämpfer 🥊 jagen 維克多"])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_samples_grow_to_the_whole_one(model: CountingModel, prompt: str, temperature: float) -> None:
    """Past the context too."""
    tokenizer, decoding = build_tokenizer(32), Decoding(40, temperature, top_k=60, seed=123)
    samples = list(stream_sample(model, tokenizer, prompt, decoding))
    assert samples[-1] == generate_samples(model, tokenizer, [prompt], decoding)[0][0]
    assert len({sample.text for sample in samples}) > 10
    for earlier, later in zip(samples, samples[1:], strict=False):
        assert later.text.startswith(earlier.text)
    # The control: another seed gives another text.
    other = generate_samples(model, tokenizer, [prompt], Decoding(40, temperature, top_k=60, seed=124))[0][0]
    assert (other.text == samples[-1].text) == (temperature == 0)


def test_the_seed_that_was_taken_is_named(model: CountingModel) -> None:
    decoding = Decoding(12, temperature=1.5)
    first, second = (list(stream_sample(model, build_tokenizer(32), "The", decoding)) for _ in range(2))
    assert len({sample.seed for sample in first}) == 1
    assert first[-1].seed != second[-1].seed
    again = Decoding(12, temperature=1.5, seed=first[-1].seed)
    assert generate_samples(model, build_tokenizer(32), ["The"], again)[0][0] == first[-1]


def completions(part: bytes) -> Iterator[tuple[bytes, bytes]]:
    """What may stand before and after bytes so that all together are UTF-8, taken from characters of every length."""
    leads = [b"", *(one for lead in (b"\xc2", b"\xe1\x80", b"\xe0\xa0", b"\xf1\x80\x80", b"\xf0\x90\x80", b"\xed\x80",
                                   b"\xf4\x80\x80") for one in (lead[:1], lead[:2], lead))]  # fmt: skip
    for before in leads:
        for after in (b"", b"\x80", b"\xa0", b"\x90\x80", b"\x80\x80", b"\xa0\x80", b"\x80\x80\x80", b"\x90\x80\x80"):
            try:
                (before + part + after).decode("utf-8")
            except UnicodeDecodeError:
                continue
            yield before, after


def test_parts_of_characters_are_held_back() -> None:
    """Of GPT-2's 50,256 tokens 344 are not UTF-8 alone: each as the last of a text, and with what completes it.

    The text of each other one is encoded as that token. 13 bytes are in no character at all: they are shown as U+FFFD,
    and not before the end.
    """
    tokenizer, encoding = build_tokenizer(32), load_encoding()
    parts, hopeless = [], []
    for token in range(50256):
        part = encoding.decode_single_token_bytes(token)
        try:
            assert encoding.encode_ordinary(part.decode("utf-8")) == [token]
        except UnicodeDecodeError:
            parts.append(token)
            before, after = next(completions(part), (b"", b""))
            hopeless += [] if before or after else [token]
            ids = [[encoding.encode_single_token(bytes([byte])) for byte in side] for side in (before, after)]
            streamer = StoppableIterator(tokenizer)
            for shown in (tokenizer("A").input_ids, *([one] for one in ids[0]), [token], *([one] for one in ids[1])):
                assert not any("\ufffd" in piece for piece in streamer.text_queue.queue)
                streamer.put(torch.tensor(shown))
            streamer.end()
            assert "".join(streamer) == "A" + (before + part + after).decode("utf-8", errors="replace")
    assert (len(parts), len(hopeless)) == (344, 13)


@pytest.mark.parametrize("is_closed", [True, False])
def test_leaving_stops_the_model(model: CountingModel, is_closed: bool) -> None:
    samples = stream_sample(model, build_tokenizer(32), "The lamp", Decoding(100_000, temperature=1.5, seed=1))
    for _ in range(4):
        next(samples)
    if is_closed:
        samples.close()
    else:
        with pytest.raises(KeyError):
            samples.throw(KeyError("of the caller"))
    assert model.num_passes < 1000  # of 100,000; and `no_thread_is_left`


@pytest.mark.parametrize("breaks_at", [1, 5])
def test_an_error_of_the_model_reaches_the_caller(model: CountingModel, breaks_at: int) -> None:
    model.breaks_at = breaks_at
    with pytest.raises(OSError, match="the disk is gone"):
        list(stream_sample(model, build_tokenizer(32), "The lamp", Decoding(20)))


def test_impossible_requests_are_refused(model: CountingModel) -> None:
    with pytest.raises(ValueError, match="top_k must be"):
        list(stream_sample(model, build_tokenizer(32), "The lamp", Decoding(top_k=-1)))
    stock = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=32)).eval()
    with pytest.raises(ValueError, match="do not fit the context of 32 tokens"):
        list(stream_sample(stock, build_tokenizer(32), "The lamp", Decoding(40)))
