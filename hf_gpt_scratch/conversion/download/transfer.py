"""One file from one server: resumed where it stopped, tried again where that may help, verified before it is kept.

What has come so far lies in `<name>.part`, and what the server said of it in `<name>.part.json`, so that a later run,
also after a crash, goes on there. Header fields by RFC 9110: Range, Content-Range and If-Range (sections 13 and 14).
"""

import contextlib
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import requests
from urllib3.exceptions import InvalidHeader, MaxRetryError
from urllib3.util import Retry

from hf_gpt_scratch.runtime.files import name_file_in_errors


RETRIED_STATUS = {408, 425, 429, 500, 502, 503, 504}
MAX_REDIRECTS = 10
WRONG_ANSWERS_ALLOWED = 1  # per file: a second one means that the server has something else


@dataclass(frozen=True)
class RetryPolicy:
    """Time limits and number of retries of a transfer; times in seconds."""

    connect_timeout: float = 10.0
    read_timeout: float = 30.0  # without a byte
    retries: int = 5  # without progress; every new byte resets the count
    first_wait: float = 1.0  # before the first retry; each wait after it is twice as long
    longest_wait: float = 60.0  # also where the server asks for more
    chunk_bytes: int = 1 << 16  # received before it is written; a kill loses at most that


class ServerError(Exception):
    """A server does not give the file, and asking again does not help."""


class BadResponse(Exception):
    """An answer that is not the file, or not the part of it that was asked for.

    What has come so far does not fit it and is not kept, unless `keeps_part`: as after the login page of a network.
    """

    def __init__(self, reason: str, keeps_part: bool = False) -> None:
        super().__init__(reason)
        self.keeps_part = keeps_part


class InterruptedTransfer(Exception):
    """A transfer that broke off, or did not begin if nothing was `reached`; it may be resumed after `wait` seconds."""

    def __init__(self, reason: str, wait: float = 0.0, reached: bool = True) -> None:
        super().__init__(reason)
        self.wait = wait
        self.reached = reached


