"""Download of the seven files of a released GPT-2 size, verified before they get their final names."""

import base64
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import quote, urlsplit

import requests
from filelock import FileLock, Timeout
from tqdm import tqdm

from hf_gpt_scratch.conversion.download.transfer import (
    MAX_REDIRECTS,
    BadResponse,
    RetryPolicy,
    ServerError,
    Transfer,
    size_of,
)
from hf_gpt_scratch.conversion.gpt2_sizes import DATA_FILE, HPARAMS_FILE, INDEX_FILE, MIRROR_URLS, OPENAI_URL, GPT2Size
from hf_gpt_scratch.conversion.readers.tensor_bundle import open_tensor_bundle, read_index
from hf_gpt_scratch.runtime.files import file_sha256, flush, update_hash


def download_gpt2(
    size: GPT2Size,
    folder: str | Path,
    mirrors: Sequence[str] | None = None,
    *,
    policy: RetryPolicy | None = None,
    log: Callable[[str], None] | None = None,
) -> Path:
    """Fetch what is missing of a size into a folder, which is made, and return that; what is there is verified again.

    A file is verified by its number of bytes, the server's Content-MD5, the pinned SHA-256, and by what it holds: the
    settings by their values, index and data by their own checksums. Where nothing is pinned its SHA-256 is logged.
    What stops in between goes on where it stopped. A second process in the same folder waits for the first.

    `mirrors` are base URLs to take in this order, each with a folder of the size's name; by default OpenAI's store and
    its copy. Lines about retries and hashes go to `log`, by default to stderr.

    Raises:
        OSError: a file can be had from no mirror, or cannot be written.
        ValueError: a mirror is not a URL.
    """
    bases = base_urls(mirrors)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    download = Download(size, folder, bases, policy or RetryPolicy(), log or partial(tqdm.write, file=sys.stderr))
    lock = FileLock(folder / ".lock")
    try:
        held = lock.acquire(blocking=False)
    except Timeout:
        download.log(f"another process downloads to {folder}: waiting for it")
        held = lock.acquire()
    with held, requests.Session() as session:
        session.max_redirects = MAX_REDIRECTS
        download.check_space()
        for name in size.files:
            # One after the other, for what the data should hold is known when the index is there.
            if not download.is_there(name):
                download.fetch(session, name)
    return folder


def base_urls(mirrors: Sequence[str] | None) -> list[str]:
    """Return the base URLs to ask, in order; ValueError says that one is not an http or https URL."""
    urls = list(mirrors or (OPENAI_URL, *MIRROR_URLS))
    for url in urls:
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
            raise ValueError(f"mirror {url!r} is not a URL: give one like {OPENAI_URL}")
    return urls


def file_url(base: str, size: GPT2Size, name: str) -> str:
    """Return the URL of a file; the query of the base URL, which may be a signature, stays at the end."""
    parts = urlsplit(base)
    return parts._replace(path=f"{parts.path.rstrip('/')}/{quote(size.name)}/{quote(name)}").geturl()


def without_secrets(url: str) -> str:
    """Return a URL without password and signature."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()


@dataclass
class Download:
    """The download of one size into one folder."""

    size: GPT2Size
    folder: Path
    bases: list[str]
    policy: RetryPolicy
    log: Callable[[str], None]

    def missing(self) -> list[str]:
        """Return the files that are not there with the right number of bytes."""
        return [
            name
            for name, num_bytes in self.size.files.items()
            if not (path := self.folder / name).is_file() or num_bytes not in (None, size_of(path))
        ]

    def is_there(self, name: str) -> bool:
        """Return True if the file is there and verified."""
        path = self.folder / name
        if not path.is_file():
            return False
        try:
            self.verify(name, path, "")
        except BadResponse as answer:
            self.log(f"{path} is replaced, since {answer}")
            return False
        return True

    def check_space(self) -> None:
        """Raise OSError if the disk is too small for the missing files, as far as their bytes are known."""
        needed = sum((self.size.files[name] or 0) - size_of(self.folder / f"{name}.part") for name in self.missing())
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise OSError(f"{self.folder} has {free} bytes free and {needed} are needed: free some, or go elsewhere")

    def by_hand(self, name: str) -> str:
        """Return a URL for the user, with the size where it is known."""
        num_bytes = self.size.files[name]
        url = without_secrets(file_url(self.bases[0], self.size, name))
        return f"{url} ({num_bytes} bytes)" if num_bytes else url

    def fetch(self, session: requests.Session, name: str) -> None:
        """Fetch one file from the first mirror that gives it; OSError names what to fetch by hand."""
        part, num_bytes, verify = self.folder / f"{name}.part", self.size.files[name], partial(self.verify, name)
        reasons = []
        with tqdm(desc=name, total=num_bytes, unit="B", unit_scale=True, unit_divisor=1024, disable=None) as bar:

            def show(done: int, total: int | None) -> None:  # less than before, if it had to begin again
                bar.total = total
                bar.update(done - bar.n)

            for base in self.bases:
                url = file_url(base, self.size, name)
                transfer = Transfer(session, url, part, num_bytes, verify, self.policy, show, self.log)
                try:
                    transfer.run()
                except ServerError as error:
                    reasons.append(f"{without_secrets(url)}: {error}")
                    self.log(reasons[-1])
                    continue
                transfer.state_file.unlink(missing_ok=True)
                flush(part)  # the file reaches the disk before its name does
                os.replace(part, self.folder / name)
                flush(self.folder)
                return
        by_hand = ", ".join(map(self.by_hand, dict.fromkeys((name, *self.missing()))))
        hint = f"fetch by hand into {self.folder} and run again: {by_hand}"
        raise OSError(f"GPT-2 {self.size.name} cannot be downloaded ({'; '.join(reasons)}): {hint}")

    def verify(self, name: str, path: Path, md5: str) -> None:
        """Raise `BadResponse` unless a complete file fits all that is known of it, and the MD5 that a server said."""
        num_bytes = self.size.files[name]
        if num_bytes not in (None, size_of(path)):
            raise BadResponse(f"it has {size_of(path)} bytes instead of {num_bytes}")
        # MD5 finds damage and does not prove the origin.
        if md5 and md5 != base64.b64encode(update_hash(path, hashlib.md5(usedforsecurity=False)).digest()).decode():
            raise BadResponse("it has another MD5 than the server said")
        found, pinned = file_sha256(path), self.size.sha256.get(name)
        if pinned is None:
            self.check_content(name, path)
            self.log(f"{name}: {size_of(path)} bytes, sha256 {found}")
        elif found != pinned:
            raise BadResponse(f"it has the sha256 {found} instead of {pinned}")

    def check_content(self, name: str, path: Path) -> None:
        """Check what can be checked without a pinned hash."""
        try:
            if name == HPARAMS_FILE and json.loads(path.read_bytes()) != self.size.hparams:
                raise BadResponse(f"it has other settings than {self.size.name}")
            if name == INDEX_FILE:
                _, entries = read_index(path)
                if sum(entry.size for entry in entries.values()) != self.size.files[DATA_FILE]:
                    raise BadResponse(f"it is the index of something else than {self.size.name}")
            if name == DATA_FILE:
                bundle = open_tensor_bundle(self.folder / INDEX_FILE, ending=path.name.removeprefix(DATA_FILE))
                for tensor in bundle:
                    bundle[tensor]  # verifies its checksum
        except ValueError as error:  # CheckpointError is one too
            raise BadResponse(str(error)) from None
        with path.open("rb") as file:
            if name != DATA_FILE and file.read(1) == b"<":
                raise BadResponse("it is a page of HTML or XML")
