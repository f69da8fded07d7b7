"""What an HTTP server says about a range, held against what was asked, before its body is read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any


class UnfitAnswerError(ValueError):
    """An answer that must not be used: "<contract>, got <value>; <remedy>"."""


def _short(text: Any) -> str:
    return repr(text) if len(str(text)) <= 80 else f"{str(text)[:77]!r}..."


class RangeCheck:
    """Every answer of one file: the range that was asked for, and of the same file as the first."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.size: int | None = None  # of the whole file, known from the first part
        self._stamp: Any = None

    def check(self, asked: str, status: int, headers: Mapping[str, str]) -> None:
        """`asked` is the request's Range. Errors that a status tells are left to the client."""
        download = "download the file and pass its path"
        if status >= 400:
            return
        if status != 206:
            raise UnfitAnswerError(f"answer range requests, got status {status}; {download}")
        coding = headers.get("Content-Encoding", "identity").strip().lower()
        if coding not in ("", "identity"):
            raise UnfitAnswerError(f"be sent as it is, got Content-Encoding {_short(coding)}; {download}")
        start, end = (int(n) for n in asked.removeprefix("bytes=").split("-"))
        told = headers.get("Content-Range", "")
        value = told.strip(" \t")  # not the separators that Python takes for blanks
        match = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", value, re.IGNORECASE | re.ASCII)
        first, last, size = (int(n) for n in match.groups()) if match else (0, 0, 0)
        if not match or (first, last) != (start, min(end, size - 1)):
            raise UnfitAnswerError(
                f"answer the range bytes {start}-{end} with its place and the file's size, got Content-Range "
                f"{_short(told)}; {download}"
            )
        length = headers.get("Content-Length")
        if length is None or length.strip(" \t") != str(last - first + 1):
            # Without it a body could go on for ever.
            raise UnfitAnswerError(
                f"send the {last - first + 1} bytes of a range, got Content-Length {_short(length)}; "
                "try again"
            )
        # ETags of one file agree; where there are none, its date does.
        stamp = headers.get("ETag") or headers.get("Last-Modified")
        if self.size is not None and (size, stamp) != (self.size, self._stamp):
            old, new = f"ETag {_short(self._stamp)}", f"ETag {_short(stamp)}"
            raise UnfitAnswerError(
                f"stay the same while it is read, got another one ({old} of {self.size} bytes, then {new} of "
                f"{size}); try again"
            )
        self.size, self._stamp = size, stamp

    def trace(self, aiohttp: Any) -> Any:
        """The check as aiohttp calls it: behind the redirects, before the body."""

        async def ended(session: Any, context: Any, told: Any) -> None:
            try:
                self.check(told.headers.get("Range", ""), told.response.status, told.response.headers)
            except UnfitAnswerError:
                told.response.close()  # nothing of the body is read
                raise

        async def redirected(session: Any, context: Any, told: Any) -> None:
            target = told.response.headers.get("Location", "")
            if told.url.scheme == "https" and target.lower().startswith("http:"):
                told.response.close()
                raise UnfitAnswerError(
                    f"stay behind https://, got a redirect to {_short(target)}; download the file and pass "
                    "its path"
                )

        config = aiohttp.TraceConfig()
        config.on_request_end.append(ended)
        config.on_request_redirect.append(redirected)
        return config
