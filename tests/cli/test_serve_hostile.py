"""serve: requests that it refuses, each with one line of JSON and no traceback."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.images import command
from tests.support.served import make

pytest.importorskip("pyarrow", reason="needed: pip install pyarrow")
pytest.importorskip("starlette", reason="needed: pip install starlette")
testclient = pytest.importorskip("starlette.testclient", reason="needed: pip install httpx2")

from semobridge_ext.cli import serve_app  # noqa: E402 - behind the skips
from semobridge_ext.cli.commands import serve  # noqa: E402
from semobridge_ext.cli.serve_session import Session  # noqa: E402

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("hostile"), centred=False) / "feats"


@pytest.fixture(scope="module")
def session(folder: Path) -> Session:
    return Session(folder, max_pixels=10_000)


@pytest.fixture(scope="module")
def client(session: Session) -> Any:
    app = serve_app.make_app(session)
    return testclient.TestClient(app, base_url="http://127.0.0.1:8765", raise_server_exceptions=False)


def refused(answer: Any, status: int, *parts: str) -> None:
    assert answer.status_code == status, answer.text
    value = answer.json()
    assert list(value) == ["error"] and value["error"].startswith("serve: ")
    for part in (*parts, "; "):
        assert part in value["error"], value
    for word in ("Traceback", "\n", 'File "', "site-packages"):
        assert word not in value["error"]


def picture(width: int, height: int) -> str:
    from PIL import Image

    data = io.BytesIO()
    Image.new("L", (width, height)).save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()


BAD = {
    "no JSON": (b"{", "the body must be JSON"),
    "no UTF-8": (b"\xff\xfe", "the body must be JSON"),
    "nested": (b"[" * 100_000, "nested too deeply"),
    "a long number": (b'{"text": "a", "k": ' + b"9" * 5000 + b"}", "the body must be JSON"),
    "a list": (b"[]", "must be a JSON object, got list"),
    "nothing": (b"{}", "must hold a text or an image, got neither"),
    "blank": (b'{"text": " "}', "must hold a text or an image"),
    "an unknown word": (b'{"text": "a", "path": "/etc/passwd"}', "got 'path'"),
    "a number as text": (b'{"text": 5}', "text must be a text"),
    "half a character": (b'{"text": "\\ud800"}', "text must be a text"),
    "a long text": (json.dumps({"text": "a" * 10_001}).encode(), "got a text of 10001 letters"),
    "NaN as weight": (b'{"text": "a", "weight": NaN}', "weight must lie in 0..1, got float nan"),
    "a weight above 1": (b'{"text": "a", "weight": 1.5}', "weight must lie in 0..1"),
    "true as weight": (b'{"text": "a", "weight": true}', "weight must lie in 0..1"),
    "NaN as group": (b'{"text": "a", "group": NaN}', "group must lie in 0..1"),
    "k of 0": (b'{"text": "a", "k": 0}', "k must be a whole number from 1 to 1000"),
    "k of millions": (b'{"text": "a", "k": 5000000}', "k must be a whole number from 1 to 1000"),
    "k of 2.0": (b'{"text": "a", "k": 2.0}', "k must be a whole number"),
    "an unknown column": (b'{"text": "a", "filters": {"colour": "red"}}', "columns of image_path, label"),
    "filters as a list": (b'{"text": "a", "filters": ["label"]}', "filters must map columns to texts"),
    "a number to filter by": (b'{"text": "a", "filters": {"label": 3}}', "filters must map columns"),
    "no base64": (b'{"image": "%%%"}', "image must be a text in base64"),
    "a path as image": (b'{"image": "/etc/passwd!"}', "image must be a text in base64"),
    "no image": (b'{"image": "c2VjcmV0"}', "got an upload (cannot identify image file)"),
    "an empty image": (b'{"image": ""}', "image must be a readable image, got an upload"),
    "a large image": (json.dumps({"image": picture(200, 100)}).encode(), "limit of 10000 (--max-pixels)"),
    "a strip": (json.dumps({"image": picture(2000, 1)}).encode(), "a strip beyond 1:256"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_queries(client: Any, case: str) -> None:
    body, part = BAD[case]
    refused(client.post("/api/search", content=body, headers=JSON), 400, part)


def test_other_kinds_of_content(client: Any) -> None:
    """A foreign page's form can send these without asking first."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        answer = client.post("/api/search", content=b'{"text": "a"}', headers={"Content-Type": kind})
        refused(answer, 415, "Content-Type must be application/json")
    kind = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert client.post("/api/search", content=b'{"text": "a"}', headers=kind).status_code == 200


def test_huge_uploads_are_read_no_further_than_the_limit(client: Any, monkeypatch) -> None:
    monkeypatch.setattr(serve_app, "MOST_BYTES", 10_000)
    refused(client.post("/api/search", content=b" " * 10_001, headers=JSON), 413, "of at most 10000 bytes")
    whole = b'{"text": "a"}'.ljust(10_000)
    assert client.post("/api/search", content=whole, headers=JSON).status_code == 200


