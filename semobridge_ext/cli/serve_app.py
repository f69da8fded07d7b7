"""The web application of `serve`: three endpoints, four files of its own page, and what it refuses."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
from anyio.lowlevel import RunVar
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from semobridge_ext import _errors
from semobridge_ext.cli.serve_requests import Refused, parse
from semobridge_ext.cli.serve_session import Session

MOST_BYTES = 32 << 20  # of a request: an image of 24 MiB in base64
_UPLOAD = 64 << 10  # bytes from which a body counts as an upload
_UPLOADS = 8  # held in memory at once
_PATIENCE = 30.0  # seconds for a body to arrive, and for an upload to wait for its turn
_SEARCHES = 4  # at once, each on all cores; queries are encoded one by one, and pictures decoded
_PAGE = Path(__file__).parent / "served"
_FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",  # rows are numbers of these shards alone
}


def _json(value: Any, status: int = 200) -> Response:
    data = json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
    return Response(data, status, media_type="application/json")


def _refusal(error: Exception) -> Response:
    """One line and no traceback, whatever was raised."""
    text = " ".join(str(error).split())
    if isinstance(error, (ValueError, TypeError, NotImplementedError)) and text:
        return _json({"error": text}, getattr(error, "status", 400))
    return _json({"error": f"serve: unexpected {type(error).__name__}; see the terminal of serve"}, 500)


def _name(host: str) -> str:
    """The name in a Host header, without its port."""
    return host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]


def is_own(host: str, bound: str) -> bool:
    """Whether a Host header can stand for this server: an address, localhost, or the name it was bound to.

    A foreign page can make its own name lead here (DNS rebinding), but not an address.
    """
    name = _name(host).lower()
    if name in ("localhost", bound.lower()):
        return True
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


class Guard:
    """Before the routes: whose page asks, and under which name; behind them: the headers of every answer."""

    def __init__(self, app: ASGIApp, bound: str) -> None:
        self.app, self.bound = app, bound

    def _refused(self, scope: Scope) -> Response | None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get("host", ""), headers.get("origin")
        remedy = "open the address that serve printed"
        if not is_own(host, self.bound):
            contract = f"be an address, localhost or {self.bound}"
            return _json({"error": _errors.message("serve", "Host", contract, repr(host)[:80], remedy)}, 421)
        if origin is not None and origin != f"{scope['scheme']}://{host}":
            contract = "be the page of serve itself"
            told = _errors.message("serve", "Origin", contract, repr(origin)[:80], remedy)
            return _json({"error": told}, 403)
        return None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif (refused := self._refused(scope)) is not None:
            await refused(scope, receive, with_headers)
        else:
            await self._answered(scope, receive, with_headers)

    async def _answered(self, scope: Scope, receive: Receive, send: Send) -> None:
        """By the routes; a request that the end of serve cuts off is told so, without a traceback."""
        begun = False

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, noted)
        except asyncio.CancelledError:
            if not begun:
                text = "serve: the request must come while serve runs, got its end; ask again when it is back"
                await _json({"error": text}, 503)(scope, receive, send)


def _told_bytes(request: Request) -> int | None:
    """The length that a request tells of its body, where it tells one."""
    told = request.headers.get("content-length", "")
    return int(told) if told.isdecimal() and len(told) < 20 else None


async def _body(request: Request) -> bytes:
    """The bytes of a request, read no further than the limit and no longer than a client may take."""
    try:
        return await asyncio.wait_for(_read(request), _PATIENCE)
    except asyncio.TimeoutError:
        contract, remedy = f"arrive within {_PATIENCE:g} seconds", "send a smaller image"
        raise Refused(_errors.message("serve", "the body", contract, "less", remedy), 408) from None


async def _read(request: Request) -> bytes:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # which a foreign page cannot send unasked
        got = repr(kind)[:80]
        remedy = "send JSON"
        raise Refused(_errors.message("serve", "Content-Type", "be application/json", got, remedy), 415)
    parts, size = [], _told_bytes(request) or 0
    if size <= MOST_BYTES:
        size = 0
        async for part in request.stream():
            parts.append(part)
            size += len(part)
            if size > MOST_BYTES:
                break
    if size > MOST_BYTES:
        remedy = "send a smaller image"
        contract = f"be of at most {MOST_BYTES} bytes"
        raise Refused(_errors.message("serve", "the body", contract, "more", remedy), 413)
    return b"".join(parts)


class Turns:
    """Who waits for whom: searches take few threads and pictures one, uploads take bounded memory."""

    def __init__(self) -> None:
        self._uploads = asyncio.Semaphore(_UPLOADS)
        self._searches, self._pictures = anyio.CapacityLimiter(_SEARCHES), anyio.CapacityLimiter(1)

    @staticmethod
    def here() -> Turns:
        """Those of the running loop, to which they are bound."""
        found = _turns.get(None)
        if found is None:
            _turns.set(found := Turns())
        return found

    async def search(self, work: Callable[[], Response]) -> Response:
        return await anyio.to_thread.run_sync(work, limiter=self._searches)

    async def picture(self, work: Callable[[], Response]) -> Response:
        return await anyio.to_thread.run_sync(work, limiter=self._pictures)

    @contextlib.asynccontextmanager
    async def upload(self) -> AsyncIterator[None]:
        """Held while the body of an upload is in memory."""
        try:
            await asyncio.wait_for(self._uploads.acquire(), _PATIENCE)
        except asyncio.TimeoutError:
            contract = f"be at most {_UPLOADS} at once"
            told = _errors.message("serve", "uploads", contract, "more", "ask again later")
            raise Refused(told, 503) from None
        try:
            yield
        finally:
            self._uploads.release()


_turns: RunVar[Turns | None] = RunVar("turns of serve")


def make_app(session: Session, host: str = "127.0.0.1") -> Guard:
    """The application over one session; `host` is the name that it is bound to."""

    async def info(request: Request) -> Response:
        return await Turns.here().search(lambda: _json(session.info()))

    async def search(request: Request) -> Response:
        told = _told_bytes(request)
        async with Turns.here().upload() if told is None or told > _UPLOAD else contextlib.nullcontext():
            body = await _body(request)
            return await Turns.here().search(lambda: _json(session.search(parse(body))))

    async def picture(request: Request) -> Response:
        row = request.path_params["row"]
        return await Turns.here().picture(lambda: Response(session.picture(row), media_type="image/png"))

    async def own_file(request: Request, name: str, kind: str) -> Response:
        return Response((_PAGE / name).read_bytes(), media_type=kind)

    async def refuse(request: Request, error: Exception) -> Response:
        return _refusal(error)

    async def left(request: Request, error: Exception) -> Response:
        """To a client that is gone; as an unexpected error it would print a traceback."""
        return _json({"error": "serve: the body must arrive whole, got its client's end; send it again"}, 400)

    async def no_route(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        got = f"{request.method} {request.url.path[:80]}"
        known = "GET /, /api/info, /image/ROW or POST /api/search"
        text = _errors.message("serve", "the request", f"be {known}", got, "open / for the page")
        answer = _json({"error": text}, error.status_code)
        answer.headers.update(error.headers or {})  # Allow, where a path has other methods
        return answer

    routes = [
        Route("/api/info", info, methods=["GET"]),
        Route("/api/search", search, methods=["POST"]),
        Route("/image/{row:int}", picture, methods=["GET"]),
    ]
    for path, (name, kind) in _FILES.items():
        routes.append(Route(path, partial(own_file, name=name, kind=kind), methods=["GET"]))
    kinds: dict[Any, Any] = {ValueError: refuse, TypeError: refuse, NotImplementedError: refuse}
    kinds[ClientDisconnect] = left
    handlers = {**kinds, Exception: refuse, HTTPException: no_route}
    return Guard(Starlette(routes=routes, exception_handlers=handlers), host)
