"""An HTTP server on 127.0.0.1 that breaks connections, forgets ranges, and says no, as it is told."""

import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server:
    """Serves `files`; `broken[name]` answers break off after so many bytes, `refused[name]` ones say 503.

    What is not there is `missing`: 404, or what object stores say. Without `etags` files have no version.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.broken: dict[str, list[int]] = {}
        self.refused: Counter[str] = Counter()
        self.missing = 404
        self.ranges = self.lengths = self.etags = True
        self.asked: list[tuple[str, str | None]] = []
        self.queries: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        """Stop; a second time does nothing."""
        if not self._thread.is_alive():
            return
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        name, wanted = request.path.partition("?")[0].lstrip("/"), request.headers.get("Range")
        self.asked.append((name, wanted))
        self.queries.append(request.path.partition("?")[2])
        if self.refused[name] > 0 or name not in self.files:
            request.send_error(503 if self.refused[name] > 0 else self.missing)
            self.refused[name] -= 1
            return
        body = self.files[name]
        first, _, last = wanted.removeprefix("bytes=").partition("-") if wanted and self.ranges else ("0", "", "")
        begin, size, whole = int(first), len(body), hash(body)
        body = body[: int(last) + 1] if last else body
        request.send_response(206 if begin or last else 200)
        if begin or last:
            request.send_header("Content-Range", f"bytes {begin}-{len(body) - 1}/{size}")
        if self.lengths:
            request.send_header("Content-Length", str(len(body) - begin))
        if self.etags:
            request.send_header("ETag", f'"{whole}"')
        request.end_headers()
        breaks = self.broken.get(name, [])
        request.wfile.write(body[begin : begin + breaks.pop(0)] if breaks else body[begin:])
