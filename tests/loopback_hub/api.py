"""The routes about repositories: who am I, create, look, commit, branch, tag."""

import base64
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from .messages import Answer, Refusal, Request
from .routing import REPO, REVISION, route
from .store import Commit, File, Repository, git_hash, is_large, pointer


if TYPE_CHECKING:
    from .server import LoopbackHub

DATE = "2026-01-01T00:00:00.000Z"
MODEL = f"/api/models/{REPO}"


@route("GET", "/api/whoami-v2")
def whoami(hub: "LoopbackHub", request: Request) -> Answer:
    user = hub.accounts.user(request.token)
    if user is None:
        raise Refusal(401, "Invalid username or password.")
    organizations = [{"type": "org", "name": name} for name in hub.accounts.organizations_of(user)]
    access_token = {"displayName": "test", "role": hub.accounts.tokens[request.token][1]}
    auth = {"type": "access_token", "accessToken": access_token}
    return Answer.of({"type": "user", "id": user, "name": user, "fullname": user, "orgs": organizations, "auth": auth})


@route("GET", "/api/agent-harnesses")
def agent_harnesses(hub: "LoopbackHub", request: Request) -> Answer:
    """Asked for once a day, unless telemetry is off, for a word in the header User-Agent."""
    return Answer.of({"standardEnvVars": [], "harnesses": {}})


@route("POST", "/api/validate-yaml")
def validate_yaml(hub: "LoopbackHub", request: Request) -> Answer:
    errors = hub.card_errors(request.json()["content"])
    return Answer.of({"errors": [{"message": error} for error in errors], "warnings": []}, 400 if errors else 200)


@route("POST", "/api/repos/create")
def create(hub: "LoopbackHub", request: Request) -> Answer:
    fields = request.json()
    user = hub.accounts.user(request.token)
    namespace = fields.get("organization") or user
    hub.accounts.check_create(request.token, namespace)
    repo_id = f"{namespace}/{fields['name']}"
    content = {"url": f"{hub.url}/{repo_id}", "name": repo_id}
    if repo_id in hub.repositories:
        return Answer.of(content | {"error": "You already created this model repo"}, 409)
    hub.add_repository(repo_id, author=user, private=fields.get("visibility") == "private")
    return Answer.of(content)


@route("DELETE", "/api/repos/delete")
def delete(hub: "LoopbackHub", request: Request) -> Answer:
    fields = request.json()
    namespace = fields.get("organization") or hub.accounts.user(request.token)
    repository = hub.writable(request, f"{namespace}/{fields['name']}")
    del hub.repositories[repository.repo_id]
    return Answer.of({})


def describe(repository: Repository, commit: Commit, blobs: bool) -> dict[str, Any]:
    siblings = [
        {"rfilename": path} | ({"size": file.size, "blobId": file.oid} if blobs else {})
        for path, file in commit.files.items()
    ]
    names = {"_id": repository.repo_id, "id": repository.repo_id, "modelId": repository.repo_id}
    access = {"private": repository.private, "gated": "manual" if repository.gated else False, "disabled": False}
    facts = {"author": repository.author, "sha": commit.sha, "lastModified": DATE, "createdAt": DATE}
    return {**names, **access, **facts, "tags": [], "downloads": 0, "likes": 0, "siblings": siblings}


@route("GET", MODEL)
@route("GET", f"{MODEL}/revision/{REVISION}")
def info(hub: "LoopbackHub", request: Request, repo_id: str, revision: str = "main") -> Answer:
    repository = hub.readable(request, repo_id, gate=False)
    return Answer.of(describe(repository, repository.resolve(revision), "blobs" in request.query))


def describe_file(hub: "LoopbackHub", repository: Repository, path: str, file: File) -> dict[str, Any]:
    fields = {"type": "file", "path": path, "oid": file.oid, "size": file.size}
    if file.sha256:
        size = len(pointer(file.sha256, file.size))
        fields["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": size}
        xet_hash = hub.xet_hash(repository, file.sha256)
        if xet_hash:
            fields["xetHash"] = xet_hash
    return fields


@route("GET", f"{MODEL}/tree/{REVISION}(?:/(?P<folder>.+))?")
def tree(hub: "LoopbackHub", request: Request, repo_id: str, revision: str, folder: str = "") -> Answer:
    repository = hub.readable(request, repo_id)
    commit = repository.resolve(revision)
    prefix = folder.rstrip("/") + "/" if folder else ""
    inside = {path: file for path, file in commit.files.items() if path.startswith(prefix)}
    if not inside and folder:
        raise Refusal(404, f"{folder} does not exist on {revision}", "EntryNotFound", X_Repo_Commit=commit.sha)
    recursive = request.query.get("recursive", "").lower() in ("true", "1")
    folders = {prefix + path.removeprefix(prefix).split("/")[0] for path in inside if "/" in path.removeprefix(prefix)}
    entries = [{"type": "directory", "path": name, "oid": git_hash(name.encode()), "size": 0} for name in folders]
    for path, file in sorted(inside.items()):
        if recursive or "/" not in path.removeprefix(prefix):
            entries.append(describe_file(hub, repository, path, file))
    return Answer.of(entries)


