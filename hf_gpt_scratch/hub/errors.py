"""Errors of the Hub in one line that says what to do, and never with a token in it."""

import json
import re

from huggingface_hub.errors import HfHubHTTPError, HTTPError, RevisionNotFoundError


# Of a server or a connection that may do better the next time.
TRANSIENT_STATUSES = (408, 500, 502, 503, 504)
NO_CONNECTION = ("ConnectError", "ConnectTimeout", "ProxyError", "UnsupportedProtocol", "InvalidURL")
SECRET_SHAPE = re.compile(r"\bhf_[A-Za-z0-9]{20,}")

NO_RIGHT = (
    "it exists, but the token may not write to it ({words}): choose a name of your own, or use a token with the right "
    "to write"
)
NO_RIGHT_TO_CREATE = (
    "the token may not make a repository under {owner} ({words}): use your own name or that of an organization that "
    "lets you write, and a token with the right to write"
)
QUOTA = "{endpoint} has no room for it ({words}): free storage or widen the quota, then push again"
SERVER_FAILED = "{endpoint} failed again and again ({words}): push again later, what has arrived is not sent twice"
REFUSED = "{endpoint} refused it ({words}): correct that and push again"
# What a status means; `wait` and `words` are the server's.
MEANINGS = {
    401: (
        "{endpoint} does not accept the token ({words}): make one with the right to write at "
        "{endpoint}/settings/tokens, then `hf auth login` or HF_TOKEN"
    ),
    402: QUOTA,
    403: NO_RIGHT,
    404: NO_RIGHT,
    413: QUOTA,
    429: "too many requests for {endpoint} ({words}): push again in {wait}",
}


def redact(text: str, token: str | None) -> str:
    """Return the text in one line, without the token and without what looks like one."""
    if token:
        text = text.replace(token, "<TOKEN>")
    return SECRET_SHAPE.sub("<TOKEN>", " ".join(text.split()))


def is_transient(error: Exception) -> bool:
    """Return True if the same request may succeed a moment later: the server failed, or the connection was lost.

    No connection at all is not among them: a user without a network is told so at once.
    """
    error = root_cause(error)
    if isinstance(error, HfHubHTTPError):
        # A commit or branch made a moment ago may not be known everywhere yet.
        return error.response.status_code in TRANSIENT_STATUSES or isinstance(error, RevisionNotFoundError)
    if isinstance(error, HTTPError):
        return type(error).__name__ not in NO_CONNECTION
    return isinstance(error, (json.JSONDecodeError, ConnectionResetError))


def root_cause(error: Exception) -> Exception:
    """Return the HTTP error behind the RuntimeError that the client makes of a failed upload."""
    while isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


def explain(error: Exception, repo_id: str, endpoint: str, repo_exists: bool) -> str:
    """Say what an error of the client means and what to do, where the Hub at `endpoint` was really asked."""
    error = root_cause(error)
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        meaning = MEANINGS.get(status, SERVER_FAILED if status >= 500 else REFUSED)
        if status == 403 and not repo_exists:
            meaning = NO_RIGHT_TO_CREATE
        seconds = error.response.headers.get("Retry-After")
        meaning = meaning.format(
            endpoint=endpoint,
            owner=repo_id.split("/")[0],
            words=error.server_message or f"status {status}",
            wait=f"{seconds} seconds" if seconds else "some minutes",
        )
    else:
        meaning = explain_connection(error, endpoint)
    return f"cannot push to {repo_id}: {meaning}"


def explain_connection(error: Exception, endpoint: str) -> str:
    """Say what it means that no answer came, or that the client itself failed."""
    words = str(error) or type(error).__name__
    if isinstance(error, HTTPError) and type(error).__name__ in NO_CONNECTION:
        return f"{endpoint} cannot be reached ({words}): check the network, proxies and HF_ENDPOINT, then push again"
    if isinstance(error, HTTPError):
        return f"the connection to {endpoint} was lost again and again ({words}): push again, nothing is sent twice"
    if isinstance(error, ValueError):
        return f"{words}: correct that and push again"
    remedy = ", or go without Xet by HF_HUB_DISABLE_XET=1" if "xet" in words.lower() else ""
    return f"the transfer to {endpoint} failed ({words}): push again, what has arrived is not sent twice{remedy}"
