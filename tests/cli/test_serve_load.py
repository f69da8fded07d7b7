"""serve: many clients, slow ones, large ones, and requests that its end cuts off."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import urllib.request
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from tests.support.served import make

pytest.importorskip("pyarrow", reason="needed: pip install pyarrow")
uvicorn = pytest.importorskip("uvicorn", reason="needed: pip install uvicorn")

from semobridge_ext.cli import serve_app  # noqa: E402 - behind the skips
from semobridge_ext.cli.commands import serve  # noqa: E402
from semobridge_ext.cli.serve_session import Session  # noqa: E402

TEXT = b'{"text": "a", "k": 1}'


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    return Session(make(tmp_path_factory.mktemp("load"), centred=False) / "feats")


class Call:
    """One request to the application, whose body may hang behind its first part."""

    def __init__(self, app: Any, method: str, path: str, body: bytes = b"", told: int | None = None) -> None:
        self.sent: list[dict[str, Any]] = []
        self.waits = asyncio.Event()  # set when more of a body is waited for
        self.leaves = asyncio.Event()
        length = len(body) if told is None else told
        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        headers.append((b"content-length", str(length).encode()))
        scope = {"type": "http", "method": method, "path": path, "headers": headers, "scheme": "http",
                 "query_string": b"", "root_path": "", "http_version": "1.1",
                 "raw_path": path.encode()}  # fmt: skip
        parts = [{"type": "http.request", "body": body, "more_body": length > len(body)}]

        async def receive() -> dict[str, Any]:
            if parts:
                return parts.pop()
            self.waits.set()
            await self.leaves.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            self.sent.append(message)

        self.task = asyncio.ensure_future(app(scope, receive, send))

    async def answer(self) -> tuple[int, Any]:
        await asyncio.wait_for(self.task, 20)
        return self.sent[0]["status"], json.loads(self.sent[1]["body"])


@contextlib.asynccontextmanager
async def hanging(app: Any, told: int) -> AsyncIterator[Call]:
    call = Call(app, "POST", "/api/search", b"{", told)
    await asyncio.wait_for(call.waits.wait(), 20)
    yield call
    call.task.cancel()
    await asyncio.gather(call.task, return_exceptions=True)


def test_a_body_that_does_not_arrive_is_left(session: Session, monkeypatch) -> None:
    monkeypatch.setattr(serve_app, "_PATIENCE", 0.1, raising=False)

    async def run() -> None:
        async with hanging(serve_app.make_app(session), told=100) as call:
            status, value = await call.answer()
            assert status == 408 and "the body must arrive within 0.1 seconds" in value["error"]

    asyncio.run(run())


def test_uploads_wait_for_their_turn_and_small_queries_do_not(session: Session, monkeypatch) -> None:
    monkeypatch.setattr(serve_app, "_UPLOADS", 1, raising=False)
    large = TEXT.ljust(100_000)

    async def run() -> None:
        app = serve_app.make_app(session)
        async with hanging(app, told=100_000) as first:
            monkeypatch.setattr(serve_app, "_PATIENCE", 0.3, raising=False)
            status, value = await Call(app, "POST", "/api/search", large).answer()
            assert status == 503 and "uploads must be at most 1 at once" in value["error"]
            assert (await Call(app, "POST", "/api/search", TEXT).answer())[0] == 200
            monkeypatch.setattr(serve_app, "_PATIENCE", 20.0, raising=False)
            waiting = Call(app, "POST", "/api/search", large)
            await asyncio.sleep(0.1)
            assert not waiting.sent
            first.task.cancel()
            assert (await waiting.answer())[0] == 200

    asyncio.run(run())


def test_pictures_keep_no_search_waiting(session: Session, monkeypatch) -> None:
    go = threading.Event()

    def picture(row: int) -> bytes:
        go.wait(60)  # a file on a network that stands still
        return b"png"

    monkeypatch.setattr(session, "picture", picture)

    async def run() -> None:
        app = serve_app.make_app(session)
        try:
            pictures = [Call(app, "GET", f"/image/{row}") for row in range(60)]
            await asyncio.sleep(0.1)
            status, value = await Call(app, "POST", "/api/search", TEXT).answer()
            assert status == 200 and len(value["hits"]) == 1
        finally:
            go.set()
        await asyncio.gather(*(call.task for call in pictures))
        assert {call.sent[0]["status"] for call in pictures} == {200}

    asyncio.run(run())


def test_its_end_is_told(session: Session) -> None:
    """uvicorn cancels what does not end in time, and prints a traceback of what that raises."""

    async def run() -> None:
        call = Call(serve_app.make_app(session), "POST", "/api/search", b"{", 100)
        await asyncio.wait_for(call.waits.wait(), 20)
        call.task.cancel()
        status, value = await call.answer()
        assert status == 503 and value["error"].startswith("serve: the request must come while serve runs")

    asyncio.run(run())


def test_a_client_that_leaves_raises_nothing(session: Session) -> None:
    """uvicorn would print it with a traceback."""

    async def run() -> None:
        async with hanging(serve_app.make_app(session), told=100) as call:
            call.leaves.set()
            await asyncio.wait_for(call.task, 20)

    asyncio.run(run())


def test_other_methods_are_told_which_are_allowed(session: Session) -> None:
    async def run() -> None:
        call = Call(serve_app.make_app(session), "DELETE", "/api/search")
        status, _ = await call.answer()
        headers = dict(call.sent[0]["headers"])
        assert status == 405 and headers[b"allow"] == b"POST"
        assert b"content-security-policy" in headers

    asyncio.run(run())


@pytest.fixture
def port(session: Session) -> Iterator[int]:
    """A server in a thread."""
    with serve._listen("127.0.0.1", 0) as listener:
        server = uvicorn.Server(serve._config(uvicorn, serve_app.make_app(session)))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join()


def test_idle_connections_keep_no_one_out(port: int) -> None:
    """Browsers hold six each."""
    with contextlib.ExitStack() as stack:
        for _ in range(150):
            stack.enter_context(contextlib.closing(socket.create_connection(("127.0.0.1", port))))
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/info", timeout=20) as answer:
            assert answer.status == 200 and json.load(answer)["text"]


def closed_within(connection: socket.socket, seconds: float) -> bool:
    connection.settimeout(seconds)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False


def test_a_header_that_does_not_arrive_closes_its_connection(port: int, monkeypatch) -> None:
    """Without a byte, with some, with one from time to time, and behind an answer."""
    monkeypatch.setattr("semobridge_ext.cli.serve_protocol.HEADER_SECONDS", 0.5, raising=False)
    whole = b"GET /icon.svg HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with contextlib.ExitStack() as stack:
        silent, begun, drop, later = (
            stack.enter_context(contextlib.closing(socket.create_connection(("127.0.0.1", port))))
            for _ in range(4)
        )
        begun.sendall(whole[:20])
        later.sendall(whole)
        answer = b""
        while not answer.endswith(b"</svg>\n"):
            answer += later.recv(1 << 16)
        later.sendall(whole[:20])
        for byte in whole[:-2]:  # never its end; each byte begins no new time
            with contextlib.suppress(OSError):
                drop.sendall(bytes([byte]))
            if closed_within(drop, 0.1):
                break
        else:
            pytest.fail("a header that comes byte by byte stays open")
        assert all(closed_within(one, 20) for one in (silent, begun, later))


def test_a_slow_answer_is_no_late_header(session: Session, port: int, monkeypatch) -> None:
    monkeypatch.setattr("semobridge_ext.cli.serve_protocol.HEADER_SECONDS", 0.2, raising=False)
    monkeypatch.setattr(session, "picture", lambda row: threading.Event().wait(1) or b"png")
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/image/0", timeout=20) as answer:
        assert answer.read() == b"png"
