"""The Hub itself: two origins on two addresses, a log of all requests, and faults on request."""

import contextlib
import dataclasses
import hashlib
import http.server
import secrets
import socket
import struct
import threading
from collections.abc import Callable
from http.client import responses
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from . import api, transfers  # noqa: F401  (they register their routes)
from .accounts import Accounts
from .faults import Fault
from .messages import Answer, Refusal, Request
from .routing import answer, find
from .store import Repository
from .xet_shards import xet_hashes


# Two hosts, as the real Hub has: before 2.0 huggingface_hub sends its token to another port of the same host.
ADDRESSES = {"hub": "127.0.0.1", "cdn": "127.0.0.2"}


class LoopbackHub:
    """A Hub on this machine until the `with` block ends.

    Processes find it by HF_ENDPOINT, see `environment`; in this process give `url` as the endpoint.
    """

    def __init__(self, folder: Path) -> None:
        self.xet_folder = folder / "xet"
        self.xet_folder.mkdir(parents=True)
        self.accounts = Accounts()
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []  # all that came, in the order of their arrival
        self.faults: list[Fault] = []
        self.offers_xet = True
        self.offers_verify = True
        self.patience: float | None = None  # seconds after which a connection that hangs is closed
        self.part_size: int | None = None  # bytes; larger uploads by LFS come in parts
        self.card_errors: Callable[[str], list[str]] = lambda content: []
        self.parts: dict[tuple[str, int], bytes] = {}
        self.lock = threading.RLock()
        self.closing = threading.Event()
        self._secret = secrets.token_hex()
        self._origins = {name: Origin(self, name) for name in ADDRESSES}

    # What tests use.

    @property
    def url(self) -> str:
        """Return the value of HF_ENDPOINT."""
        return f"http://{ADDRESSES['hub']}:{self._origins['hub'].server_port}"

    @property
    def cdn_url(self) -> str:
        return f"http://{ADDRESSES['cdn']}:{self._origins['cdn'].server_port}"

    def token_of(self, user: str, role: str = "write") -> str:
        """A token of `alice`, `bob` or anyone else; with the role "read" it cannot push."""
        return self.accounts.token_of(user, role)

    def repo(self, repo_id: str) -> Repository:
        return self.repositories[repo_id]

    def add_repository(self, repo_id: str, *, author: str = "", private: bool = False) -> Repository:
        """A repository with the first commit that the Hub makes."""
        repository = Repository(repo_id, author or repo_id.split("/")[0], private=private)
        self.repositories[repo_id] = repository
        return repository

    def copy_repository(self, source: str, repo_id: str) -> Repository:
        """A repository with everything that another one has."""
        original = self.repositories[source]
        names = ("commits", "branches", "tags", "uploads")
        copies = {name: getattr(original, name).copy() for name in names}
        self.repositories[repo_id] = dataclasses.replace(original, repo_id=repo_id, **copies)
        return self.repositories[repo_id]

    def fault(
        self, route: str, kind: str | Callable[[Request], None], times: int = 1, *, path: str = "", skip: int = 0
    ) -> Fault:
        """Let requests of a route go wrong, the next `times` after `skip`; see `faults.KINDS`.

        The `hits` of the fault are the requests that it met.
        """
        self.faults.append(Fault(route, kind, times, path, skip))
        return self.faults[-1]

    def heal(self) -> None:
        """Forget all faults."""
        self.faults.clear()

    def routes_asked(self, since: int = 0) -> list[str]:
        """The routes of the requests from number `since` on."""
        return [request.route or f"unknown: {request.method} {request.path}" for request in self.requests[since:]]

    @property
    def unknown(self) -> list[str]:
        """Requests that this server has no answer for; the real Hub might, so a test must not rest on them."""
        return [route for route in self.routes_asked() if route.startswith("unknown")]

    def environment(self, home: Path, token: str | None = None, *, xet: bool = True) -> dict[str, str]:
        """Variables for a process that is to use this Hub: an empty home, and no network but this machine."""
        variables = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_XET_CACHE": str(home / "xet"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_XET": "0" if xet else "1",
            "HTTP_PROXY": "http://127.0.0.1:9",
            "HTTPS_PROXY": "http://127.0.0.1:9",
            "NO_PROXY": ",".join(ADDRESSES.values()),
        }
        return variables | ({"HF_TOKEN": token} if token else {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"})

    # What the routes use.

    def readable(self, request: Request, repo_id: str, *, gate: bool = True) -> Repository:
        """The repository if whoever asks may read it; of a gated one everybody may know that it exists."""
        repository = self.repositories.get(repo_id)
        if repository is None:
            raise self.accounts.unknown_repository(request.token)
        self.accounts.check_read(request.token, repository, gate=gate)
        return repository

    def writable(self, request: Request, repo_id: str) -> Repository:
        repository = self.readable(request, repo_id, gate=False)
        self.accounts.check_write(request.token, repository)
        return repository

    def xet_hash(self, repository: Repository, sha256: str) -> str | None:
        """The name under which Xet keeps a file; none if it does not, or if the repository got it by LFS."""
        return None if sha256 in repository.uploads else xet_hashes(self.xet_folder).get(sha256)

    def signature(self, path: str, purpose: str) -> str:
        return hashlib.sha256(f"{self._secret} {purpose} {path}".encode()).hexdigest()

    def take(self, request: Request) -> str | Callable[[Request], None] | None:
        """Write a request into the log and say which fault it meets."""
        with self.lock:
            found = find(request)
            request.route = found[0].name if found else None
            self.requests.append(request)
            for fault in self.faults:
                if fault.meets(request):
                    request.fault = fault.kind if isinstance(fault.kind, str) else "called"
                    return fault.kind
        return None

    def answer(self, request: Request) -> Answer:
        """Do what is asked, one request at a time."""
        if request.route is None:
            return Answer.of({"error": f"no route for {request.method} {request.path}"}, 404)
        with self.lock:
            try:
                return answer(self, request)
            except Refusal as refusal:
                return refusal.answer

    def __enter__(self) -> "LoopbackHub":
        for origin in self._origins.values():
            origin.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        for origin in self._origins.values():
            origin.stop()


class Origin(http.server.ThreadingHTTPServer):
    """One of the two servers of the Hub."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, hub: LoopbackHub, name: str) -> None:
        self.hub = hub
        self.name = name
        super().__init__((ADDRESSES[name], 0), Handler)

    def handle_error(self, *arguments: object) -> None:
        """Say nothing: a client that was killed is not an error."""

    def start(self) -> None:
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.shutdown()
        self.thread.join()
        self.server_close()


class Handler(http.server.BaseHTTPRequestHandler):
    """Reads a request, lets the hub answer it, and spoils what a fault says."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Origin

    def log_message(self, *arguments: object) -> None:
        """Print nothing."""

    def handle_request(self) -> None:
        address = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        query = dict(parse_qsl(address.query))
        request = Request(self.server.name, self.command, address.path, query, headers)
        fault = self.server.hub.take(request)
        if callable(fault):
            fault(request)
        if fault == "reset":
            self.reset()
            return
        try:
            request.body = self.read_body()
        except EOFError:
            self.close_connection = True
            return
        if fault == "hang":
            self.close_connection = True
            self.server.hub.closing.wait(self.server.hub.patience)
            return
        if isinstance(fault, str) and fault.isdigit():
            answer = Answer.of({"error": f"Fault {fault}"}, int(fault))
        else:
            answer = self.server.hub.answer(request)
        request.body = b""
        if fault == "lost":
            self.reset()
            return
        request.status = answer.status
        self.send(answer, fault if isinstance(fault, str) else "")

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = handle_request

    def read_body(self) -> bytes:
        """All of it.

        Raises:
            EOFError: the client left before its end.
        """
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.read_exactly(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0] or b"-1", 16):
            parts.append(self.read_exactly(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def read_exactly(self, size: int) -> bytes:
        try:
            content = self.rfile.read(size) if size >= 0 else b""
        except ConnectionError:
            content = b""
        if len(content) != size:
            raise EOFError(f"{len(content)} bytes of {size}")
        return content

    def send(self, answer: Answer, fault: str) -> None:
        """Write the answer; a "cut" one ends in the middle of its body, or of its header if there is no body."""
        body = answer.body
        if fault == "flip" and body:
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        names = {"Content-Length": str(len(body)), **answer.headers}
        if fault == "cut":
            names["Connection"] = "close"
            self.close_connection = True
        lines = [f"HTTP/1.1 {answer.status} {responses.get(answer.status, 'Fault')}"]
        lines += [f"{name}: {value}" for name, value in names.items()]
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        if self.command == "HEAD":
            body = b""
        if fault == "cut":
            head, body = (head, body[: len(body) // 2]) if body else (head[: len(head) // 2], b"")
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.wfile.write(head + body)

    def reset(self) -> None:
        """Close with RST instead of FIN."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.rfile.close()
