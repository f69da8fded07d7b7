"""A server that speaks the hub's HTTP protocol to the real clients, and can fail as servers do.

What is served is what huggingface_hub asks for: the facts and the tree of a repository, and its files at a
revision. Weights are moved to another host, as the hub moves them to its CDN, small files are sent at once.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest

from semobridge_ext.clip.remote import FETCHES

Files = dict[str, bytes]  # by name


def commit_of(files: Files) -> str:
    digest = hashlib.sha1()
    for name, data in sorted(files.items()):
        digest.update(name.encode() + hashlib.sha1(data).digest())
    return digest.hexdigest()


class Repository:
    """Files at one commit after the other; `main` is the last."""

    def __init__(self, files: Files, *, token: str | None = None, gated: bool = False) -> None:
        self.versions = [files]
        self.token, self.gated = token, gated  # what a reader must show; None: open to all

    @property
    def commit(self) -> str:
        return commit_of(self.versions[-1])

    def at(self, revision: str) -> Files | None:
        if revision == "main":
            return self.versions[-1]
        return next((files for files in self.versions if commit_of(files) == revision), None)


def _tree(files: Files, folder: str) -> list[dict[str, Any]]:
    """The entries right below a folder, as the hub lists them."""
    below = {
        name.removeprefix(folder): data for name, data in sorted(files.items()) if name.startswith(folder)
    }
    folders = dict.fromkeys(name.partition("/")[0] for name in below if "/" in name)
    found = [{"type": "directory", "path": folder + name, "size": 0, "oid": "0" * 40} for name in folders]
    for name, data in below.items():
        if "/" not in name:
            oid = hashlib.sha1(data).hexdigest()
            found.append({"type": "file", "path": folder + name, "size": len(data), "oid": oid})
    return found


@dataclass
class Request:
    """One that was answered."""

    method: str
    path: str
    range: str | None
    token: str | None
    host: str
    status: int = 0
    sent: int = 0  # bytes of the body


def _is_large(name: str) -> bool:
    return name.endswith((".safetensors", ".bin"))


class Hub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self.failures: dict[str, list[int]] = {}  # statuses to answer first, by a part of the path
        self.cuts: list[int] = []  # bytes of the next bodies from the CDN, whose connection then breaks
        self.changes: dict[str, Any] = {}  # headers of the CDN's that are told otherwise; None: left out
        self.body: Any = None  # what the CDN sends in place of the bytes it was asked for
        self.ignores_ranges = self.stalls = False  # of the CDN
        self.leaving = threading.Event()
        self.waits: list[float] = []  # seconds that a client wanted to wait

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def cdn(self) -> str:
        return f"http://localhost:{self.server_port}/cdn"

    def handle_error(self, *args: object) -> None:
        """Quiet: clients hang up, as they may."""

    def asked(self, part: str) -> list[Request]:
        return [one for one in self.requests if part in one.path]


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer()

    def _answer(self) -> None:
        path = urllib.parse.unquote(self.path.partition("?")[0])
        said = self.headers.get("Authorization", "")
        self.note = Request(
            self.command, path, self.headers.get("Range"), said.removeprefix("Bearer ") or None,
            self.headers.get("Host", "").partition(":")[0],
        )  # fmt: skip
        self.server.requests.append(self.note)
        for part, statuses in self.server.failures.items():
            if part in path and statuses:
                return self._send(statuses.pop(0), b"{}", {"Retry-After": "2"})
        if path.startswith("/cdn/"):
            return self._send_blob(path.removeprefix("/cdn/"))
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+)(/.+)?)?", path)
        if match:
            folder = f"{match[4].strip('/')}/" if match[4] else ""
            return self._send_facts(match[1], match[2] or "revision", match[3] or "main", folder)
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if match:
            return self._send_file(match[1], match[2], match[3])
        self._send(404, b"{}", {})

    def _found(self, name: str, revision: str) -> tuple[Repository, Files] | None:
        """The repository and its files, or None and the answer that refuses it."""
        repository = self.server.repositories.get(name)
        if repository is None:
            self._refuse(401, "RepoNotFound", "Repository not found")
        elif repository.token is not None and self.note.token != repository.token and not repository.gated:
            self._refuse(401, "RepoNotFound", "Repository not found")  # a private one looks so
        elif (files := repository.at(revision)) is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return repository, files
        return None

    def _send_facts(self, name: str, what: str, revision: str, folder: str) -> None:
        found = self._found(name, revision)
        if found is None:
            return
        facts: Any = _tree(found[1], folder)
        if what == "revision":
            siblings = [{"rfilename": file} for file in sorted(found[1])]
            facts = {"id": name, "modelId": name, "sha": commit_of(found[1]), "siblings": siblings}
        self._send(200, json.dumps(facts).encode(), {"Content-Type": "application/json"})

    def _send_file(self, name: str, revision: str, file: str) -> None:
        found = self._found(name, revision)
        if found is None:
            return
        repository, files = found
        if repository.gated and self.note.token != repository.token:
            status = 403 if self.note.token else 401
            return self._refuse(status, "GatedRepo", f"Access to {name} is restricted")
        if file not in files:
            return self._refuse(404, "EntryNotFound", "Entry not found")
        data, facts = files[file], {"X-Repo-Commit": commit_of(files)}
        if not _is_large(file):
            return self._send_part(data, {**facts, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'})
        digest = hashlib.sha256(data).hexdigest()
        facts |= {"X-Linked-ETag": f'"{digest}"', "X-Linked-Size": str(len(data))}
        self._send(302, b"", {**facts, "Location": f"{self.server.cdn}/{digest}"})

    def _send_blob(self, digest: str) -> None:
        versions = (files for one in self.server.repositories.values() for files in one.versions)
        for data in (data for files in versions for data in files.values()):
            if hashlib.sha256(data).hexdigest() == digest:
                if self.server.stalls:
                    self.server.leaving.wait(30)
                return self._send_part(data, {"ETag": f'"{digest}"'}, is_cdn=True)
        self._send(404, b"", {})

    def _send_part(self, data: bytes, headers: dict[str, str], is_cdn: bool = False) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.note.range or "")
        if wanted and int(wanted[1]) >= len(data):
            return self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
        status, part, headers = 200, data, {**headers, "Accept-Ranges": "bytes"}
        if wanted and not (is_cdn and self.server.ignores_ranges):
            first, last = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
            status, part = 206, data[first : last + 1]
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        cut = None
        if is_cdn:
            if self.server.body is not None:
                part = self.server.body(part)
            headers = {k: v for k, v in {**headers, **self.server.changes}.items() if v is not None}
            if self.command == "GET" and self.server.cuts:
                cut = self.server.cuts.pop(0)
        self._send(status, part, headers, cut)

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._send(
            status,
            json.dumps({"error": message}).encode(),
            {"X-Error-Code": code, "X-Error-Message": message},
        )

    def _send(self, status: int, body: bytes, headers: dict[str, str], cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.note.status = status
        if self.command == "HEAD":
            return
        part = body if cut is None else body[:cut]
        self.wfile.write(part)
        self.note.sent = len(part)
        if cut is not None:
            self.close_connection = True


@contextmanager
def running_hub() -> Iterator[Hub]:
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield hub
        finally:
            hub.leaving.set()
            hub.shutdown()
            thread.join()


@contextmanager
def connected(hub: Hub, monkeypatch: pytest.MonkeyPatch, home: Any) -> Iterator[None]:
    """This process's clients talk to the server alone, start without tokens and caches, and never sleep."""
    import huggingface_hub.file_download as downloads
    from huggingface_hub import constants
    from huggingface_hub.utils import _http, close_session

    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)  # what this package and a child process read
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)  # what huggingface_hub read at its import
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for module in (_http, downloads):
        clock = SimpleNamespace(**{**vars(module.time), "sleep": hub.waits.append})
        monkeypatch.setattr(module, "time", clock)
    close_session()
    try:
        yield
    finally:
        hub.leaving.set()
        for (
            thread
        ) in threading.enumerate():  # what a deadline left behind would close the next test's session
            if thread.name == FETCHES:
                thread.join(20)
        close_session()
