"""Faults on request: what happens to the next requests of a route instead of, or after, what should."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from .messages import Request


KINDS = {
    "500": "answered with an error of the server; nothing is done",
    "503": "answered with an error of the server; nothing is done",
    "reset": "the connection is reset before the request is read; nothing is done",
    "hang": "no answer until the hub is closed or its patience over; nothing is done",
    "cut": "done, but the connection ends in the middle of the answer",
    "lost": "done, but the connection is reset before the answer",
    "flip": "done, but one bit of the answer's body is changed",
}


@dataclass
class Fault:
    """A fault that happens to requests of one route."""

    route: str  # a regular expression for the whole of "POST commit", "GET resolve", ...
    kind: str | Callable[[Request], None]  # one of KINDS, another HTTP status, or what to call before the answer
    times: int = 1
    path: str = ""  # a regular expression found in the path
    skip: int = 0  # how many such requests go well before
    hits: list[Request] = field(default_factory=list)
    seen: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.kind, str) and self.kind not in KINDS and not re.fullmatch(r"[45]\d\d", self.kind):
            raise ValueError(f"no fault {self.kind!r}; there are {', '.join(KINDS)}, and any HTTP status")

    def meets(self, request: Request) -> bool:
        """Return True if the fault is for this request; call it once for each."""
        if not re.fullmatch(self.route, request.route or "unknown") or not re.search(self.path, request.path):
            return False
        self.seen += 1
        if not self.skip < self.seen <= self.skip + self.times:
            return False
        self.hits.append(request)
        return True
