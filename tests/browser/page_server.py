"""A static Space as the Hub serves it, and what its page fetches from a CDN and the Hub, answered from folders."""

import json
import re
import threading
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import yaml
from playwright.sync_api import Route


TYPES = {".mjs": "text/javascript", ".js": "text/javascript", ".wasm": "application/wasm"}
SHARED = {"access-control-allow-origin": "*", "cross-origin-resource-policy": "cross-origin"}


class PageServer:
    """A folder served with the headers that the front matter of its README.md asks for."""

    def __init__(self, folder: Path) -> None:
        front_matter = (folder / "README.md").read_text(encoding="utf-8").split("---\n")[1]
        self.settings = yaml.safe_load(front_matter)
        headers = self.settings["custom_headers"]

        class Handler(SimpleHTTPRequestHandler):
            def end_headers(self) -> None:
                for name, value in headers.items():
                    self.send_header(name, value)
                super().end_headers()

            def log_message(self, *arguments: object) -> None:
                pass

            def copyfile(self, *arguments: object) -> None:
                with suppress(ConnectionError):  # transformers.js asks for a size and then hangs up
                    super().copyfile(*arguments)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder))
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/{self.settings['app_file']}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def answer_from_npm(modules: Path, route: Route) -> None:
    """Answer for the CDN with the file of the package, if it is of that version."""
    found = re.fullmatch(r"https://cdn\.jsdelivr\.net/npm/((?:@[^/]+/)?[^@/]+)@([^/]+)/(.*)", route.request.url)
    package, version, name = found.groups()
    installed = json.loads((modules / package / "package.json").read_text(encoding="utf-8"))["version"]
    file = modules / package / name
    if version == installed and file.is_file():
        route.fulfill(path=file, headers=SHARED | {"content-type": TYPES[file.suffix]})
    else:
        route.fulfill(status=404)


def answer_from_folder(folder: Path, repository: str, route: Route) -> None:
    """Answer for the Hub, a part of a file where only that is asked for."""
    prefix, url = f"https://huggingface.co/{repository}/resolve/main/", route.request.url
    file = folder / url.removeprefix(prefix)
    if not url.startswith(prefix) or not file.is_file():
        route.fulfill(status=404, headers=SHARED)
        return
    content = file.read_bytes()
    if route.request.headers.get("range") == "bytes=0-0":
        part = {"content-range": f"bytes 0-0/{len(content)}", "access-control-expose-headers": "content-range"}
        route.fulfill(status=206, body=content[:1], headers=SHARED | part)
    else:
        route.fulfill(body=content, headers=SHARED)
