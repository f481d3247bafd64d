"""The routes that carry files: downloads, uploads by LFS, and the keys to Xet.

Large files lie on a second origin, the CDN, as on the real Hub. Its addresses are signed and need no token; one that
comes with a token is refused, because a client that sends its token there would give it away.
"""

import hashlib
import re
import time
from typing import TYPE_CHECKING

from .messages import Answer, Refusal, Request
from .routing import REPO, REVISION, route
from .store import Repository


if TYPE_CHECKING:
    from .server import LoopbackHub

SHA256 = "(?P<sha256>[0-9a-f]{64})"
CDN_FILE = f"/{REPO}/{SHA256}"


def signed(hub: "LoopbackHub", path: str, purpose: str) -> str:
    """An address of the CDN that allows one thing."""
    return f"{hub.cdn_url}{path}?signature={hub.signature(path, purpose)}"


def check_signature(hub: "LoopbackHub", request: Request, purpose: str) -> None:
    if "authorization" in request.headers:
        raise Refusal(400, "Only one auth mechanism allowed")
    if request.query.get("signature") != hub.signature(request.path, purpose):
        raise Refusal(403, "Request has expired")


def ranged(content: bytes, request: Request, headers: dict[str, str]) -> Answer:
    """The content or the part of it that a Range header asks for."""
    headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **headers}
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
    if not wanted:
        return Answer(200, content, headers)
    first = int(wanted[1])
    if first >= len(content):
        return Answer(416, b"", headers | {"Content-Range": f"bytes */{len(content)}"})
    part = content[first : int(wanted[2]) + 1 if wanted[2] else None]
    headers["Content-Range"] = f"bytes {first}-{first + len(part) - 1}/{len(content)}"
    return Answer(206, part, headers)


@route("GET HEAD", f"/{REPO}/resolve/{REVISION}/(?P<path>.+)")
def resolve(hub: "LoopbackHub", request: Request, repo_id: str, revision: str, path: str) -> Answer:
    """A regular file itself; for a large one, where it lies."""
    repository = hub.readable(request, repo_id)
    commit, file = repository.file(revision, path)
    headers = {"X-Repo-Commit": commit.sha}
    if file.content is not None:
        return ranged(file.content, request, headers | {"ETag": f'"{file.oid}"'})
    headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(file.size)}
    headers["Location"] = signed(hub, f"/{repo_id}/{file.sha256}", "GET")
    xet_hash = hub.xet_hash(repository, file.sha256)
    if xet_hash:
        headers["X-Xet-Hash"] = xet_hash
        headers["X-Xet-Refresh-Route"] = f"{hub.url}/api/models/{repo_id}/xet-read-token/{commit.sha}"
    return Answer(302, b"", headers)


@route("GET HEAD", CDN_FILE, origin="cdn")
def download(hub: "LoopbackHub", request: Request, repo_id: str, sha256: str) -> Answer:
    check_signature(hub, request, "GET")
    content = hub.repositories[repo_id].uploads.get(sha256)
    if content is None:
        raise Refusal(501, "This server hands out what came by Xet through Xet alone")
    return ranged(content, request, {"ETag": f'"{hashlib.md5(content).hexdigest()}"'})


@route("POST", f"/{REPO}\\.git/info/lfs/objects/batch")
def lfs_batch(hub: "LoopbackHub", request: Request, repo_id: str) -> Answer:
    """Say where to put each object, unless it is here already."""
    repository = hub.writable(request, repo_id)
    objects = []
    for wanted in request.json()["objects"]:
        sha256, size = wanted["oid"], wanted["size"]
        action = {} if sha256 in repository.uploads else {"actions": actions(hub, repository, sha256, size)}
        objects.append({"oid": sha256, "size": size, **action})
    return Answer.of({"transfer": "basic", "objects": objects})


def actions(hub: "LoopbackHub", repository: Repository, sha256: str, size: int) -> dict[str, dict]:
    """One PUT, or one for each part and a word at the end; then, if the hub offers it, a check."""
    path = f"/{repository.repo_id}/{sha256}"
    upload = {"href": signed(hub, path, "PUT")}
    if hub.part_size and size > hub.part_size:
        count = -(-size // hub.part_size)
        parts = {str(number): signed(hub, f"{path}/{number}", "PUT") for number in range(1, count + 1)}
        complete = f"{hub.url}/api/complete_multipart/{repository.repo_id}/{sha256}"
        upload = {"href": complete, "header": {"chunk_size": str(hub.part_size), **parts}}
    if not hub.offers_verify:
        return {"upload": upload}
    return {"upload": upload, "verify": {"href": f"{hub.url}/{repository.repo_id}.git/info/lfs/verify"}}


def keep_upload(repository: Repository, sha256: str, content: bytes) -> None:
    if hashlib.sha256(content).hexdigest() != sha256:
        raise Refusal(400, f"The content is not that of {sha256}")
    repository.uploads[sha256] = content


@route("PUT", CDN_FILE, origin="cdn")
def lfs_upload(hub: "LoopbackHub", request: Request, repo_id: str, sha256: str) -> Answer:
    check_signature(hub, request, "PUT")
    keep_upload(hub.repositories[repo_id], sha256, request.body)
    return Answer(200, b"", {"ETag": f'"{hashlib.md5(request.body).hexdigest()}"'})


@route("PUT", f"{CDN_FILE}/(?P<number>\\d+)", origin="cdn")
def lfs_upload_part(hub: "LoopbackHub", request: Request, repo_id: str, sha256: str, number: str) -> Answer:
    check_signature(hub, request, "PUT")
    hub.parts[sha256, int(number)] = request.body
    return Answer(200, b"", {"ETag": f'"{hashlib.md5(request.body).hexdigest()}"'})


@route("POST", f"/api/complete_multipart/{REPO}/{SHA256}")
def lfs_complete(hub: "LoopbackHub", request: Request, repo_id: str, sha256: str) -> Answer:
    parts = [hub.parts[sha256, part["partNumber"]] for part in request.json()["parts"]]
    keep_upload(hub.repositories[repo_id], sha256, b"".join(parts))
    return Answer.of({"success": True})


@route("POST", f"/{REPO}\\.git/info/lfs/verify")
def lfs_verify(hub: "LoopbackHub", request: Request, repo_id: str) -> Answer:
    repository = hub.writable(request, repo_id)
    fields = request.json()
    if len(repository.uploads.get(fields["oid"], b"")) != fields["size"]:
        raise Refusal(404, "Object does not exist")
    return Answer.of({})


def xet_token(hub: "LoopbackHub") -> Answer:
    """The folder in which Xet's own code keeps what it would send to its servers."""
    if not hub.offers_xet:
        raise Refusal(404, "Not found")
    expiry = int(time.time()) + 3600
    where, token = f"local://{hub.xet_folder}", "xet-token"
    headers = {"X_Xet_Cas_Url": where, "X_Xet_Access_Token": token, "X_Xet_Token_Expiration": str(expiry)}
    return Answer.of({"casUrl": where, "accessToken": token, "exp": expiry}, 200, **headers)


@route("GET", f"/api/models/{REPO}/xet-write-token/{REVISION}")
def xet_write_token(hub: "LoopbackHub", request: Request, repo_id: str, revision: str) -> Answer:
    hub.writable(request, repo_id).resolve(revision)
    return xet_token(hub)


@route("GET", f"/api/models/{REPO}/xet-read-token/{REVISION}")
def xet_read_token(hub: "LoopbackHub", request: Request, repo_id: str, revision: str) -> Answer:
    hub.readable(request, repo_id).resolve(revision)
    return xet_token(hub)
