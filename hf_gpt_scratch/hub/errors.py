"""What the Hub's answers mean for the user: one line with the way out, and never a token in it."""

import json
import re

from huggingface_hub.errors import HfHubHTTPError, HTTPError, RevisionNotFoundError


# Of a server or a line that may do better the next time.
TRANSIENT_STATUSES = (408, 500, 502, 503, 504)
SECRET_SHAPE = re.compile(r"\bhf_[A-Za-z0-9]{20,}")


def redact(text: str, token: str | None) -> str:
    """The text in one line, without the token and without what looks like one."""
    if token:
        text = text.replace(token, "<TOKEN>")
    return SECRET_SHAPE.sub("<TOKEN>", " ".join(text.split()))


def is_transient(error: Exception) -> bool:
    """Whether the same request may succeed a moment later: the server failed, or the connection was lost or silent.

    No connection at all is not among them: a user without a network is told so at once.
    """
    error = root_cause(error)
    if isinstance(error, HfHubHTTPError):
        # A commit or branch made a moment ago may not be known everywhere yet.
        return error.response.status_code in TRANSIENT_STATUSES or isinstance(error, RevisionNotFoundError)
    if isinstance(error, HTTPError):
        return not is_unreachable(error)
    return isinstance(error, (json.JSONDecodeError, ConnectionResetError))


def is_unreachable(error: Exception) -> bool:
    """Whether no connection was made: no network, no such host, nobody listening."""
    return type(error).__name__ in (
        "ConnectError",
        "ConnectTimeout",
        "ProxyError",
        "UnsupportedProtocol",
        "InvalidURL",
    )


def root_cause(error: Exception) -> Exception:
    """The HTTP error behind the RuntimeError that the client makes of a failed upload."""
    while isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


def explain(error: Exception, repo_id: str, endpoint: str, repo_exists: bool) -> str:
    """Say what an error of the client means and what to do.

    Args:
        error: what the client raised.
        repo_id: where the push went.
        endpoint: the address of the Hub that was really asked.
        repo_exists: whether the repository was there before.
    """
    error = root_cause(error)
    if not isinstance(error, HfHubHTTPError):
        return f"cannot push to {repo_id}: {explain_connection(error, endpoint)}"
    status = error.response.status_code
    words = error.server_message or f"status {status}"
    if status == 401:
        return (
            f"cannot push to {repo_id}: {endpoint} does not accept the token ({words}): make one with the right to "
            f"write at {endpoint}/settings/tokens, then `hf auth login` or HF_TOKEN"
        )
    if status == 403 and not repo_exists:
        owner = repo_id.split("/")[0]
        return (
            f"cannot push to {repo_id}: the token may not make a repository under {owner} ({words}): use your own "
            "name or that of an organization that lets you write, and a token with the right to write"
        )
    if status in (403, 404):
        return (
            f"cannot push to {repo_id}: it exists, but the token may not write to it ({words}): choose a name of your "
            "own, or use a token with the right to write"
        )
    return f"cannot push to {repo_id}: {explain_refusal(status, words, endpoint, error)}"


def explain_refusal(status: int, words: str, endpoint: str, error: HfHubHTTPError) -> str:
    """What a status says that is not about rights."""
    if status in (402, 413):
        return f"{endpoint} has no room for it ({words}): free storage or widen the quota, then push again"
    if status == 429:
        seconds = error.response.headers.get("Retry-After")
        wait = f"in {seconds} seconds" if seconds else "in some minutes"
        return f"too many requests for {endpoint} ({words}): push again {wait}"
    if status >= 500:
        return f"{endpoint} failed again and again ({words}): push again later, what has arrived is not sent twice"
    return f"{endpoint} refused it ({words}): correct that and push again"


def explain_connection(error: Exception, endpoint: str) -> str:
    """What no answer means; also what other exceptions of the client say."""
    words = str(error) or type(error).__name__
    if isinstance(error, HTTPError) and is_unreachable(error):
        return f"{endpoint} cannot be reached ({words}): check the network, proxies and HF_ENDPOINT, then push again"
    if isinstance(error, HTTPError):
        return f"the connection to {endpoint} was lost again and again ({words}): push again, nothing is sent twice"
    if isinstance(error, ValueError):
        return f"{words}: correct that and push again"
    remedy = ", or go without Xet by HF_HUB_DISABLE_XET=1" if "xet" in words.lower() else ""
    return f"the transfer to {endpoint} failed ({words}): push again, what has arrived is not sent twice{remedy}"
