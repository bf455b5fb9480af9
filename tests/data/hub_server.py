"""A hub for tests: data sets and models are folders `owner/name` on this machine."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "c0ffee" * 6 + "beef"


@contextmanager
def serve(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve while the block lasts; give the address, and the list of what was asked for."""
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, root, asked))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Hub(BaseHTTPRequestHandler):
    """Answers what the libraries ask to learn a commit, list files and read them."""

    def __init__(self, root: Path, asked: list[str], *args) -> None:
        self.root, self.asked = root, asked
        super().__init__(*args)

    def do_GET(self) -> None:
        path, _, _ = self.path.partition("?")
        self.asked.append(f"{self.command} {path}")
        parts = path.removeprefix("/api").strip("/").removeprefix("datasets/").split("/")
        repo = self.root.joinpath(*parts[:2])
        if not repo.is_dir():
            self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif path.startswith("/api/") and parts[2:3] == ["tree"]:
            self.answer(200, json.dumps(listing(repo, Path(*parts[4:]))).encode())
        elif path.startswith("/api/"):
            files = [{"rfilename": file["path"]} for file in listing(repo, Path())]
            about = {"id": "/".join(parts[:2]), "sha": COMMIT, "siblings": files, "tags": []}
            self.answer(200, json.dumps(about | {"private": False}).encode())
        else:  # owner/name/resolve/commit/...
            self.send_file(repo.joinpath(*parts[4:]))

    do_HEAD = do_GET

    def send_file(self, file: Path) -> None:
        if not file.is_file():
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        data = file.read_bytes()
        headers = {"ETag": f'"{sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
        wanted = self.headers.get("Range")
        if wanted is None:
            return self.answer(200, data, headers)
        first, last = (int(end) for end in wanted.removeprefix("bytes=").split("-"))
        data, size = data[first : last + 1], len(data)
        headers["Content-Range"] = f"bytes {first}-{first + len(data) - 1}/{size}"
        return self.answer(206, data, headers)

    def answer(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, format: str, *args) -> None:
        """Say nothing."""


def listing(repo: Path, below: Path) -> list[dict]:
    """Describe the files and folders in a folder of a repository."""
    found = []
    for path in sorted((repo / below).iterdir()):
        entry = {"path": path.relative_to(repo).as_posix(), "oid": "0" * 40}
        kind, size = ("directory", 0) if path.is_dir() else ("file", path.stat().st_size)
        found.append(entry | {"type": kind, "size": size})
    return found
