"""Sample texts to train on: a story that comes with the package, and The Verdict of the tutorial, which is fetched."""

import hashlib
import os
from importlib.resources import files
from pathlib import Path

from hf_gpt_scratch.runtime.files import file_sha256, make_folder, write_file


BUNDLED_TEXT = "sample_text.txt"
VERDICT_URL = (
    "https://raw.githubusercontent.com/rasbt/LLMs-from-scratch/main/ch02/01_main-chapter-code/the-verdict.txt"
)
VERDICT_SHA256 = "b41e41a68f0398a3154ae69e2e4c0e2694e17fe0d66730536837f1b01935b31f"


def bundled_text_path() -> Path:
    """Path of the bundled short story (CC0, about 20 kB)."""
    return Path(str(files("hf_gpt_scratch").joinpath("assets").joinpath(BUNDLED_TEXT)))


def cache_folder() -> Path:
    """Return the folder of fetched texts: $HF_GPT_SCRATCH_CACHE, or hf_gpt_scratch in the user's cache folder."""
    # An empty variable counts as none: as a path it would be the current folder.
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hf_gpt_scratch"
    return Path(os.environ.get("HF_GPT_SCRATCH_CACHE") or default)


def fetch_verified(url: str, path: Path, sha256: str, timeout: float = 20.0) -> Path:
    """Return `path` with the file of that hash, fetching it if it is not there; nothing else is ever put there.

    Args:
        url: where to fetch it; proxies of the environment are used.
        path: where to keep it.
        sha256: hexadecimal hash of the wanted content.
        timeout: seconds without an answer before giving up.

    Raises:
        OSError: it cannot be fetched, or what came is another file.
    """
    if path.is_file() and file_sha256(path) == sha256:
        return path
    import requests  # here, because the bundled text needs no HTTP client

    by_hand = "fetch it by hand and give it with --train_file"
    try:
        response = requests.get(url, timeout=timeout)
        response.raise_for_status()
    except requests.RequestException as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise OSError(f"cannot fetch {url} ({reason}): {by_hand}") from None
    if (found := hashlib.sha256(response.content).hexdigest()) != sha256:
        raise OSError(f"{url} gave another file (sha256 {found}, wanted {sha256}): {by_hand}")
    make_folder(path.parent)
    write_file(path, response.content)
    return path


def fetch_verdict() -> Path:
    """Path of The Verdict (Edith Wharton, 1908, public domain), fetched once and verified."""
    return fetch_verified(VERDICT_URL, cache_folder() / "the-verdict.txt", VERDICT_SHA256)


SAMPLE_TEXTS = {"story": bundled_text_path, "verdict": fetch_verdict}
