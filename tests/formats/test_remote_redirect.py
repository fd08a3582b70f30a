"""Redirects of servers are followed to http and https alone."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from titokctl.errors import UserError
from titokctl.formats.remote_file import fetch


@pytest.fixture
def server() -> Iterator[tuple[str, dict[str, str]]]:
    """A server whose addresses redirect as the dictionary says; any other address holds "here"."""
    targets: dict[str, str] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            target = targets.get(self.path)
            self.send_response(302 if target else 200)
            if target:
                self.send_header("Location", target)
            self.send_header("Content-Length", "0" if target else "4")
            self.end_headers()
            if not target:
                self.wfile.write(b"here")

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{found.server_port}", targets
        found.shutdown()
        thread.join()


def test_a_redirect_on_the_web_is_followed(server: tuple[str, dict[str, str]]) -> None:
    address, targets = server
    targets["/moved"] = "/there"
    assert fetch(f"{address}/moved") == b"here"


@pytest.mark.parametrize("target", ["ftp://127.0.0.1/a", "file:///etc/passwd", "FILE:///etc/passwd", "data:,a"])
def test_a_redirect_elsewhere_is_refused(server: tuple[str, dict[str, str]], target: str) -> None:
    address, targets = server
    targets["/moved"] = target
    with pytest.raises(UserError):
        fetch(f"{address}/moved")