@dataclass
class Transfer:
    """The transfer of one file from `url` to `part`."""

    session: requests.Session
    url: str
    part: Path
    size: int | None  # bytes of the file, where they are known
    verify: Callable[[Path, str], None]  # given the complete part and its Content-MD5 or ""; raises `BadResponse`
    policy: RetryPolicy
    report: Callable[[int, int | None], None]  # given the bytes that are there, and all bytes where they are known
    log: Callable[[str], None]  # given a line for each retry

    def run(self) -> None:
        """Complete `part` and verify it; `ServerError` says that this server does not give the file."""
        tries = wrong_answers = 0
        progressed = False
        while True:
            before = size_of(self.part)
            try:
                self.receive()
                return self.verify(self.part, self.read_state().get("md5", ""))
            except InterruptedTransfer as interruption:
                reason, wait = str(interruption), interruption.wait
                further = size_of(self.part) > before
                progressed = progressed or further
                tries = 1 if further else tries + 1
                # A server that was never reached is most likely out of reach because there is no network.
                if tries > (self.policy.retries if interruption.reached or progressed else 1):
                    raise ServerError(f"{reason}, {tries} times in a row") from None
            except BadResponse as answer:
                reason, wait = str(answer), 0.0
                if not answer.keeps_part:
                    self.discard()
                wrong_answers += 1
                if wrong_answers > WRONG_ANSWERS_ALLOWED:
                    raise ServerError(reason) from None
            wait = max(wait, self.policy.first_wait * 2 ** max(tries - 1, 0))
            wait = min(wait, self.policy.longest_wait)
            self.log(f"{self.part.stem}: {reason}; going on at byte {size_of(self.part)} in {wait:.0f} s")
            time.sleep(wait)

    def receive(self) -> None:
        """Ask once for what is missing, and append it."""
        offset = size_of(self.part)
        if self.size is not None and offset > self.size:
            self.discard()
            offset = 0
        if offset == self.size:
            return
        headers = {"Accept-Encoding": "identity"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
            if validator := self.validator():
                headers["If-Range"] = validator
        timeout = (self.policy.connect_timeout, self.policy.read_timeout)
        try:
            with self.session.get(self.url, headers=headers, stream=True, timeout=timeout) as response:
                if response.status_code == 416 and offset and content_range(response) == (None, offset):
                    return
                self.check_status(response)
                if response.status_code == 206:
                    self.append(response, offset, self.check_range(response, offset))
                else:
                    self.append(response, 0, self.begin(response))
        except requests.RequestException as error:
            raise classified(error) from None

    def check_status(self, response: requests.Response) -> None:
        """Raise for every answer that does not bring the file."""
        status = response.status_code
        said = f"{status} {response.reason or ''}".strip()
        if status in RETRIED_STATUS:
            raise InterruptedTransfer(said, wait=retry_after(response))
        if status == 416:
            raise BadResponse(said)
        if status not in (200, 206):
            raise ServerError(said)
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise BadResponse(f"it came as {response.headers['Content-Encoding']}", keeps_part=True)

    def check_range(self, response: requests.Response, offset: int) -> int | None:
        """Check that an answer of status 206 continues the part; return the size of the whole file if it is known."""
        validator, etag = self.validator(), response.headers.get("ETag", "")
        if validator[:1] == etag[:1] == '"' and etag != validator:  # both strong: they promise the same bytes
            raise BadResponse("the file has changed on the server")
        start, total = content_range(response)
        if start != offset or (total is not None and self.size not in (None, total)):
            raise BadResponse(f"{response.headers.get('Content-Range')!r} came where byte {offset} was asked for")
        return self.size if total is None else total

    def begin(self, response: requests.Response) -> int | None:
        """Begin again with an answer that brings the whole file; return its size if it is known."""
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdecimal() else self.size
        if self.size not in (None, total):
            raise BadResponse(f"it has {total} bytes instead of {self.size}", keeps_part=True)
        etag = response.headers.get("ETag", "")
        validator = etag if etag.startswith('"') else response.headers.get("Last-Modified", "")
        self.discard()
        state = {"url": self.url, "validator": validator, "md5": response.headers.get("Content-MD5", "")}
        self.state_file.write_text(json.dumps(state), encoding="utf-8")
        return total

    def append(self, response: requests.Response, offset: int, total: int | None) -> None:
        """Write an answer's bytes behind the first `offset`; each chunk reaches the kernel before the next is read."""
        with name_file_in_errors(self.part), self.part.open("ab") as file:
            self.report(offset, total)
            for chunk in response.iter_content(self.policy.chunk_bytes):
                offset += len(chunk)
                if total is not None and offset > total:
                    raise BadResponse(f"more than {total} bytes came")
                file.write(chunk)
                file.flush()
                self.report(offset, total)
        if total is not None and offset < total:
            raise InterruptedTransfer(f"broke off at {offset} of {total} bytes")

    @property
    def state_file(self) -> Path:
        """The file that keeps what the server said of the part: its URL, validator and Content-MD5, "" for none."""
        return self.part.with_name(f"{self.part.name}.json")

    def read_state(self) -> dict[str, str]:
        """Read the state file, empty if it cannot be read."""
        with contextlib.suppress(OSError, ValueError, TypeError):
            return dict(json.loads(self.state_file.read_text(encoding="utf-8")))
        return {}

    def validator(self) -> str:
        """Return the ETag or Last-Modified by which this server knows whether the file has changed, "" for none."""
        state = self.read_state()
        return state.get("validator", "") if state.get("url") == self.url else ""

    def discard(self) -> None:
        """Forget what has come so far."""
        self.part.unlink(missing_ok=True)
        self.state_file.unlink(missing_ok=True)


def classified(error: requests.RequestException) -> Exception:
    """Return our error for one of requests, by whether trying again may help."""
    cause = error.args[0] if error.args else None
    reason = type(getattr(cause, "reason", None) or cause or error).__name__
    if isinstance(error, requests.exceptions.SSLError):
        return ServerError(f"its certificate is not accepted ({reason})")
    if isinstance(error, requests.Timeout | requests.ConnectionError | requests.exceptions.ChunkedEncodingError):
        if isinstance(cause, MaxRetryError):  # requests allows no retries, so it means no connection
            return InterruptedTransfer(f"no connection ({reason})", reached=False)
        return InterruptedTransfer(f"broke off ({reason})")
    if isinstance(error, requests.TooManyRedirects):
        return BadResponse(f"it redirected more than {MAX_REDIRECTS} times", keeps_part=True)
    return ServerError(f"it cannot be asked ({type(error).__name__})")


def retry_after(response: requests.Response) -> float:
    """Return the seconds that the server asks to wait."""
    with contextlib.suppress(InvalidHeader):
        return Retry().get_retry_after(response.raw) or 0.0
    return 0.0


def content_range(response: requests.Response) -> tuple[int | None, int | None]:
    """Parse first byte and size of the whole file from Content-Range; None for what is not stated."""
    match = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", response.headers.get("Content-Range", ""))
    start, total = match.groups() if match else (None, None)
    return int(start) if start else None, int(total) if total and total != "*" else None


def size_of(path: Path) -> int:
    """Return the bytes of a file, 0 if there is none."""
    return path.stat().st_size if path.exists() else 0
