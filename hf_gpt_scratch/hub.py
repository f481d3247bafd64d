"""Pushing a repository folder: the only writer to the network."""

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, HTTPError


def push_folder(folder: str | Path, repo_id: str) -> str:
    """Push a repository folder as one commit, so that no reader ever sees half of it.

    Args:
        folder: what `build_repository` made.
        repo_id: USER/NAME; the repository is made if it does not exist.

    Returns:
        The hash of the commit, for `from_pretrained(repo_id, revision=...)`.

    Raises:
        OSError: the push failed; one line says why.
    """
    api = HfApi()
    try:
        api.create_repo(repo_id, exist_ok=True)
        return api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload model").oid
    except (OSError, HTTPError, HFValidationError) as error:
        reason = " ".join(str(error).split())
        raise OSError(f"cannot push to {repo_id} ({reason}): nothing was lost, push {folder} again") from None
