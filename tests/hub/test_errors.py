"""Proves which errors of the client are worth another attempt, and that each ends in one line without a token.

Each error is one that the client raises against a Hub on this machine; tests/scripts/test_push_to_hub_script.py shows
the lines as users see them.
"""

import pytest
from huggingface_hub import HfApi

from hf_gpt_scratch.hub.errors import MEANINGS, explain, is_transient, redact
from tests.hub.pushes import REPO
from tests.loopback_hub import LoopbackHub


TOKEN = "hf_" + "aB3" * 11


def error_of(api: HfApi) -> Exception:
    """Ask for the branches of a repository, which fails."""
    with pytest.raises(Exception) as caught:  # noqa: PT011  the client raises many kinds
        api.list_repo_refs(REPO)
    return caught.value


@pytest.mark.parametrize(
    ("status", "transient", "words"),
    [
        (402, False, "has no room for it (Fault 402): free storage"),
        (403, False, "it exists, but the token may not write to it (Fault 403): choose a name"),
        (404, False, "it exists, but the token may not write to it"),
        (408, True, "refused it (Fault 408): correct that"),
        (413, False, "has no room for it (Fault 413): free storage"),
        (418, False, "refused it (Fault 418): correct that"),
        (429, False, "(Fault 429): push again in "),
        (500, True, "failed again and again (Fault 500): push again later"),
        (503, True, "failed again and again (Fault 503): push again later"),
    ],
)
def test_each_status_has_its_line(alice: LoopbackHub, status: int, transient: bool, words: str) -> None:
    alice.add_repository(REPO)
    alice.fault("GET refs", str(status), times=9)
    error = error_of(HfApi(endpoint=alice.url, token=alice.token_of("alice")))
    assert is_transient(error) is transient
    line = explain(error, REPO, alice.url, repo_exists=True)
    assert line.startswith(f"cannot push to {REPO}: ")
    assert words in line
    if status == 403:
        assert "may not make a repository under alice" in explain(error, REPO, alice.url, repo_exists=False)


def test_wrong_token_is_named_with_the_page_that_makes_one(alice: LoopbackHub) -> None:
    alice.add_repository(REPO, private=True)
    error = error_of(HfApi(endpoint=alice.url, token=TOKEN))
    line = explain(error, REPO, alice.url, repo_exists=True)
    assert "does not accept the token" in line
    assert f"{alice.url}/settings/tokens" in line


def test_no_connection_is_told_at_once_and_a_lost_one_is_tried_again(alice: LoopbackHub) -> None:
    nobody = error_of(HfApi(endpoint="http://127.0.0.1:9", token=TOKEN))
    assert not is_transient(nobody)
    assert "cannot be reached" in explain(nobody, REPO, "http://127.0.0.1:9", repo_exists=False)
    alice.fault("GET refs", "reset", times=9)
    lost = error_of(HfApi(endpoint=alice.url, token=TOKEN))
    assert is_transient(lost)
    assert "was lost again and again" in explain(lost, REPO, alice.url, repo_exists=False)


def test_cause_of_a_failed_upload_is_what_counts(alice: LoopbackHub) -> None:
    alice.fault("GET refs", "503", times=9)
    error = RuntimeError("upload failed")
    error.__cause__ = error_of(HfApi(endpoint=alice.url, token=TOKEN))
    assert is_transient(error)
    assert "failed again and again" in explain(error, REPO, alice.url, repo_exists=True)


def test_token_and_what_looks_like_one_are_in_no_line() -> None:
    assert redact(f"my-token and {TOKEN}\nin two lines", "my-token") == "<TOKEN> and <TOKEN> in two lines"
    assert all("{words}" in meaning for meaning in MEANINGS.values())
