"""A page to try a model in the browser: what it writes, and between which tokens it chooses."""

import time
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import gradio as gr
from matplotlib.figure import Figure
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_gpt_scratch.generation.decoding import Decoding, likeliest_tokens, next_token_probabilities
from hf_gpt_scratch.generation.streaming import stream_sample
from hf_gpt_scratch.plots import probability_figure


NUM_BARS = 12
PROMPTS_KEPT = 64  # scores of a vocabulary each, 200 kB for GPT-2's
INTRODUCTION = """\
# {name}
Type the beginning of a text and let the model go on. The bars are the tokens that could come next after your prompt:
move temperature and top-k, and see what is chosen from.
"""


class DemoModel:
    """The model behind the page, in evaluation mode."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model = model
        self.tokenizer = tokenizer
        # The sliders change what is made of the scores, not the scores: without this each move were a forward pass.
        self.likeliest_tokens = lru_cache(PROMPTS_KEPT)(
            lambda prompt: likeliest_tokens(model, tokenizer, prompt, NUM_BARS)
        )

    def draw_bars(self, prompt: str, temperature: float, top_k: int) -> Figure:
        """Draw the likeliest next tokens, as the model gives them and as temperature and top-k leave them.

        Raises:
            ValueError: temperature or top-k is impossible.
        """
        tokens, token_ids, logits = self.likeliest_tokens(prompt)
        rows = [next_token_probabilities(logits), next_token_probabilities(logits, temperature, top_k)]
        kept = f"top-k {top_k}" if top_k else "all tokens"
        names = ["temperature 1, all tokens", f"temperature {temperature:g}, {kept}"]
        figure = probability_figure([row[token_ids] for row in rows], names, tokens, bar_width=0.4)
        figure.set_size_inches(8, 4)
        figure.set_dpi(150)
        return figure

    def write(
        self, prompt: str, temperature: float, top_k: int, max_new_tokens: int, seed: int | None
    ) -> Iterator[tuple[str, str]]:
        """Yield the text so far and a line about it: how it can be repeated, or what is wrong with the request."""
        text, start = "", time.monotonic()
        try:
            for sample in stream_sample(
                self.model, self.tokenizer, prompt, Decoding(max_new_tokens, temperature, top_k, seed)
            ):
                text = sample.text
                yield text, "writing..."
        except (ValueError, TypeError) as error:  # an emptied field is None
            yield text, f"error: {error}"
        else:
            yield text, f"done in {time.monotonic() - start:.1f} s; seed {sample.seed} gives this text again"

    def redraw_bars(self, prompt: str, temperature: float, top_k: int) -> Figure | dict:
        """Draw the bars of what is being typed; impossible settings change nothing."""
        try:
            return self.draw_bars(prompt, temperature, top_k)
        except ValueError:
            return gr.skip()


def build_demo(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> gr.Blocks:
    """Build the page; `launch()` of what is returned serves it.

    Samples are made one at a time, and who comes meanwhile sees his place in the queue. The bars do not wait for them.
    The model is in evaluation mode; `name` is the heading.
    """
    demo_model = DemoModel(model, tokenizer)
    with gr.Blocks(title=name, analytics_enabled=False) as page:
        gr.Markdown(INTRODUCTION.format(name=name))
        with gr.Row():
            with gr.Column(scale=2):
                prompt = gr.Textbox("Every effort moves you", label="Prompt", lines=3)
                temperature = gr.Slider(0, 5, 1.0, step=0.1, label="Temperature", info="0 takes the likeliest token")
                top_k = gr.Slider(
                    0, min(200, len(tokenizer)), 25, step=1, label="Top-k", info="choose among so many; 0: all"
                )
                max_new_tokens = gr.Slider(1, 500, 50, step=1, label="Max new tokens")
                seed = gr.Number(123, precision=0, label="Seed", info="empty: another text every time")
                with gr.Row():
                    write = gr.Button("Write", variant="primary")
                    stop = gr.Button("Stop", variant="stop")
            with gr.Column(scale=3):
                text = gr.Textbox(label="Text", lines=8, interactive=False, placeholder="The text will come here.")
                status = gr.Textbox(label="Status", interactive=False, max_lines=3)
                gr.Markdown("### What could come next after the prompt")
                bars = gr.Plot(show_label=False, format="png", elem_id="bars")

        sample = write.click(
            demo_model.write,
            [prompt, temperature, top_k, max_new_tokens, seed],
            [text, status],
            show_progress="minimal",
        )
        stop.click(None, cancels=sample).then(lambda: "stopped", outputs=status)
        # Preprocessing would be an error for what is out of range, and lose the event after it.
        live: dict[str, Any] = {"preprocess": False, "show_progress": "hidden"}
        live |= {"trigger_mode": "always_last", "concurrency_id": "bars"}
        for event in (page.load, prompt.change, temperature.change, top_k.change):
            event(demo_model.redraw_bars, [prompt, temperature, top_k], bars, **live)
    return page
