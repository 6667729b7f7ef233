"""Other people's clients, bundled and served from an origin that is not the server's."""

from __future__ import annotations

import functools
import os
import subprocess
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.chromium import Server, running_server
from tests.static.conftest import camera_file, chromium, new_tab, page

__all__ = ["camera_file", "chromium", "new_tab", "page"]

HERE = Path(__file__).parent
MODULES = HERE / "node_modules"
TOKEN = "a secret with spaces"
PAGE = """<!doctype html><link rel="icon" href="data:,"><video id="output" autoplay muted></video>
<script type="module" src="clients.js"></script>"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_) -> None:
        pass


@pytest.fixture(scope="package")
def clients_page(tmp_path_factory) -> Iterator[str]:
    """Address of a page that has them all."""
    if not MODULES.is_dir():
        if os.environ.get("LCMIRROR_REQUIRE_CLIENTS"):
            pytest.fail("LCMIRROR_REQUIRE_CLIENTS is set and the clients are missing: run npm ci in tests/clients.")
        pytest.skip("the npm clients are missing: run npm ci in tests/clients (needs Node.js) to test with them")
    folder = tmp_path_factory.mktemp("clients")
    esbuild = [MODULES / ".bin" / "esbuild", HERE / "clients.js", "--bundle", "--format=esm", "--log-level=warning"]
    subprocess.run([*esbuild, f"--outfile={folder / 'clients.js'}"], check=True)
    (folder / "index.html").write_text(PAGE)
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


@pytest.fixture(scope="package", params=[None, TOKEN], ids=["open", "token"])
def guarded(request, clients_page) -> Iterator[tuple[Server, str | None]]:
    """A server that lets that page in, without and with a token; and the token."""
    options = [] if request.param is None else ["--token", request.param]
    with running_server("--allow-origin", clients_page, *options) as server:
        yield server, request.param
