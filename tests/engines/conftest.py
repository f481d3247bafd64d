"""A small model in an exported folder, made so that its greedy texts change where an engine misplaces it, and for the
record of what works the versions in the engines' own environments.
"""

from pathlib import Path

import pytest
import torch

from hf_gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
from hf_gpt_scratch.data.sample_texts import bundled_text_path
from hf_gpt_scratch.data.tokenizer import build_tokenizer
from hf_gpt_scratch.hub.repository import build_repository
from tests.ecosystem.conftest import stock  # noqa: F401
from tests.engines.environments import pinned_version


CONTEXT, NEW = 64, 16  # tokens; of the model, and of each continuation


def pytest_itemcollected(item: pytest.Item) -> None:
    """Have the record name the engine's version; this environment may have another one, or none."""
    marker = item.get_closest_marker("works")
    if marker:
        item.user_properties.append(("version", pinned_version(marker.args[0])))


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model of drawn weights: a trained one of this size writes nearly the same texts where positions
    are added twice. The heads are 32 wide, the least that vLLM's attention for CPUs takes.
    """
    torch.manual_seed(0)
    config = GPTScratchConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=CONTEXT, dropout=0.0
    )
    model = GPTScratchForCausalLM(config).eval()
    with torch.no_grad():
        model.model.embed_positions.weight.normal_()
        for name, parameter in model.named_parameters():
            if name.endswith(("proj.weight", "embed_tokens.weight")):
                parameter.normal_(std=0.3)
    return build_repository(model, tmp_path_factory.mktemp("exported") / "drawn-model")


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    """Five pieces of the story; the last two begin with the same 40 tokens."""
    ids = build_tokenizer()(bundled_text_path().read_text(encoding="utf-8")[:2000])["input_ids"]
    return [ids[start:end] for start, end in ((0, 3), (10, 17), (40, 51), (100, 140), (100, 144))]


@pytest.fixture(scope="session")
def expected(repository: Path, prompts: list[list[int]]) -> list[tuple[list[int], list[float]]]:
    """The greedy ids of each prompt alone, by `generate`, and their log-probabilities."""
    model, answers = GPTScratchForCausalLM.from_pretrained(repository), []
    for prompt in prompts:
        output = model.generate(
            torch.tensor([prompt]), max_new_tokens=NEW, do_sample=False, eos_token_id=None,
            return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
        ids = output.sequences[0, len(prompt) :]
        scores = torch.cat(output.logits).log_softmax(-1)[torch.arange(NEW), ids]
        answers.append((ids.tolist(), scores.tolist()))
    assert min(len(set(ids)) for ids, _ in answers) > NEW // 2  # no repetitions of one token
    return answers
