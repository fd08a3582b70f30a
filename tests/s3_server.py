"""A local S3 server (moto's), and a gateway before it that fails as stores and networks do."""

import http.client
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from command_line import PATIENCE_S

BUCKET = "bucket"
LATE_S, PATIENT_S = 2.0, 0.7  # of the gateway, and how long `impatient` clients wait for a reply


class Gateway:
    """Forwards requests to the server.

    Attributes:
        url: the address to use in place of the server's.
        faults: for a method, what happens to its next requests: "503", "hang up" (nothing is forwarded), "lose reply"
            (it is forwarded, and the connection ends before the reply), "silence" (nothing is forwarded, and no reply
            comes for LATE_S seconds), or "late" (it is forwarded, and the reply comes after LATE_S seconds).
        asked: the methods of all requests, in order.
        written: the keys of all PUTs that the server accepted, in order.
    """

    def __init__(self, server: str) -> None:
        self.server, self.faults, self.written = server, defaultdict[str, list[str]](list), list[str]()
        self.asked = list[str]()
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                gateway.forward(self)

            do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_any

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def forward(self, request: BaseHTTPRequestHandler) -> None:
        length = int(request.headers.get("Content-Length") or 0)
        if "100-continue" in request.headers.get("Expect", ""):
            request.send_response_only(100)
            request.end_headers()
        body = request.rfile.read(length)
        waiting = self.faults[request.command]
        fault = waiting.pop(0) if waiting else ""
        self.asked.append(request.command)
        if fault == "silence":
            time.sleep(LATE_S)
        if fault in ("hang up", "silence"):
            request.close_connection = True
            return
        if fault == "503":
            request.send_response(503)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        connection = http.client.HTTPConnection(self.server, timeout=PATIENCE_S)
        headers = {n: v for n, v in request.headers.items() if n.lower() not in ("expect", "connection")}
        connection.request(request.command, request.path, body, headers)
        reply = connection.getresponse()
        data = reply.read()
        if request.command == "PUT" and reply.status == 200:
            self.written.append(request.path.partition("?")[0])
        if fault == "late":
            time.sleep(LATE_S)
        if fault in ("lose reply", "late"):
            request.close_connection = True
            return
        request.send_response(reply.status)
        for name, value in reply.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length", "date", "server"):
                request.send_header(name, value)
        is_head = request.command == "HEAD"
        request.send_header("Content-Length", str(reply.getheader("Content-Length", 0) if is_head else len(data)))
        request.end_headers()
        if not is_head:
            request.wfile.write(data)

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@contextmanager
def s3() -> Iterator[Gateway]:
    """Run a server with one empty bucket; boto finds the gateway through the environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                put = urllib.request.Request(f"http://127.0.0.1:{port}/{BUCKET}", method="PUT")
                urllib.request.urlopen(put, timeout=PATIENCE_S).close()
                break
            except OSError:
                assert server.poll() is None
                assert time.monotonic() < until
                time.sleep(0.1)
        gateway = Gateway(f"127.0.0.1:{port}")
        before = dict(os.environ)
        os.environ |= {
            "AWS_ENDPOINT_URL": gateway.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        try:
            yield gateway
        finally:
            os.environ.clear()
            os.environ |= before
            gateway.close()
            server.kill()


@contextmanager
def impatient() -> Iterator[None]:
    """Let clients that are made now wait `PATIENT_S` for a reply; fsspec's own configuration says so."""
    from fsspec.config import conf

    before = dict(conf)
    conf["s3"] = {"config_kwargs": {"read_timeout": PATIENT_S}}
    try:
        yield
    finally:
        conf.clear()
        conf.update(before)
