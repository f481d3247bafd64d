"""A small model in an exported folder, made so that its greedy texts change where an engine misplaces it."""

from pathlib import Path

import pytest
import torch

from hf_gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
from hf_gpt_scratch.hub.repository import build_repository
from tests.ecosystem.conftest import stock  # noqa: F401


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model of drawn weights: a trained one of this size writes nearly the same texts where positions
    are added twice. The heads are 32 wide, the least that vLLM's attention for CPUs takes.
    """
    torch.manual_seed(0)
    config = GPTScratchConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=64, dropout=0.0
    )
    model = GPTScratchForCausalLM(config).eval()
    with torch.no_grad():
        model.model.embed_positions.weight.normal_()
        for name, parameter in model.named_parameters():
            if name.endswith(("proj.weight", "embed_tokens.weight")):
                parameter.normal_(std=0.3)
    return build_repository(model, tmp_path_factory.mktemp("exported") / "drawn-model")
