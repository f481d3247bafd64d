"""The four GPT-2 sizes that OpenAI released: shape, files, byte counts, hashes and where they are fetched from."""

from collections.abc import Mapping
from dataclasses import dataclass, field


OPENAI_URL = "https://openaipublic.blob.core.windows.net/gpt-2/models"
# The copy that the book "Build a Large Language Model (From Scratch)" falls back on.
MIRROR_URLS = ("https://f001.backblazeb2.com/file/LLMs-from-scratch/gpt2",)

HPARAMS_FILE = "hparams.json"
INDEX_FILE = "model.ckpt.index"
DATA_FILE = "model.ckpt.data-00000-of-00001"

VOCAB_SIZE = 50257
CONTEXT_LENGTH = 1024  # tokens


@dataclass(frozen=True)
class GPT2Size:
    """One released size."""

    name: str  # the folder in OpenAI's store, such as "124M"
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int  # which no tensor shows
    num_parameters: int  # with the output head counted once, since it is the token embedding
    # Bytes of each of the seven files, None where no source states them. The small files come first, so that a store
    # that does not have the size is noticed before the big one.
    files: Mapping[str, int | None]
    sha256: Mapping[str, str] = field(default_factory=dict)  # hexadecimal, of the files for which one is known

    @property
    def hparams(self) -> dict[str, int]:
        """Content of this size's hparams.json."""
        return {
            "n_vocab": VOCAB_SIZE,
            "n_ctx": CONTEXT_LENGTH,
            "n_embd": self.hidden_size,
            "n_head": self.num_attention_heads,
            "n_layer": self.num_hidden_layers,
        }


# Files that are the same for all sizes. tiktoken pins the hashes of encoder.json and vocab.bpe (as encoder.json and
# vocab.bpe of "gpt2" in tiktoken_ext/openai_public.py); `checkpoint` is two lines of text that were rebuilt.
COMMON_SHA256 = {
    "checkpoint": "dd1b025d2e155283f5e300ce95bf6d5b6bc0f7fe010db73daa6975eb896ab9cb",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}

# hparams.json was rebuilt too. The hash of the data is given by two public sources, those of index and meta by one:
# if a download from OpenAI's own store is refused for one of these, suspect the hash first.
SHA256_124M = {
    HPARAMS_FILE: "d9d56e4121c427164e0c55c6f03c08e1daf9002b9b672825112d19097b680318",
    INDEX_FILE: "71916f763f9746f9b2a06b12d91996cf1084ae008d0424543d39391c5f2dc687",
    "model.ckpt.meta": "4668c448fa11531fd6700460487f73e82d3272960cea942252f8744bf225c77b",
    DATA_FILE: "2060c885360cc0cf41d7a6dbc4d24b5127aae20260c8b5ae521b5a6578407118",
}


def file_sizes(num_parameters: int, hparams: int, index: int | None = None, meta: int | None = None) -> dict:
    """Return the bytes of the seven files; the data file holds the parameters in float32 only."""
    return {
        "checkpoint": 77,
        HPARAMS_FILE: hparams,
        "encoder.json": 1042301,
        "vocab.bpe": 456318,
        INDEX_FILE: index,
        "model.ckpt.meta": meta,
        DATA_FILE: 4 * num_parameters,
    }


# name, hidden_size, num_hidden_layers, num_attention_heads, num_parameters; files; hashes
GPT2_SIZES = {
    size.name: size
    for size in (
        GPT2Size("124M", 768, 12, 12, 124439808, file_sizes(124439808, 90, 5215, 471155), COMMON_SHA256 | SHA256_124M),
        GPT2Size("355M", 1024, 24, 16, 354823168, file_sizes(354823168, 91, 10399, 926519), COMMON_SHA256),
        GPT2Size("774M", 1280, 36, 20, 774030080, file_sizes(774030080, 91), COMMON_SHA256),
        GPT2Size("1558M", 1600, 48, 25, 1557611200, file_sizes(1557611200, 91), COMMON_SHA256),
    )
}

HUB_NAMES = {"124M": "gpt2", "355M": "gpt2-medium", "774M": "gpt2-large", "1558M": "gpt2-xl"}
ALIASES = {hub_name: name for name, hub_name in HUB_NAMES.items()}


def find_size(name: str) -> GPT2Size:
    """Return the released size of that name, "124M" as in OpenAI's store or "gpt2" as on the Hub, in any case."""
    key = ALIASES.get(name.lower(), name.upper())
    if key not in GPT2_SIZES:
        raise ValueError(f"unknown GPT-2 size {name!r}: choose from {', '.join([*GPT2_SIZES, *ALIASES])}")
    return GPT2_SIZES[key]
