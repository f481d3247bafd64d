"""A loopback server of files that misbehaves on request, in every way in which downloads are known to go wrong.

`server.faults[path]` lists what happens to the requests for that path, one after the other; after the last one the
server behaves, unless that is `ALWAYS`, which repeats the fault before it for ever.
"""

import base64
import contextlib
import hashlib
import http.server
import re
import socket
import struct
import threading
import time
from dataclasses import dataclass
from typing import ClassVar


ALWAYS = "always"
HTML = b"<!DOCTYPE html><html><title>Sign in to the network</title></html>\n"


@dataclass
class Request:
    """One line of the server's log."""

    path: str
    offset: int
    fault: str
    sent: int = 0  # bytes of the body


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.files` with ranges, ETag, Content-Length and Content-MD5, or misbehaves."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: "MisbehavingServer"

    STATUS: ClassVar = {"404", "403", "410", "401", "500", "502", "503", "429", "416"}

    def log_message(self, *arguments: object) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        """Answer as the next fault says."""
        self.path = self.path.partition("?")[0]
        content = self.server.files.get(self.path)
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        self.offset = int(wanted[1]) if wanted else 0
        fault = self.server.next_fault(self.path) if content is not None else "404"
        self.entry = Request(self.path, self.offset, fault)
        self.server.log.append(self.entry)
        self.close_connection = fault != ""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # when the client has enough
            self.answer(content or b"", fault)

    def end_headers(self) -> None:
        """Say that the connection is closed where it will be."""
        if self.close_connection:
            self.send_header("Connection", "close")
        super().end_headers()

    def answer(self, content: bytes, fault: str) -> None:
        kind, _, argument = fault.partition(" ")
        if kind in self.STATUS:
            self.send_status(int(kind), retry_after=argument)
        elif method := getattr(self, f"fault_{kind}", None):
            method(content, argument)
        else:
            self.send_file(content)

    def send_status(self, status: int, **headers: str) -> None:
        body = HTML
        self.send_response(status)
        for name, value in headers.items():
            if value:
                self.send_header(name.replace("_", "-").title(), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def send_file(self, content: bytes, *, ranges: bool = True, headers: dict[str, str] | None = None) -> None:
        self.send_head(content, ranges=ranges, headers=headers)
        self.send_body(content[self.offset :])

    def send_head(self, content: bytes, *, ranges: bool = True, headers: dict[str, str] | None = None) -> None:
        """Status line and header; `self.offset` is 0 afterwards if the whole file is to follow."""
        etag = f'"{hashlib.sha1(content).hexdigest()}"'
        changed = self.headers.get("If-Range", etag) != etag
        if not ranges or changed:
            self.offset = 0
        fields = {
            "Content-Length": str(len(content) - self.offset),
            "Content-MD5": base64.b64encode(hashlib.md5(content).digest()).decode() if self.server.sends_md5 else "",
            "ETag": etag,
        }
        if self.offset:
            fields["Content-Range"] = f"bytes {self.offset}-{len(content) - 1}/{len(content)}"
            fields["Content-MD5"] = ""
        fields |= headers or {}
        self.send_response(206 if self.offset else 200)
        for name, value in fields.items():
            if value:
                self.send_header(name, value)
        self.end_headers()

    def send_body(self, content: bytes, pause: float = 0.0, piece: int = 1 << 14) -> None:
        for start in range(0, len(content), piece):
            self.wfile.write(content[start : start + piece])
            self.entry.sent += len(content[start : start + piece])
            time.sleep(pause)

    def reset(self) -> None:
        """Close with RST instead of FIN."""
        self.wfile.flush()
        time.sleep(0.02)  # an RST overtakes what the client has not read yet
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.rfile.close()

    def fault_hang(self, content: bytes, argument: str) -> None:
        self.server.closing.wait(30)

    def fault_reset(self, content: bytes, percent: str) -> None:
        """RST before the header, or after so many percent of the body."""
        if percent:
            self.send_head(content)
            self.send_body(content[self.offset : len(content) * int(percent) // 100])
        self.reset()

    def fault_cut(self, content: bytes, percent: str) -> None:
        self.send_head(content)
        self.send_body(content[self.offset : len(content) * int(percent) // 100])

    def fault_stall(self, content: bytes, percent: str) -> None:
        self.fault_cut(content, percent)
        self.server.closing.wait(30)

    def fault_slow(self, content: bytes, argument: str) -> None:
        self.send_head(content)
        self.send_body(content[self.offset :], pause=0.01, piece=len(content) // 20 + 1)

    def fault_short(self, content: bytes, argument: str) -> None:
        self.send_file(content[:-7])

    def fault_long(self, content: bytes, argument: str) -> None:
        self.send_file(content + b"\0" * 7)

    def fault_endless(self, content: bytes, argument: str) -> None:
        """Too long without having said so: no Content-Length."""
        self.send_head(content, headers={"Content-Length": ""})
        self.send_body(content[self.offset :] + bytes(1 << 16))

    def fault_flip(self, content: bytes, argument: str) -> None:
        middle = len(content) // 2
        changed = content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]
        md5 = base64.b64encode(hashlib.md5(content).digest()).decode() if self.server.sends_md5 else ""
        self.send_file(changed, headers={"Content-MD5": md5})

    def fault_norange(self, content: bytes, argument: str) -> None:
        self.send_file(content, ranges=False)

    def fault_wrongrange(self, content: bytes, argument: str) -> None:
        """The part from elsewhere, said ("start") or not ("silent"), or of a file of another size ("total")."""
        total = len(content) + (argument == "total")
        start = self.offset - 5 if argument == "start" and self.offset else self.offset
        self.send_head(content, headers={"Content-Range": f"bytes {start}-{len(content) - 1}/{total}"})
        self.send_body((content[5:] + content[:5])[self.offset :] if argument != "total" else content[self.offset :])

    def fault_otheretag(self, content: bytes, argument: str) -> None:
        self.send_file(content, headers={"ETag": '"changed"'})

    def fault_redirect(self, content: bytes, argument: str) -> None:
        """Redirect to itself, or to the URL that is given."""
        self.send_status(302, location=argument + self.path if argument else self.path)

    def fault_html(self, content: bytes, argument: str) -> None:
        page = HTML.ljust(len(content)) if argument == "padded" else HTML
        self.offset = 0
        self.send_file(page, headers={"Content-MD5": ""})

    def fault_wrongmd5(self, content: bytes, argument: str) -> None:
        self.send_file(content, headers={"Content-MD5": "AAAAAAAAAAAAAAAAAAAAAA=="})

    def fault_gzip(self, content: bytes, argument: str) -> None:
        self.send_file(content, headers={"Content-Encoding": "gzip"})

    def fault_garbage(self, content: bytes, argument: str) -> None:
        self.wfile.write(b"220 smtp.example.org ready\r\n")


class MisbehavingServer(http.server.ThreadingHTTPServer):
    """Serves the files until the `with` block ends; `url` is the base of their paths."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, files: dict[str, bytes], *, sends_md5: bool = False) -> None:
        self.files = files
        self.sends_md5 = sends_md5
        self.faults: dict[str, list[str]] = {}
        self.log: list[Request] = []
        self.closing = threading.Event()
        self.faults_lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def next_fault(self, path: str) -> str:
        with self.faults_lock:
            faults = self.faults.get(path, [])
            if len(faults) == 2 and faults[1] == ALWAYS:
                return faults[0]
            return faults.pop(0) if faults else ""

    def handle_error(self, *arguments: object) -> None:
        """A client that left is no error."""

    def __enter__(self) -> "MisbehavingServer":
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.shutdown()
        self.thread.join()
        self.server_close()