@route("POST", f"{MODEL}/paths-info/{REVISION}")
def paths_info(hub: "LoopbackHub", request: Request, repo_id: str, revision: str) -> Answer:
    repository = hub.readable(request, repo_id)
    files = repository.resolve(revision).files
    wanted = parse_qs(request.body.decode())["paths"]
    return Answer.of([describe_file(hub, repository, path, files[path]) for path in wanted if path in files])


@route("GET", f"{MODEL}/commits/{REVISION}")
def commits(hub: "LoopbackHub", request: Request, repo_id: str, revision: str) -> Answer:
    history = hub.readable(request, repo_id).history(revision)
    return Answer.of(
        [
            {"id": commit.sha, "title": commit.title, "message": commit.message, "date": DATE}
            | {"authors": [{"user": commit.author}]}
            for commit in history
        ]
    )


@route("GET", f"{MODEL}/refs")
def refs(hub: "LoopbackHub", request: Request, repo_id: str) -> Answer:
    repository = hub.readable(request, repo_id)

    def listed(names: dict[str, str], kind: str) -> list[dict[str, str]]:
        return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": sha} for name, sha in names.items()]

    branches, tags = listed(repository.branches, "heads"), listed(repository.tags, "tags")
    return Answer.of({"branches": branches, "tags": tags, "converts": [], "pullRequests": []})


@route("POST", f"{MODEL}/branch/(?P<name>[^/]+)")
def branch(hub: "LoopbackHub", request: Request, repo_id: str, name: str) -> Answer:
    repository = hub.writable(request, repo_id)
    if name in repository.branches:
        raise Refusal(409, f"Reference already exists: {name}")
    repository.branches[name] = repository.resolve(request.json().get("startingPoint", "main")).sha
    return Answer.of({})


@route("DELETE", f"{MODEL}/branch/(?P<name>[^/]+)")
def delete_branch(hub: "LoopbackHub", request: Request, repo_id: str, name: str) -> Answer:
    repository = hub.writable(request, repo_id)
    if repository.branches.pop(name, None) is None:
        raise Refusal(404, f"Reference does not exist: {name}", "RevisionNotFound")
    return Answer.of({})


@route("POST", f"{MODEL}/tag/{REVISION}")
def tag(hub: "LoopbackHub", request: Request, repo_id: str, revision: str) -> Answer:
    repository = hub.writable(request, repo_id)
    name = request.json()["tag"]
    if name in repository.tags:
        raise Refusal(409, f"Tag reference exists already: {name}")
    repository.tags[name] = repository.resolve(revision).sha
    return Answer.of({})


@route("DELETE", f"{MODEL}/tag/(?P<name>[^/]+)")
def delete_tag(hub: "LoopbackHub", request: Request, repo_id: str, name: str) -> Answer:
    repository = hub.writable(request, repo_id)
    if repository.tags.pop(name, None) is None:
        raise Refusal(404, f"Tag does not exist: {name}", "RevisionNotFound")
    return Answer.of({})


@route("POST", f"{MODEL}/preupload/{REVISION}")
def preupload(hub: "LoopbackHub", request: Request, repo_id: str, revision: str) -> Answer:
    """Say of each file how it is to come, and what is there already under its name."""
    files = hub.writable(request, repo_id).resolve(revision).files
    plan = []
    for offered in request.json()["files"]:
        large = is_large(offered["path"], offered["size"], base64.b64decode(offered["sample"]))
        fields = {"path": offered["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
        present = files.get(offered["path"])
        plan.append(fields | ({"oid": present.etag} if present else {}))
    return Answer.of({"files": plan})


@route("POST", f"{MODEL}/commit/{REVISION}")
def commit(hub: "LoopbackHub", request: Request, repo_id: str, revision: str) -> Answer:
    """Take one line of JSON for the header and one for each change; all changes together make one commit."""
    repository = hub.writable(request, repo_id)
    if revision not in repository.branches:
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    lines = [json.loads(line) for line in request.body.splitlines()]
    header = next(line["value"] for line in lines if line["key"] == "header")
    head = repository.head(revision)
    if not head.sha.startswith(header.get("parentCommit") or head.sha):
        raise Refusal(412, "A commit has happened since. Please refresh and try again.")
    files = dict(head.files)
    for line in lines:
        apply(hub, repository, files, line["key"], line["value"])
    author = hub.accounts.user(request.token)
    made = repository.add_commit(revision, files, header["summary"], header.get("description", ""), author)
    url = f"{hub.url}/{repo_id}/commit/{made.sha}"
    return Answer.of({"success": True, "commitOid": made.sha, "commitUrl": url, "hookOutput": ""})


def apply(hub: "LoopbackHub", repository: Repository, files: dict[str, File], key: str, value: dict) -> None:
    """Make one change of a commit."""
    path = value.get("path", "")
    if key == "file":
        files[path] = File.regular(base64.b64decode(value["content"]))
    elif key == "lfsFile":
        if value["oid"] not in repository.uploads and not hub.xet_hash(repository, value["oid"]):
            raise Refusal(400, f"LFS pointer pointed to a file that does not exist: {path}")
        files[path] = File.large(value["oid"], value["size"])
    elif key == "deletedFile":
        if files.pop(path, None) is None:
            raise Refusal(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
    elif key == "deletedFolder":
        for name in [name for name in files if name.startswith(path.rstrip("/") + "/")]:
            del files[name]
    elif key != "header":
        raise Refusal(400, f"Unknown operation {key}")
