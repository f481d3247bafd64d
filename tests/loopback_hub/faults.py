"""Faults on request: what happens to the next requests of a route instead of, or after, what should."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from .messages import Request


KINDS = {
    "500": "answered with an error of the server; nothing is done",
    "503": "answered with an error of the server; nothing is done",
    "reset": "the connection is reset before the request is read; nothing is done",
    "hang": "no answer until the hub is closed; nothing is done",
    "cut": "done, but the connection ends in the middle of the answer",
    "lost": "done, but the connection is reset before the answer",
    "flip": "done, but one bit of the answer's body is changed",
}


@dataclass
class Fault:
    """What is to happen to the requests of one route."""

    route: str  # a regular expression for the whole of "POST commit", "GET resolve", ...
    kind: str | Callable[[Request], None]  # one of KINDS, another HTTP status, or what to call before the answer
    times: int = 1
    path: str = ""  # a regular expression found in the path
    hits: list[Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        if isinstance(self.kind, str) and self.kind not in KINDS and not re.fullmatch(r"[45]\d\d", self.kind):
            raise ValueError(f"no fault {self.kind!r}; there are {', '.join(KINDS)}, and any HTTP status")

    def applies_to(self, request: Request) -> bool:
        return (
            len(self.hits) < self.times
            and re.fullmatch(self.route, request.route or "unknown") is not None
            and re.search(self.path, request.path) is not None
        )
