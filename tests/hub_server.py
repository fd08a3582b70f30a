"""A server on 127.0.0.1 that plays the Hugging Face Hub."""

import base64
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0" * 40
TOKEN, FOREIGN_TOKEN = "hf_owner", "hf_stranger"  # of alice, and of somebody who may only read
_LARGE = (".safetensors", ".h5")


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the Hub as downloads and uploads need.

    Downloads: /<repository>/resolve/<revision>/<file>, also a range of it, and lists of files. Uploads: a repository is
    made, its files are named, the large ones are put into the large file storage, and a commit names all. Data sets
    have the prefix datasets/. The commit of a repository without titokctl.json is always COMMIT.
    """

    root: Path
    requests: list[str]
    address: str

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        parts = self.path.lstrip("/").split("/")
        if parts[:1] == ["api"]:
            self.describe(parts[1:])
        else:
            self.answer(body=True)

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.requests.append(f"POST {self.path}")
        path = urlsplit(self.path).path
        if path == "/api/validate-yaml":
            self.reply({"errors": [], "warnings": []})
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            is_known = self.headers.get("Authorization") == f"Bearer {FOREIGN_TOKEN}"
            self.reply({"error": "not yours"}, 403 if is_known else 401)
        elif path == "/api/repos/create":
            self.create(json.loads(data))
        elif "/preupload/" in path:
            files = [{"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(_LARGE) else "regular",
                      "shouldIgnore": False} for f in json.loads(data)["files"]]  # fmt: skip
            self.reply({"files": files})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = [{"oid": o["oid"], "size": o["size"],
                        "actions": {"upload": {"href": f"{self.address}/storage/{o['oid']}"}}}
                       for o in json.loads(data)["objects"]]  # fmt: skip
            self.reply({"objects": objects})
        elif "/commit/" in path:
            self.commit(path, [json.loads(line) for line in data.splitlines()])
        else:
            self.reply({"error": "no such address"}, 404)

    def do_PUT(self) -> None:
        self.requests.append(f"PUT {self.path}")
        storage = self.root / ".storage"
        storage.mkdir(parents=True, exist_ok=True)
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        (storage / sha256(data).hexdigest()).write_bytes(data)
        self.reply({})

    def create(self, wanted: dict[str, Any]) -> None:
        kind = "datasets/" if wanted.get("type") == "dataset" else ""
        folder = self.root / f"{kind}{wanted['organization']}" / wanted["name"]
        is_there = folder.is_dir()
        folder.mkdir(parents=True, exist_ok=True)
        url = f"{self.address}/{kind}{wanted['organization']}/{wanted['name']}"
        self.reply({"url": url} | ({"error": "exists"} if is_there else {}), 409 if is_there else 200)

    def commit(self, path: str, operations: list[dict[str, Any]]) -> None:
        folder = self.folder(path.split("/")[2:5])
        for one in operations:
            value = one["value"]
            if one["key"] == "file":
                (folder / value["path"]).write_bytes(base64.b64decode(value["content"]))
            elif one["key"] == "lfsFile":
                (folder / value["path"]).write_bytes((self.root / ".storage" / value["oid"]).read_bytes())
        oid, where = self.commit_of(folder), "/".join(path.split("/")[3:5])
        self.reply({"commitUrl": f"{self.address}/{where}/commit/{oid}", "commitOid": oid, "success": True})

    def describe(self, parts: list[str]) -> None:
        """Answer /api/models/<repository> or /api/datasets/<repository>, with a revision or without."""
        self.requests.append(f"GET {self.path}")
        folder = self.folder([parts[0], *(part.partition("?")[0] for part in parts[1:3])])
        if not folder.is_dir():
            self.reply({"error": "Repository not found"}, 404, "RepoNotFound")
            return
        if parts[3:4] == ["tree"]:
            below = folder / "/".join(urlsplit("/".join(parts[5:])).path.split("/"))
            found = below.rglob("*") if "recursive=true" in self.path else below.glob("*")
            self.reply([self.entry(path, folder) for path in sorted(found)])
            return
        files = [{"rfilename": f.name, "size": f.stat().st_size} for f in sorted(folder.iterdir()) if f.is_file()]
        name = "/".join(folder.parts[-2:])
        self.reply({"id": name, "sha": self.commit_of(folder), "siblings": files, "tags": [], "private": False})

    def folder(self, parts: list[str]) -> Path:
        return self.root / ("datasets" if parts[0] == "datasets" else "") / parts[1] / parts[2]

    def commit_of(self, folder: Path) -> str:
        files = [f for f in sorted(folder.iterdir()) if f.is_file()]
        return sha256(b"".join(f.name.encode() + f.read_bytes() for f in files)).hexdigest()[:40]

    def reply(self, value: object, status: int = 200, code: str = "") -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def answer(self, body: bool) -> None:
        self.requests.append(f"{self.command} {self.path}")
        prefix, _, rest = self.path.lstrip("/").partition("/")
        parts = rest if prefix == "datasets" else self.path.lstrip("/")
        owner, name, _, _, file = (*parts.split("/", 4), "", "", "", "")[:5]
        folder = self.root / ("datasets" if prefix == "datasets" else "") / owner / name
        path = folder / unquote(file)
        if not path.is_file():
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        whole = data = path.read_bytes()
        if wanted := self.headers.get("Range"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            data = data[int(first) : int(last) + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{int(first) + len(data) - 1}/{len(whole)}")
        else:
            self.send_response(200)
        self.send_header("ETag", f'"{sha256(whole).hexdigest()}"')
        self.send_header("X-Repo-Commit", self.commit_of(folder) if (folder / "titokctl.json").exists() else COMMIT)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def entry(self, path: Path, repository: Path) -> dict[str, object]:
        """Return what a list says about a file or folder."""
        shared: dict[str, object] = {"path": path.relative_to(repository).as_posix()}
        if path.is_dir():
            return shared | {"type": "directory", "oid": "1" * 40, "size": 0}
        oid = sha256(path.read_bytes()).hexdigest()[:40]
        return shared | {"type": "file", "oid": oid, "size": path.stat().st_size}

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serve(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve root/<owner>/<name>/<file>; gives the address and the list of requests, which grows."""
    handler = type("ThisHub", (Hub,), {"root": root, "requests": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    handler.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield handler.address, handler.requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def online(address: str) -> dict[str, str]:
    """The environment in which a new process asks this server instead of the Hub, and nobody else."""
    found = {"TITOKCTL_OFFLINE": "", "HF_HUB_OFFLINE": "", "HF_ENDPOINT": address, "NO_PROXY": "127.0.0.1"}
    return found | {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
