"""Bytes of a file behind a URL: ranges that are checked, within one deadline.

Nobody vouches for the server. Nothing it says is believed before it agrees with what was asked: a wrong
range, another file in between or a compressed body would become a wrong matrix that is kept on disk.
"""

from __future__ import annotations

import http.client
import queue
import re
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

from semobridge_ext import _errors, _numbers

_SILENCE = 60.0  # seconds without a byte
_REDIRECTS = 5
_REDIRECTED = (301, 302, 303, 307, 308)


class Clock:
    """Seconds that remain of one call."""

    def __init__(self, function: str, seconds: float) -> None:
        if not _numbers.is_real(seconds):
            raise TypeError(_errors.message(function, "timeout", "be a number", seconds, "pass seconds"))
        if not 0 < seconds <= threading.TIMEOUT_MAX:
            raise ValueError(
                _errors.message(function, "timeout", "be positive seconds", seconds, "pass timeout=300")
            )
        self.seconds, self._end = seconds, time.monotonic() + seconds

    def left(self) -> float:
        return max(self._end - time.monotonic(), 1e-3)


class Answer(NamedTuple):
    """Of one request, behind its redirects."""

    status: int
    headers: Any
    body: bytes  # at most what was asked for, and one byte more that tells of a longer one


# -- connections that a deadline can end ---------------------------------------------------------------


class _Line:
    """The sockets of one request; `cut` wakes whatever waits on them."""

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []
        self._cut = False

    def add(self, connection: http.client.HTTPConnection) -> None:
        self._sockets.append(connection.sock)
        if self._cut:
            self.cut()

    def cut(self) -> None:
        self._cut = True
        for one in self._sockets:
            with suppress(OSError):
                # The plain socket's: a TLS socket would drop its state under the thread that reads it.
                socket.socket.shutdown(one, socket.SHUT_RDWR)


class _Connection(http.client.HTTPConnection):
    def __init__(self, line: _Line, host: str, **options: Any) -> None:
        super().__init__(host, **options)
        self._line = line

    def connect(self) -> None:
        super().connect()
        self._line.add(self)


class _SecureConnection(_Connection, http.client.HTTPSConnection):
    """The same over TLS."""


class _OnLine(urllib.request.AbstractHTTPHandler):
    def __init__(self, line: _Line) -> None:
        super().__init__()
        self._line = line


class _Plain(_OnLine, urllib.request.HTTPHandler):
    def http_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(partial(_Connection, self._line), request)  # type: ignore[arg-type]


class _Secure(_OnLine, urllib.request.HTTPSHandler):
    def https_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(partial(_SecureConnection, self._line), request)  # type: ignore[arg-type]


