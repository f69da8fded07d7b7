"""from_pretrained against servers that lie, stall or wander: a clear error in time, and nothing kept."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save, save_file

import semobridge_ext as sb
from semobridge_ext.clip.http_ranges import RangeCheck, UnfitAnswerError

DEADLINE = 1.0  # given to every fetch below
SLACK = 3.0  # of a busy machine

MATRIX = torch.arange(1.0, 17.0).reshape(4, 4) / 16 + torch.eye(4)
# The matrix lies behind the first request, so that two are needed.
HONEST = save({"a": torch.zeros(30_000), "text_projection": MATRIX})


class Handler(BaseHTTPRequestHandler):
    """Answers as the row of the table says."""

    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        self.server.requests += 1
        self.close_connection = True
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        first, last = (int(wanted[1]), int(wanted[2])) if wanted else (0, len(self.server.data) - 1)
        try:
            self.server.behave(self, first, min(last, len(self.server.data) - 1))
        except OSError:
            return  # the reader hung up

    def answer(
        self,
        first: int,
        last: int,
        *,
        status: int = 206,
        place: str | None = None,
        body: bytes | None = None,
        length: int | None = None,
        **headers: str,
    ) -> None:
        data = self.server.data
        part = data[first : last + 1] if body is None else body
        self.send_response(status)
        self.send_header("Content-Length", str(len(part) if length is None else length))
        self.send_header("Content-Range", place or f"bytes {first}-{last}/{len(data)}")
        for name, value in {"ETag": '"one"', **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(part)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.data, self.behave, self.requests = HONEST, Handler.answer, 0
        self.leaving = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/m.safetensors"

    def handle_error(self, *args: object) -> None:
        """Quiet: readers hang up, as they should."""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    pytest.importorskip("aiohttp", reason="needed: pip install aiohttp")
    monkeypatch.setenv("SEMOBRIDGE_CACHE", str(tmp_path / "cache"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.leaving.set()
        running.shutdown()
        thread.join()


def refused(server: Server, url: str | None = None) -> str:
    """The message of a fetch that must fail as a plain error, in time."""
    began = time.monotonic()
    with pytest.raises((ValueError, OSError)) as caught:
        sb.Bridge.from_pretrained(url or server.url, timeout=DEADLINE)
    assert time.monotonic() - began < DEADLINE + SLACK
    return str(caught.value)


# -- answers that do not fit ---------------------------------------------------------------------------


def header(fields: object) -> bytes:
    data = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return len(data).to_bytes(8, "little") + data + bytes(64)


def entry(**changes: object) -> bytes:
    plain = {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}
    return header({"text_projection": {**plain, **changes}})


def truncated(h: Handler, first: int, last: int) -> None:
    h.answer(first, last, body=HONEST[first : last - 7], length=last - first + 1)


def short(h: Handler, first: int, last: int) -> None:
    h.answer(first, last, body=HONEST[first : last - 7])


def drip(h: Handler, first: int, last: int) -> None:
    h.answer(first, last, body=b"", length=last - first + 1)
    for byte in HONEST:
        if h.server.leaving.wait(0.2):
            return
        h.wfile.write(bytes([byte]))


def drip_headers(h: Handler, first: int, last: int) -> None:
    h.wfile.write(b"HTTP/1.1 206 Partial Content\r\nX-Long: ")
    while not h.server.leaving.wait(0.2):
        h.wfile.write(b"x")


def silent(h: Handler, first: int, last: int) -> None:
    h.server.leaving.wait(30)


def shifted(h: Handler, first: int, last: int) -> None:
    """The bytes of another place, and honest about it."""
    if first:
        h.answer(first - 16, last - 16)
    else:
        h.answer(first, last)


def told(change: Callable[[int, int], str]) -> Callable[[Handler, int, int], None]:
    def behave(h: Handler, first: int, last: int) -> None:
        h.answer(first, last, place=change(first, last))

    return behave


def changing(**first_and_second: tuple[str, str]) -> Callable[[Handler, int, int], None]:
    def behave(h: Handler, first: int, last: int) -> None:
        headers = {name: pair[h.server.requests > 1] for name, pair in first_and_second.items()}
        h.answer(first, last, **headers)

    return behave


def grows(h: Handler, first: int, last: int) -> None:
    h.answer(first, last, place=f"bytes {first}-{last}/{len(HONEST) + 16 * (h.server.requests > 1)}")


def endless_headers(h: Handler, first: int, last: int) -> None:
    h.wfile.write(b"HTTP/1.1 206 Partial Content\r\n")
    for i in itertools.count():
        h.wfile.write(b"X-%d: y\r\n" % i)


def endless_continue(h: Handler, first: int, last: int) -> None:
    while not h.server.leaving.is_set():
        h.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")


def garbage(h: Handler, first: int, last: int) -> None:
    h.wfile.write(b"\x00\xff\x16\x03" * 100)


def bad_chunk(h: Handler, first: int, last: int) -> None:
    h.wfile.write(b"HTTP/1.1 206 Partial Content\r\nTransfer-Encoding: chunked\r\n")
    h.wfile.write(b"Content-Range: bytes %d-%d/%d\r\n\r\n" % (first, last, len(HONEST)))
    h.wfile.write(b"-5\r\nhello\r\nffffffffffffffffffffff\r\nhello")


def moves(target: str) -> Callable[[Handler, int, int], None]:
    def behave(h: Handler, first: int, last: int) -> None:
        h.send_response(302)
        if target:
            h.send_header("Location", target.replace("SELF", h.server.url))
        h.end_headers()

    return behave


def endless_move(h: Handler, first: int, last: int) -> None:
    """A redirect to the honest file whose own body never ends; it is of no use to anybody."""
    if h.path.endswith("there"):
        return h.answer(first, last, place="bytes */7")
    h.send_response(302)
    h.send_header("Location", "there")
    h.end_headers()
    while not h.server.leaving.is_set():
        h.wfile.write(bytes(1 << 16))


BEHAVIOURS: dict[str, tuple[Callable[[Handler, int, int], None], str]] = {
    "truncated body": (truncated, "must be reachable, got ClientPayloadError"),
    "short body": (short, "must send the 65536 bytes of a range"),
    "long body": (lambda h, a, b: h.answer(a, b, body=HONEST), "must send the 65536 bytes of a range"),
    "huge length": (
        lambda h, a, b: h.answer(a, b, length=10**30),
        r"readable, got status 400 \(.*Content-Length",
    ),
    "drip": (drip, "no whole answer within 1 s"),
    "drip of headers": (drip_headers, "no whole answer within 1 s"),
    "silence": (silent, "(no whole answer within 1 s|timed out).*raise timeout="),
    "other place": (shifted, r"answer the range .* Content-Range 'bytes 1\d+-\d+/\d+'"),
    "other start": (told(lambda a, b: f"bytes {a + 1}-{b + 1}/{len(HONEST)}"), "answer the range bytes=?"),
    "other end": (told(lambda a, b: f"bytes {a}-{b + 1}/{len(HONEST)}"), "answer the range"),
    "other unit": (told(lambda a, b: f"rows {a}-{b}/{len(HONEST)}"), "answer the range.*rows"),
    "no total": (told(lambda a, b: f"bytes {a}-{b}/*"), "answer the range"),
    "small total": (told(lambda a, b: f"bytes {a}-{b}/{b}"), "answer the range"),
    "garbage in the range": (told(lambda a, b: f"bytes -{a}-{b}/9" + "9" * 5000), "answer the range"),
    "changed size": (grows, "must stay the same while it is read"),
    "changed tag": (changing(ETag=('"one"', '"two"')), "must stay the same while it is read"),
    "changed date": (changing(ETag=("", ""), Last_Modified=("Mon", "Tue")), "must stay the same"),
    "no ranges": (lambda h, a, b: h.answer(0, len(HONEST) - 1, status=200), "must answer range requests"),
    "gzip": (lambda h, a, b: h.answer(a, b, Content_Encoding="gzip"), "Content-Encoding 'gzip'"),
    "endless headers": (endless_headers, "within 1 s|readable, got status 400"),
    "endless interim answers": (endless_continue, "within 1 s"),
    "no HTTP": (garbage, r"must be readable, got status 400 \("),
    "bad chunks": (bad_chunk, r"must be readable, got status 400 \(|Content-Length None"),
    "redirect loop": (moves("SELF"), "TooManyRedirects"),
    "redirect to ftp": (moves("ftp://127.0.0.1/m"), r"NonHttpUrlRedirect.*ftp://127\.0\.0\.1/m"),
    "redirect to a file": (moves("file:///etc/hostname"), "NonHttpUrlRedirect.*file:///etc/hostname"),
    "redirect to data": (moves("data:text/plain,x"), "NonHttpUrlRedirect.*data:"),
    "redirect to nowhere": (moves(""), "must answer range requests, got status 302"),
    "redirect to no URL": (moves("http://[broken/m"), "must be reachable"),
    "redirect without end": (endless_move, "answer the range"),
}


@pytest.mark.parametrize("name", BEHAVIOURS)
def test_hostile_behaviour(server: Server, name: str, tmp_path: Path):
    server.behave, words = BEHAVIOURS[name]
    text = refused(server)
    assert re.search(words, text), text
    assert text.startswith("Bridge.from_pretrained: ") and server.url in text and ";" in text
    assert not list(tmp_path.glob("cache/*"))


DATA: dict[str, tuple[bytes, str]] = {
    "nested JSON": (header(b"[" * 60_000), "nested too deeply"),
    "a list": (header(["text_projection"]), "must be a safetensors file"),
    "no UTF": (header(b'{"\xff\xfe": 1}'), "must be a safetensors file"),
    "huge number": (header(b'{"text_projection": ' + b"9" * 5000 + b"}"), "must be a safetensors file"),
    "huge header": ((1 << 40).to_bytes(8, "little") + bytes(100), "header of 1099511627776 bytes"),
    "negative shape": (entry(shape=[-4, -4]), "no places in a file"),
    "huge shape": (entry(shape=[10**40, 4]), "no places in a file"),
    "float shape": (entry(shape=[4.0, 4.5]), "no places in a file"),
    "many dimensions": (entry(shape=[1] * 5000), "must be a float matrix"),
    "empty matrix": (entry(shape=[0, 4], data_offsets=[0, 0]), "must be a float matrix"),
    "negative offset": (entry(data_offsets=[-64, 0]), "no places in a file"),
    "huge offset": (entry(data_offsets=[1 << 61, (1 << 61) + 64]), "ends after 0 of 64"),
    "offsets of another kind": (entry(data_offsets={"0": 64}), "entry of text_projection"),
    "absurd matrix": (entry(shape=[1 << 15, 1 << 15], data_offsets=[0, 1 << 32]), "at most 268435456"),
    "not finite": (save({"text_projection": torch.full((4, 4), float("nan"))}), "must be finite"),
}


@pytest.mark.parametrize("name", DATA)
def test_hostile_header(server: Server, name: str, tmp_path: Path):
    server.data, words = DATA[name]
    text = refused(server)
    assert re.search(words, text) and server.url in text and len(text) < 700, text
    assert not list(tmp_path.glob("cache/*"))


def test_honest_server(server: Server, tmp_path: Path):
    assert torch.equal(sb.Bridge.from_pretrained(server.url, timeout=DEADLINE).text_projection, MATRIX)
    assert server.requests == 2 and len(list(tmp_path.glob("cache/*"))) == 1


def test_fewer_redirects_than_the_limit(server: Server):
    def behave(h: Handler, first: int, last: int) -> None:
        hops = h.path.count("hop")
        moves(f"{'hop' * (hops - 1)}m")(h, first, last) if hops else h.answer(first, last)

    server.behave = behave
    url = server.url.replace("m.safe", f"{'hop' * 9}m.safe")
    assert torch.equal(sb.Bridge.from_pretrained(url).text_projection, MATRIX)
    with pytest.raises(ConnectionError, match="TooManyRedirects"):
        sb.Bridge.from_pretrained(url.replace("hopm", "hophopm"))


@pytest.mark.parametrize("begin, end, stays", [
    ("https", "http", False), ("https", "https", True), ("http", "https", True), ("http", "http", True),
])  # fmt: skip
def test_https_stays_https(begin: str, end: str, stays: bool):
    """As aiohttp calls the check; a server with a certificate that this machine trusts cannot be had here."""
    aiohttp = pytest.importorskip("aiohttp", reason="needed: pip install aiohttp")
    from yarl import URL

    (redirected,) = RangeCheck("").trace(aiohttp).on_request_redirect
    response = SimpleNamespace(headers={"Location": f"{end}://a/c"}, close=lambda: None)
    told = SimpleNamespace(url=URL(f"{begin}://a/b"), response=response)
    if stays:
        asyncio.run(redirected(None, None, told))
    else:
        with pytest.raises(UnfitAnswerError, match="stay behind https://, got a redirect to 'http://a/c'"):
            asyncio.run(redirected(None, None, told))


def test_tls_without_tls(server: Server):
    text = refused(server, server.url.replace("http:", "https:"))
    assert re.search("must be reachable, got .*SSL.*; without a network", text)


def test_isoclip_has_the_same_deadline(server: Server):
    server.behave = drip
    began = time.monotonic()
    with pytest.raises(ConnectionError, match=r"IsoCLIP.* no whole answer within 1 s; raise timeout="):
        sb.IsoCLIP.from_pretrained(server.url, timeout=DEADLINE)
    assert time.monotonic() - began < DEADLINE + SLACK


def test_no_thread_waits_on_after_the_deadline(server: Server):
    server.behave = drip
    refused(server)
    end = time.monotonic() + SLACK
    while any("fetch" in t.name for t in threading.enumerate()) and time.monotonic() < end:
        time.sleep(0.01)
    assert not [t for t in threading.enumerate() if "fetch" in t.name]


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf")])
def test_bad_deadlines(value: float):
    with pytest.raises(ValueError, match="timeout must be positive seconds"):
        sb.Bridge.from_pretrained("http://127.0.0.1:9/m", timeout=value)


def test_what_was_kept_wrongly_is_fetched_anew(server: Server, tmp_path: Path):
    """Earlier versions kept what they were sent."""
    sb.Bridge.from_pretrained(server.url)
    (kept,) = tmp_path.glob("cache/*")
    meta = {"format": "semobridge-ext projection 1"}
    save_file({"matrix": torch.full((4, 4), float("nan"))}, str(kept), meta)
    assert torch.equal(sb.Bridge.from_pretrained(server.url).text_projection, MATRIX)


def test_what_was_kept_and_damaged_is_fetched_anew(server: Server, tmp_path: Path):
    """A flipped bit of a finite number: the checksum tells."""
    sb.Bridge.from_pretrained(server.url)
    (kept,) = tmp_path.glob("cache/*")
    whole = bytearray(kept.read_bytes())
    whole[-1] ^= 1
    kept.write_bytes(whole)
    assert torch.equal(sb.Bridge.from_pretrained(server.url).text_projection, MATRIX)


# -- indices -------------------------------------------------------------------------------------------

OUTSIDE = [
    "../a.safetensors", "/etc/a.safetensors", "sub/../../a", "..\\a.safetensors", "C:\\a", "C:a", "./a", "",
    "a//b", "http://127.0.0.1/a.safetensors", "file:///a", "a\nb", 7, None,
]  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE, ids=repr)
@pytest.mark.parametrize("where", ["folder", "URL"])
def test_shards_outside_their_folder(server: Server, tmp_path: Path, where: str, name: object):
    save_file({"text_projection": MATRIX}, str(tmp_path / "a.safetensors"))  # where ../ would lead
    index = json.dumps({"weight_map": {"text_projection": name}})
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors.index.json").write_text(index)
    server.data = index.encode()
    place = str(folder) if where == "folder" else server.url.replace("m.safe", "m.safetensors.index.json?")
    place = place.partition("?")[0]
    with pytest.raises(ValueError, match="must name shards below its own folder, got"):
        sb.Bridge.from_pretrained(place)
    assert server.requests == (where == "URL")


def test_escapes_in_shard_names_are_quoted(server: Server):
    asked = []

    def behave(h: Handler, first: int, last: int) -> None:
        asked.append(h.path)
        if h.path.endswith(".json"):
            return h.answer(0, len(index) - 1, place=f"bytes 0-{len(index) - 1}/{len(index)}", body=index)
        h.answer(first, last)

    index = json.dumps({"weight_map": {"text_projection": "sub/%2e%2e?x#y"}}).encode()
    server.behave = behave
    place = server.url.replace("m.safetensors", "models/model.safetensors.index.json")
    assert torch.equal(sb.Bridge.from_pretrained(place).text_projection, MATRIX)
    assert set(asked[1:]) == {"/models/sub/%252e%252e%3Fx%23y"}


@pytest.mark.parametrize(
    "data,words",
    [
        (b"[" * 60_000, "nested too deeply"), (b"[]", "TypeError"), (b"\xff", "Unicode"),
        (bytes((1 << 24) + 1), "at most 16777216 bytes"),
    ],
    ids=["nested", "list", "bytes", "huge"],
)  # fmt: skip
def test_hostile_index(server: Server, data: bytes, words: str):
    server.data = data
    assert re.search(words, refused(server, server.url.replace("safetensors", "index.json")))


def test_truncated_index(server: Server):
    server.data = b'{"weight_map": {}}  '
    server.behave = lambda h, a, b: h.answer(a, b, body=server.data[:-1], length=len(server.data))
    text = refused(server, server.url.replace("safetensors", "index.json"))
    assert "must be reachable, got ClientPayloadError" in text


# -- local names without a folder ------------------------------------------------------------------------


@pytest.mark.parametrize("place", [".", "model.safetensors.index.json", "./model.safetensors.index.json"])
def test_local_names_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"\. must hold one of open_clip_model"):
        sb.Bridge.from_pretrained(".")
    save_file({"text_projection": MATRIX}, "a.safetensors")
    Path("model.safetensors.index.json").write_text('{"weight_map": {"text_projection": "a.safetensors"}}')
    assert torch.equal(sb.Bridge.from_pretrained(place).text_projection, MATRIX)


def test_local_index_with_folders(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    save_file({"text_projection": MATRIX}, str(tmp_path / "sub" / "a.safetensors"))
    index = {"weight_map": {"text_projection": "sub/a.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert torch.equal(sb.Bridge.from_pretrained(tmp_path).text_projection, MATRIX)
