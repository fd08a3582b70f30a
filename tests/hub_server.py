"""A server on 127.0.0.1 that plays the Hugging Face Hub."""

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

COMMIT = "0" * 40


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the Hub as a download needs: /<repository>/resolve/<revision>/<file>."""

    root: Path
    requests: list[str]

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        self.requests.append(f"{self.command} {self.path}")
        owner, name, _, _, file = (*self.path.lstrip("/").split("/", 4), "", "", "", "")[:5]
        path = self.root / owner / name / file
        if not path.is_file():
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = path.read_bytes()
        self.send_response(200)
        self.send_header("ETag", f'"{sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serve(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve root/<owner>/<name>/<file>; gives the address and the list of requests, which grows."""
    handler = type("ThisHub", (Hub,), {"root": root, "requests": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler.requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def online(address: str) -> dict[str, str]:
    """The environment in which a new process asks this server instead of the Hub, and nobody else."""
    found = {"TITOKCTL_OFFLINE": "", "HF_HUB_OFFLINE": "", "HF_ENDPOINT": address, "NO_PROXY": "127.0.0.1"}
    return found | {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
