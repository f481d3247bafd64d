"""A request, an answer, and the answers that say no."""

import json
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Request:
    """One request; the log keeps it without its body."""

    origin: str  # "hub" or "cdn"
    method: str
    path: str  # as sent, still quoted, without the query
    query: dict[str, str]
    headers: dict[str, str]  # names in lower case
    body: bytes = b""
    route: str | None = None  # such as "POST commit"; None if the server does not know the path
    status: int | None = None  # what was answered; None if nothing was
    fault: str | None = None

    @property
    def token(self) -> str | None:
        """Return the token behind `Authorization: Bearer`."""
        scheme, _, token = self.headers.get("authorization", "").partition(" ")
        return token if scheme.lower() == "bearer" else None

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Answer:
    """Status, body and headers."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, content: Any, status: int = 200, **headers: str) -> "Answer":
        """JSON; headers are given as X_Repo_Commit="..."."""
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return cls(status, json.dumps(content).encode(), {"Content-Type": "application/json", **names})


class Refusal(Exception):
    """An answer that says no. The client picks its exception by `code`, the header X-Error-Code."""

    def __init__(self, status: int, message: str, code: str = "", **headers: str) -> None:
        super().__init__(message)
        if code:
            headers["X_Error_Code"] = code
        self.answer = Answer.of({"error": message}, status, X_Error_Message=message, **headers)
