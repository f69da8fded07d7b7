"""Files behind hub names and URLs: huggingface_hub's and fsspec's clients, checked, within one deadline.

Tokens, retries, redirects, proxies and TLS are the clients'. What they leave open stands here: every part
of a file is of one commit, or one ETag, and has the very bytes that were asked for. Anything else would
become a wrong matrix that is kept on disk.
"""

from __future__ import annotations

import importlib
import os
import queue
import re
import threading
import time
from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar

from semobridge_ext import _errors, _numbers
from semobridge_ext.clip.http_ranges import RangeCheck, UnfitAnswerError

_T = TypeVar("_T")
FETCHES = "semobridge-ext fetch"  # the name of its threads
_LISTED = 12  # files of a repository that a message names


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

    def within(self, function: str, what: str, work: Callable[[], _T]) -> _T:
        """What `work` gives, or ConnectionError after the last second.

        In a thread, as neither name resolution nor a client's own retries can be stopped from inside. A
        thread that is late ends when its client gives up, and nobody takes what it brings.
        """
        box: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

        def run() -> None:
            try:
                box.put((work(), None))
            except BaseException as error:
                box.put((None, error))

        threading.Thread(target=run, daemon=True, name=FETCHES).start()
        try:
            value, error = box.get(timeout=self.left())
        except queue.Empty:
            raise late(function, what, self.seconds) from None
        if error is not None:
            raise error
        return value


def late(function: str, what: str, seconds: float) -> ConnectionError:
    return ConnectionError(
        f"{function}: {what} must be reachable, got no whole answer within {seconds:g} s; raise timeout=, or "
        "download the file"
    )


def _status(error: BaseException) -> int | None:
    """The HTTP status that an error of huggingface_hub's or aiohttp's tells."""
    found = getattr(getattr(error, "response", None), "status_code", getattr(error, "status", None))
    return found if isinstance(found, int) else None


def refusal(function: str, what: str, error: Exception, seconds: float) -> Exception:
    """The error of a client as one of ours, with what to do about it."""
    if isinstance(error, UnfitAnswerError):
        return ValueError(f"{function}: {what} must {error}")
    status = _status(error)
    told = f"status {status}" if status else "no such file"
    if status == 416:
        return ValueError(
            f"{function}: {what} must be a whole safetensors file, got one that ends early; check it"
        )
    if isinstance(error, FileNotFoundError) or status == 404:
        return FileNotFoundError(f"{function}: {what} must exist, got {told}; check name and revision")
    if isinstance(error, PermissionError) or status in (401, 403):
        told = f"status {status}" if status else "no permission"
        return PermissionError(
            f"{function}: {what} must be open to you, got {told}; log in to its server, or download it and "
            "pass its path"
        )
    if isinstance(error, TimeoutError):
        return late(function, what, seconds)
    if status:
        # aiohttp tells in the message what it could not parse.
        reason = " ".join(str(getattr(error, "message", "")).split())[:120]
        told += f" ({reason})" if reason else ""
        return ConnectionError(f"{function}: {what} must be readable, got {told}; try again later")
    got = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return ConnectionError(
        f"{function}: {what} must be reachable, got {got}; without a network pass a local path"
    )


class RangedFile:
    """Parts of a file that a client reads: all the bytes that were asked for, or an error."""

    def __init__(
        self,
        function: str,
        name: str,
        cat: Callable[[int, int], bytes],  # from one byte to another, and what lies between
        size: Callable[[], int | None],  # None: not known before the first part
        refuse: Callable[[Exception], Exception],
    ) -> None:
        self.function, self.name = function, name
        self._cat, self._size, self._refuse = cat, size, refuse

    @property
    def size(self) -> int | None:
        return self._size()

    def read(self, start: int, count: int) -> bytes:
        """`count` bytes from `start`, fewer only at the end of the file."""
        if self.size is not None and start >= self.size:
            return b""
        try:
            data = self._cat(start, start + count)
        except Exception as error:  # each client has its own kinds
            raise self._refuse(error) from error
        wanted = count if self.size is None else min(count, self.size - start)
        if len(data) != wanted:
            raise ValueError(
                f"{self.function}: {self.name} must send the {wanted} bytes of a range, got {len(data)}; "
                "try again, or download the file and pass its path"
            )
        return data


# -- the hub -------------------------------------------------------------------------------------------


def hub_address() -> str:
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