@pytest.mark.parametrize(("told", "reads"), [(None, 11), (b"10000000000", 0), (b"5", 11), (b"-7", 11)])
def test_an_endless_upload_ends(session: Session, monkeypatch, told: bytes | None, reads: int) -> None:
    """Whatever length it claims: it is left at the part that passes the limit."""
    monkeypatch.setattr(serve_app, "MOST_BYTES", 10_000)
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    headers += [] if told is None else [(b"content-length", told)]
    scope = {"type": "http", "method": "POST", "path": "/api/search", "headers": headers, "scheme": "http"}
    taken, sent = 0, []

    async def receive() -> dict[str, Any]:
        nonlocal taken
        taken += 1
        assert taken < 1000, "it reads on"
        return {"type": "http.request", "body": b" " * 1000, "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    scope |= {"query_string": b"", "root_path": "", "http_version": "1.1", "raw_path": b"/api/search"}
    asyncio.run(serve_app.make_app(session)(scope, receive, send))
    assert sent[0]["status"] == 413 and taken == reads


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8765", "127.0.0.1.evil.example", "[evil]", ""]
)
def test_foreign_names_are_refused(client: Any, host: str) -> None:
    """A page elsewhere can make its own name lead to this machine, and then read what it gets."""
    for path in ("/", "/api/info", "/image/0", "/page.js"):
        refused(client.get(path, headers={"Host": host}), 421, "Host must be an address, localhost")


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8765", "localhost:1", "LOCALHOST", "[::1]:8765", "192.168.0.7:80"]
)
def test_own_names_are_answered(client: Any, host: str) -> None:
    assert client.get("/api/info", headers={"Host": host}).status_code == 200


def test_the_name_that_it_is_bound_to(session: Session) -> None:
    app = serve_app.make_app(session, "photos.lan")
    named = testclient.TestClient(app, base_url="http://photos.lan:8765")
    assert named.get("/api/info").status_code == 200
    refused(named.get("/api/info", headers={"Host": "other.lan"}), 421, "photos.lan")


def test_foreign_pages_are_refused(client: Any) -> None:
    for origin in ("http://evil.example", "null", "https://127.0.0.1:8765", "http://127.0.0.1:80"):
        answer = client.post("/api/search", json={"text": "a"}, headers={"Origin": origin})
        refused(answer, 403, "Origin must be the page of serve itself")
        assert "access-control-allow-origin" not in answer.headers
    own = {"Origin": "http://127.0.0.1:8765"}
    assert client.post("/api/search", json={"text": "a"}, headers=own).status_code == 200


def test_an_unexpected_error_tells_nothing(client: Any, session: Session, monkeypatch) -> None:
    def fail() -> None:
        raise RuntimeError("secret of /home")

    monkeypatch.setattr(session, "info", fail)
    answer = client.get("/api/info")
    refused(answer, 500, "unexpected RuntimeError")
    assert "secret" not in answer.text


# -- the command -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["starlette", "uvicorn"])
def test_without_the_extra(folder: Path, monkeypatch, capsys, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    assert command("serve", folder) == 2
    told = capsys.readouterr().err
    assert f"got no {name}; pip install 'semobridge-ext[serve]'" in told and told.count("\n") == 1


def test_a_port_that_is_taken(folder: Path, capsys) -> None:
    pytest.importorskip("uvicorn", reason="needed: pip install uvicorn")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert command("serve", folder, "--port", port) == 2
    assert f"must be free to listen on, got 127.0.0.1:{port}" in capsys.readouterr().err
    assert command("serve", folder, "--port", 65536) == 2
    assert "from 0 to 65535" in capsys.readouterr().err


def test_shards_that_cannot_be_served(folder: Path, tmp_path: Path, capsys) -> None:
    import shutil

    import numpy as np

    pytest.importorskip("uvicorn", reason="needed: pip install uvicorn")
    assert command("serve", tmp_path, "--port", 0) == 2
    assert "SHARDS must be a folder with img_emb" in capsys.readouterr().err
    for case, part in (("nan", "SHARDS must be finite"), ("wide", "must be of one width, got 192 in")):
        shutil.copytree(folder, tmp_path / case)
        (tmp_path / case / "shards.jsonl").unlink()  # its fingerprints are of other rows
        file = tmp_path / case / "img_emb" / "img_emb_1.npy"
        rows = np.load(file)
        np.save(file, np.full_like(rows, np.nan) if case == "nan" else rows[:, :100])
        assert command("serve", tmp_path / case, "--port", 0) == 2
        assert part in capsys.readouterr().err
    (tmp_path / "nan" / "settings.json").unlink()
    assert command("serve", tmp_path / "nan", "--port", 0) == 2
    assert "SHARDS must name their model" in capsys.readouterr().err


def test_an_open_address_is_said(capsys) -> None:
    for host, inside in (("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False)):
        serve._warn_if_open(host)
        assert (capsys.readouterr().err == "") is inside, host