def _opener(line: _Line) -> urllib.request.OpenerDirector:
    """HTTP and HTTPS alone, through the proxies of the environment; redirects are answers."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(), _Plain(line), _Secure(line), urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
    ):  # fmt: skip
        opener.add_handler(handler)
    return opener


def _within(clock: Clock, work: Callable[[_Line], Any]) -> Any:
    """What `work` gives, or TimeoutError: in a thread, as neither name resolution nor a server that sends
    a byte a minute can be stopped from inside."""
    line = _Line()
    box: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            box.put((work(line), None))
        except BaseException as error:
            box.put((None, error))

    thread = threading.Thread(target=run, daemon=True, name="semobridge-ext fetch")
    thread.start()
    try:
        value, error = box.get(timeout=clock.left())
    except queue.Empty:
        raise TimeoutError(f"no whole answer within {clock.seconds:g} s") from None
    finally:
        line.cut()
    thread.join()
    if error is not None:
        raise error
    return value


# -- one request ---------------------------------------------------------------------------------------


def _target(url: str, location: str | None) -> str:
    """Where a redirect leads; HTTP leads to HTTP, and HTTPS stays HTTPS."""
    target = urllib.parse.urljoin(url, location or "")
    old, new = urllib.parse.urlsplit(url).scheme, urllib.parse.urlsplit(target).scheme
    if not location or new not in ("http", "https") or (old, new) == ("https", "http"):
        raise ConnectionError(f"a redirect to {_short(location)}, which is not followed")
    return target


def _short(text: Any) -> str:
    return repr(text) if len(str(text)) <= 80 else f"{str(text)[:77]!r}..."


def _ask(line: _Line, clock: Clock, url: str, headers: dict[str, str], most: int) -> Answer:
    for _ in range(_REDIRECTS + 1):
        request = urllib.request.Request(url, headers={"User-Agent": "semobridge-ext", **headers})
        try:
            with _opener(line).open(request, timeout=min(_SILENCE, clock.left())) as answer:
                # A server that ignores the range sends everything: none of that is read.
                wanted = answer.status == 206 or "Range" not in headers
                return Answer(answer.status, answer.headers, answer.read(most + 1) if wanted else b"")
        except urllib.error.HTTPError as error:
            error.close()
            if error.code not in _REDIRECTED:
                raise
            url = _target(url, error.headers.get("Location"))
    raise ConnectionError(f"more than {_REDIRECTS} redirects")


def fetch(function: str, clock: Clock, url: str, headers: dict[str, str], most: int) -> Answer:
    """The answer to one GET, of which at most `most` + 1 bytes are read; errors name function and URL."""
    try:
        if not re.match(r"https?://", url):
            raise ConnectionError("an address that is neither http:// nor https://")
        answer: Answer = _within(clock, lambda line: _ask(line, clock, url, headers, most))
    except urllib.error.HTTPError as error:
        raise _refused(function, url, error.code) from error
    except (OSError, http.client.HTTPException, ValueError, OverflowError, RecursionError) as error:
        # ValueError: what urllib makes of a URL that is none, and http.client of a chunk's length.
        got = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        late = isinstance(error, TimeoutError)
        remedy = "raise timeout=, or download the file" if late else "without a network pass a local path"
        raise ConnectionError(f"{function}: {url} must be reachable, got {got}; {remedy}") from error
    coding = answer.headers.get("Content-Encoding", "identity").strip().lower()
    if coding not in ("", "identity"):
        raise ValueError(
            f"{function}: {url} must be sent as it is, got Content-Encoding {_short(coding)}; download the "
            "file and pass its path"
        )
    return answer


def _refused(function: str, url: str, status: int) -> Exception:
    if status == 404:
        return FileNotFoundError(f"{function}: {url} must exist, got status 404; check name and revision")
    if status == 416:
        return ValueError(
            f"{function}: {url} must be a whole safetensors file, got one that ends early; check it"
        )
    if status in (401, 403):
        return PermissionError(
            f"{function}: {url} must be public, got status {status}; download it and pass its path"
        )
    return ConnectionError(f"{function}: {url} must be readable, got status {status}; try again later")


def fetch_whole(function: str, clock: Clock, url: str, most: int) -> bytes:
    """A small file, all of it."""
    answer = fetch(function, clock, url, {}, most)
    told = answer.headers.get("Content-Length")
    got = f"{len(answer.body)} of {_short(told)} bytes"
    if len(answer.body) > most:
        raise ValueError(f"{function}: {url} must have at most {most} bytes, got more; check the address")
    if answer.status != 200 or (told is not None and told.strip() != str(len(answer.body))):
        raise ConnectionError(f"{function}: {url} must be sent whole, got {got}; try again")
    return answer.body


# -- ranges of one file --------------------------------------------------------------------------------


class RangedFile:
    """A file behind a URL that serves ranges; every part must be of the same file as the first."""

    def __init__(self, function: str, url: str, clock: Clock) -> None:
        self.function, self.url, self._clock = function, url, clock
        self.size: int | None = None  # of the whole file, known from the first part
        self._stamp: Any = None

    def _wrong(self, contract: str, got: str, remedy: str) -> ValueError:
        return ValueError(f"{self.function}: {self.url} must {contract}, got {got}; {remedy}")

    def read(self, start: int, count: int) -> bytes:
        """At most `count` bytes from `start`, fewer only at the end of the file."""
        if self.size is not None and start >= self.size:
            return b""
        asked = f"bytes={start}-{start + count - 1}"
        answer = fetch(self.function, self._clock, self.url, {"Range": asked}, count)
        if answer.status != 206:
            raise ValueError(
                f"{self.function}: the server of {self.url} must answer range requests, got status "
                f"{answer.status}; download the file and pass its path"
            )
        size = self._check_range(start, count, answer)
        # ETags of one file agree; where there are none, its date does.
        stamp = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
        if self.size is not None and (size, stamp) != (self.size, self._stamp):
            old, new = f"ETag {_short(self._stamp)}", f"ETag {_short(stamp)}"
            got = f"another one ({old} of {self.size} bytes, then {new} of {size})"
            raise self._wrong("stay the same while it is read", got, "try again")
        self.size, self._stamp = size, stamp
        return answer.body

    def _check_range(self, start: int, count: int, answer: Answer) -> int:
        """The size of the file, if the answer holds the very bytes that were asked for."""
        told = answer.headers.get("Content-Range", "")
        value = told.strip(" \t")  # not the separators that Python takes for blanks
        match = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", value, re.IGNORECASE | re.ASCII)
        first, last, size = (int(n) for n in match.groups()) if match else (0, 0, 0)
        if not match or (first, last) != (start, min(start + count, size) - 1):
            contract = (
                f"answer the range bytes {start}-{start + count - 1} with its place and the file's size"
            )
            raise self._wrong(
                contract, f"Content-Range {_short(told)}", "download the file and pass its path"
            )
        length, got = answer.headers.get("Content-Length"), len(answer.body)
        if got != last - first + 1 or length not in (None, str(got)):
            what = f"{got} bytes with Content-Length {_short(length)}"
            raise self._wrong(f"send the {last - first + 1} bytes of a range", what, "try again")
        return size
