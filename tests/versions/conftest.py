"""An exported folder, and its runs with all versions of transformers that the chosen tests ask for."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hf_gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
from hf_gpt_scratch.data.tokenizer import build_tokenizer
from hf_gpt_scratch.hub.repository import build_repository
from tests.versions import overlays
from tests.versions.matrix import Matrix, changed_copy
from tests.versions.table import pytest_addoption, pytest_configure  # noqa: F401


# Code that an older age of this project might have had: its models compute something else.
OLDER_CODE = """

def _older(forward):
    def wrapper(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        output.logits = output.logits + 1
        return output

    return wrapper


GPTScratchForCausalLM.forward = _older(GPTScratchForCausalLM.forward)
"""


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """A folder of exported folders: GPT-2's vocabulary, that of bytes, and the latter with older code.

    The matrices are so large that greedy texts are no repetition of one token.
    """
    folder = tmp_path_factory.mktemp("exported")
    for name, vocabulary, vocab_size in (("tiny", "gpt2", 50257), ("bytes", "bytes", 257)):
        torch.manual_seed(0)
        config = GPTScratchConfig(
            vocab_size=vocab_size, max_position_embeddings=48, hidden_size=32, num_hidden_layers=3,
            num_attention_heads=4, dropout=0.0, initializer_range=0.1, bos_token_id=vocab_size - 1,
            eos_token_id=vocab_size - 1, pad_token_id=vocab_size - 1,
        )  # fmt: skip
        model = GPTScratchForCausalLM(config)
        with torch.no_grad():
            for weight in [*model.model.layers.parameters(), model.model.embed_positions.weight]:
                weight.mul_(4 if weight.ndim == 2 else 1)
        build_repository(model, folder / name, tokenizer=build_tokenizer(48, vocabulary))
    changed_copy(folder / "bytes", folder / "older", "modeling", OLDER_CODE)
    return folder


@pytest.fixture(scope="session")
def matrix(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, exported: Path
) -> Iterator[Matrix]:
    """All versions that the chosen tests ask for are begun at once."""
    asked = {item.callspec.params.get("version") for item in request.session.items if hasattr(item, "callspec")}
    versions = [overlays.REFERENCE, *(version for version in overlays.VERSIONS if version in asked)]
    matrix = Matrix(tmp_path_factory.mktemp("versions"), exported, versions)
    yield matrix
    matrix.pool.shutdown(cancel_futures=True)
