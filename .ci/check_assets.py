"""Build hook: refuse to build a package whose vocabulary is not OpenAI's file, byte for byte."""

import hashlib
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


# The hash that tiktoken pins for https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe
VOCAB_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"


class CheckAssets(BuildHookInterface):
    """Run before each build."""

    def initialize(self, version: str, build_data: dict) -> None:  # noqa: ARG002
        """Compare the hash."""
        path = Path(self.root) / "hf_gpt_scratch/assets/vocab.bpe"
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest != VOCAB_SHA256:
            raise ValueError(f"{path} has sha256 {digest}, not {VOCAB_SHA256}: restore OpenAI's vocab.bpe")
