"""The table of routes: the function that answers each request."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote

from .messages import Answer, Request


if TYPE_CHECKING:
    from .server import LoopbackHub

Answerer = Callable[..., Answer]

REPO = r"(?P<repo_id>[^/]+/[^/]+)"
REVISION = r"(?P<revision>[^/]+)"


@dataclass(frozen=True)
class Route:
    """A method and a pattern of paths on one of the two origins; `name` is what the log and the faults call it."""

    origin: str
    method: str
    pattern: re.Pattern
    answer: Answerer

    @property
    def name(self) -> str:
        return f"{self.method} {self.answer.__name__}"


ROUTES: list[Route] = []


def route(methods: str, pattern: str, origin: str = "hub") -> Callable[[Answerer], Answerer]:
    """Register a function for "GET HEAD" and a path; named groups of the pattern become arguments, unquoted."""

    def register(answer: Answerer) -> Answerer:
        ROUTES.extend(Route(origin, method, re.compile(pattern), answer) for method in methods.split())
        return answer

    return register


def find(request: Request) -> tuple[Route, dict[str, str]] | None:
    """The route of a request and the arguments in its path."""
    for candidate in ROUTES:
        if (candidate.origin, candidate.method) == (request.origin, request.method):
            match = candidate.pattern.fullmatch(request.path)
            if match:
                return candidate, {name: unquote(text) for name, text in match.groupdict().items() if text}
    return None


def answer(hub: "LoopbackHub", request: Request) -> Answer:
    """Do what a request asks for; `request.route` must be known."""
    found, arguments = find(request)
    return found.answer(hub, request, **arguments)