class Repository:
    """A repository of the hub at one commit, through huggingface_hub."""

    def __init__(self, function: str, name: str, revision: str, clock: Clock) -> None:
        self.function, self.name, self.revision, self._clock = function, name, revision, clock
        self.address = hub_address()

    def url(self, file: str) -> str:
        return f"{self.address}/{self.name}/resolve/{self.revision}/{file}"

    def in_cache(self, file: str) -> str | None:
        """Where huggingface_hub keeps the whole file, if it fetched it once."""
        from huggingface_hub import errors, try_to_load_from_cache

        try:
            found = try_to_load_from_cache(self.name, file, revision=self.revision)
        except (errors.HFValidationError, ValueError, OSError):
            return None  # a name that no cache has; the hub says more about it
        return found if isinstance(found, str) else None

    @cached_property
    def _found(self) -> Any:
        from huggingface_hub import HfApi

        try:
            return HfApi(endpoint=self.address).model_info(
                self.name, revision=self.revision, timeout=self._clock.left()
            )
        except Exception as error:  # the library's, its HTTP client's and json's
            raise self.refuse(self.url(""), error) from error

    @property
    def files(self) -> list[str]:
        return [one.rfilename for one in self._found.siblings or ()]

    def listed(self) -> str:
        """The files, for a message."""
        names = sorted(self.files, key=lambda name: (not name.endswith((".safetensors", ".json")), name))
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        return f"{', '.join(names[:_LISTED])}{more}" if names else "no file"

    def open(self, file: str) -> RangedFile:
        from huggingface_hub import HfFileSystem

        where = self.url(file)
        try:
            files = HfFileSystem(endpoint=self.address, skip_instance_cache=True)
            # The commit, so that all parts are of one file; and without its read-ahead of 5 MB.
            opened = files.open(f"{self.name}/{file}", revision=self._found.sha, cache_type="none")
        except Exception as error:
            raise self.refuse(where, error) from error

        def cat(start: int, end: int) -> bytes:
            opened.seek(start)
            return opened.read(end - start)

        return RangedFile(
            self.function, where, cat, lambda: opened.size, lambda error: self.refuse(where, error)
        )

    def refuse(self, what: str, error: Exception) -> Exception:
        from huggingface_hub import errors

        function, page = self.function, f"{self.address}/{self.name}"
        if _is_caused_by(error, errors.OfflineModeIsEnabled):
            return ConnectionError(
                f"{function}: {what} must be in a cache while HF_HUB_OFFLINE is set, got nothing kept of it; "
                "unset HF_HUB_OFFLINE, or pass a local path"
            )
        if _is_caused_by(error, errors.GatedRepoError):
            return PermissionError(
                f"{function}: {what} must be open to you, got a gated repository; accept its terms at {page}"
                ", then set HF_TOKEN or run: hf auth login"
            )
        if _is_caused_by(error, errors.RevisionNotFoundError):
            got = f"no revision '{self.revision}'"
            return FileNotFoundError(f"{function}: {what} must exist, got {got}; look for one at {page}")
        if _is_caused_by(error, errors.RepositoryNotFoundError):
            return FileNotFoundError(
                f"{function}: {what} must exist, got no repository {self.name} that you may see; check the "
                "name, and for a private one set HF_TOKEN or run: hf auth login"
            )
        if _status(error) in (401, 403):
            return PermissionError(
                f"{function}: {what} must be open to you, got status {_status(error)}; set HF_TOKEN or run: "
                "hf auth login"
            )
        if isinstance(error, errors.HFValidationError):
            return ValueError(
                f"{function}: name_or_path must be a name of the hub, got {self.name}; check it"
            )
        return refusal(function, what, error, self._clock.seconds)


def _is_caused_by(error: BaseException | None, kind: type[BaseException]) -> bool:
    """Whether an error or a cause of it is of a kind: HfFileSystem wraps what its client raised."""
    while error is not None:
        if isinstance(error, kind):
            return True
        error = error.__cause__
    return False


def hub_place(url: str) -> tuple[str, str] | None:
    """ "org/repo/file" and the revision of a URL of the hub, so that it gets the hub's token and client."""
    from urllib.parse import unquote

    pattern = (
        rf"{re.escape(hub_address())}/([\w.-]+/[\w.-]+)/(?:resolve|blob)/([^/?]+)/([^?#]+)(\?download=true)?"
    )
    match = re.fullmatch(pattern, url)
    return (f"{match[1]}/{unquote(match[3])}", unquote(match[2])) if match else None


# -- any other URL -------------------------------------------------------------------------------------


def open_url(function: str, url: str, clock: Clock) -> RangedFile:
    """A file of any file system that fsspec has: http(s), s3, gs, memory, .."""

    def refuse(error: Exception) -> Exception:
        return refusal(function, url, error, clock.seconds)

    protocol = url.partition("://")[0]
    try:
        if protocol in ("http", "https"):
            check = RangeCheck(url)
            files = _http(check, url, clock)
            # Compressed, the bytes of a range would not be those of the file.
            plain = {"headers": {"Accept-Encoding": "identity", "User-Agent": "semobridge-ext"}}
            return RangedFile(
                function, url, lambda a, b: files.cat_file(url, a, b, **plain), lambda: check.size, refuse
            )
        import fsspec.core

        files, path = fsspec.core.url_to_fs(url)
        size = files.size(path)
    except ImportError as error:
        extra = "'semobridge-ext[http]'" if protocol in ("http", "https") else "what the message names"
        raise ImportError(
            f"{function}: {protocol}:// must have its file system installed, got {error}; pip install {extra}"
        ) from error
    except ValueError as error:
        raise ValueError(
            f"{function}: {url} must have a protocol that fsspec knows, got {error}; check the address"
        ) from error
    except Exception as error:
        raise refuse(error) from error
    return RangedFile(function, url, lambda a, b: files.cat_file(path, a, b), lambda: size, refuse)


def _http(check: RangeCheck, url: str, clock: Clock) -> Any:
    aiohttp = importlib.import_module("aiohttp")
    http = importlib.import_module("fsspec.implementations.http")
    # What is quoted already stays so: of a signed address nothing may change.
    quoted = re.fullmatch(r"[!-~]+", url) is not None
    options = {
        "timeout": aiohttp.ClientTimeout(total=clock.seconds, sock_read=60.0),
        "trace_configs": [check.trace(aiohttp)],
        "trust_env": True,  # proxies
    }
    return http.HTTPFileSystem(encoded=quoted, client_kwargs=options, skip_instance_cache=True)
