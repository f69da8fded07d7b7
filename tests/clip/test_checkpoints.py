"""checkpoints.py: projections out of checkpoints, from files and behind URLs, and what is refused."""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor, nn

import semobridge_ext as sb
from semobridge_ext.clip import checkpoints, image_projection, text_projection
from tests.support.assertions import assert_same_bits
from tests.support.towers import hugging_face_model, open_clip_model, timm_linear


class Server(ThreadingHTTPServer):
    """Serves one folder with ranges; counts what it sends."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.sent, self.ranges, self.ignore_ranges = folder, 0, [], False
        self.status, self.tags, self.queries = None, None, []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        if self.path.startswith("/moved/"):
            self.send_response(302)
            self.send_header("Location", f"{self.server.url}/{self.path.removeprefix('/moved/')}")
            self.end_headers()
            return
        path, _, query = self.path.partition("?")
        self.server.queries.append(query)
        file = self.server.folder / path.lstrip("/")
        if self.server.status or not file.is_file():
            self.send_error(self.server.status or 404)
            return
        data, status, place = file.read_bytes(), 200, None
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if wanted and not self.server.ignore_ranges:
            first, last = int(wanted[1]), int(wanted[2])
            if first >= len(data):
                self.send_error(416)
                return
            place = f"bytes {first}-{min(last + 1, len(data)) - 1}/{len(data)}"
            data, status = data[first : last + 1], 206
            self.server.ranges.append((first, last))
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        if place:
            self.send_header("Content-Range", place)
        self.send_header("ETag", self.server.tags.pop() if self.server.tags else '"one"')
        self.end_headers()
        try:
            self.wfile.write(data)
        except OSError:
            return  # the reader hung up, as it should where ranges are ignored
        self.server.sent += len(data)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    pytest.importorskip("aiohttp", reason="needed: pip install aiohttp")
    folder = tmp_path / "served"
    folder.mkdir()
    monkeypatch.setenv("SEMOBRIDGE_CACHE", str(tmp_path / "cache"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Server(folder) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def write(model: nn.Module, path: Path, **extra: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().clone().contiguous() for k, v in model.state_dict().items()}
    save_file({**state, **extra}, str(path))


# -- files -------------------------------------------------------------------------------------------

MODELS = {"open_clip": open_clip_model, "Hugging Face": hugging_face_model, "timm": timm_linear}


@pytest.mark.parametrize("name", MODELS)
def test_local_file(name: str, tmp_path: Path):
    model = MODELS[name]()
    write(model, tmp_path / "weights.safetensors")
    b = sb.Bridge.from_pretrained(tmp_path / "weights.safetensors", text_length=2.0)
    assert torch.equal(b.text_projection, text_projection(model)) and b.text_length == 2.0
    iso = sb.IsoCLIP.from_pretrained(str(tmp_path / "weights.safetensors"), k_top=2, k_bottom=1)
    assert torch.equal(iso.image_projection, image_projection(model))
    assert torch.equal(iso.text_projection, text_projection(model))
    x = torch.randn(3, iso.image_projection.shape[0])
    assert_same_bits(iso.image(x), sb.IsoCLIP.from_clip(model, k_top=2, k_bottom=1).image(x))


@pytest.mark.parametrize("file", ["open_clip_model.safetensors", "model.safetensors"])
def test_folder(file: str, tmp_path: Path):
    model = open_clip_model()
    write(model, tmp_path / file)
    assert torch.equal(sb.Bridge.from_pretrained(tmp_path).text_projection, model.text_projection)


def test_embedded_checkpoint():
    path = Path(sb.__file__).parent / "data" / "picto_clip.safetensors"
    model = sb.load_picto_clip()[0]
    assert torch.equal(sb.Bridge.from_pretrained(path).text_projection, model.text_projection)


def shards(folder: Path) -> tuple[Tensor, Tensor]:
    folder.mkdir(parents=True, exist_ok=True)
    text, image = torch.randn(6, 8), torch.randn(6, 10)  # Linear layers: [D, in]
    save_file({"text_projection.weight": text}, str(folder / "a.safetensors"))
    save_file({"visual_projection.weight": image}, str(folder / "b.safetensors"))
    names = {"text_projection.weight": "a.safetensors", "visual_projection.weight": "b.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    return text.T, image.T


def test_shards(tmp_path: Path):
    text, image = shards(tmp_path)
    iso = sb.IsoCLIP.from_pretrained(tmp_path)
    assert torch.equal(iso.text_projection, text) and torch.equal(iso.image_projection, image)


AWAY = [
    "../a.safetensors", "sub/../../a.safetensors", "/{folder}/a.safetensors", "..", "", "./../a.safetensors",
    "https://host/a.safetensors", "..\\a.safetensors",
]  # fmt: skip


@pytest.mark.parametrize("name", AWAY)
def test_shards_that_leave_their_folder_are_refused(name: str, tmp_path: Path):
    folder, index = tmp_path / "own", tmp_path / "own" / "model.safetensors.index.json"
    shards(folder)
    (folder / "sub").mkdir()
    (folder / "a.safetensors").rename(tmp_path / "a.safetensors")
    names = json.loads(index.read_text())["weight_map"]
    names["text_projection.weight"] = name.replace("{folder}", str(tmp_path))
    index.write_text(json.dumps({"weight_map": names}))
    with pytest.raises(ValueError, match=r"index\.json must name shards below its own folder, got '"):
        sb.Bridge.from_pretrained(folder)


def test_shards_in_folders_of_their_own_and_behind_links(tmp_path: Path):
    """As a cache of the hub keeps them: links to blobs beside the snapshot."""
    folder, index = tmp_path / "own", tmp_path / "own" / "model.safetensors.index.json"
    text, _ = shards(folder)
    (folder / "sub..1").mkdir()
    (folder / "a.safetensors").rename(tmp_path / "blob")
    (folder / "sub..1" / "a b-00001.safetensors").symlink_to(tmp_path / "blob")
    names = json.loads(index.read_text())["weight_map"]
    index.write_text(
        json.dumps({"weight_map": {**names, "text_projection.weight": "sub..1/a b-00001.safetensors"}})
    )
    assert torch.equal(sb.Bridge.from_pretrained(folder).text_projection, text)


# -- HTTP --------------------------------------------------------------------------------------------


def test_ranges_fetch_the_projections_alone(server: Server):
    model = open_clip_model()
    write(model, server.folder / "big.safetensors", ballast=torch.zeros(2_000_000))
    size = (server.folder / "big.safetensors").stat().st_size
    iso = sb.IsoCLIP.from_pretrained(f"{server.url}/big.safetensors")
    assert torch.equal(iso.image_projection, model.visual.proj)
    assert torch.equal(iso.text_projection, model.text_projection)
    matrices = 4 * (iso.image_projection.numel() + iso.text_projection.numel())
    assert server.sent <= matrices + checkpoints._FIRST and server.sent < size / 100
    assert len(server.ranges) == 3


def test_long_headers(server: Server):
    model = open_clip_model()
    extra = {f"a rather long name of a tensor that fills the header {i}": torch.zeros(1) for i in range(900)}
    write(model, server.folder / "m.safetensors", **extra)
    b = sb.Bridge.from_pretrained(f"{server.url}/m.safetensors")
    assert torch.equal(b.text_projection, model.text_projection) and len(server.ranges) == 3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_dtypes(server: Server, dtype: torch.dtype):
    w = torch.randn(6, 4).to(dtype)
    save_file({"text_projection": w}, str(server.folder / "m.safetensors"))
    got = sb.Bridge.from_pretrained(f"{server.url}/m.safetensors").text_projection
    assert torch.equal(got.double(), w.double())


def test_kept_on_disk_and_fetched_again_on_demand(server: Server, tmp_path: Path):
    path, url = server.folder / "m.safetensors", f"{server.url}/m.safetensors"
    save_file({"text_projection": torch.eye(4)}, str(path))
    sb.Bridge.from_pretrained(url)
    count = len(server.ranges)
    save_file({"text_projection": 2 * torch.eye(4)}, str(path))
    assert torch.equal(sb.Bridge.from_pretrained(url).text_projection, torch.eye(4))
    assert len(server.ranges) == count, "no request for what is kept"
    assert torch.equal(sb.Bridge.from_pretrained(url, refresh=True).text_projection, 2 * torch.eye(4))
    (kept,) = (tmp_path / "cache").iterdir()
    kept.write_bytes(kept.read_bytes()[:-3])
    assert torch.equal(sb.Bridge.from_pretrained(url).text_projection, 2 * torch.eye(4)), "damaged"
    other = tmp_path / "elsewhere"
    sb.Bridge.from_pretrained(url, cache_dir=other)
    assert len(list(other.iterdir())) == 1
    server.status = 500
    assert torch.equal(sb.Bridge.from_pretrained(url).text_projection, 2 * torch.eye(4)), "offline"


def test_unwritable_cache_is_only_a_warning(server: Server, tmp_path: Path, caplog):
    save_file({"text_projection": torch.eye(4)}, str(server.folder / "m.safetensors"))
    (tmp_path / "file").write_text("")
    url = f"{server.url}/m.safetensors"
    assert sb.Bridge.from_pretrained(url, cache_dir=tmp_path / "file" / "cache").rank == 4
    assert "could not be kept" in caplog.text


def test_redirects_keep_the_range(server: Server):
    save_file({"text_projection": torch.eye(4)}, str(server.folder / "m.safetensors"))
    assert sb.Bridge.from_pretrained(f"{server.url}/moved/m.safetensors").rank == 4


def test_signed_addresses_stay_as_they_are(server: Server):
    """What a query quotes is not unquoted on the way: a signature would not fit any more."""
    save_file({"text_projection": torch.eye(4)}, str(server.folder / "m.safetensors"))
    assert sb.Bridge.from_pretrained(f"{server.url}/m.safetensors?sign=a%2Fb%3D&x=%7E").rank == 4
    assert set(server.queries) == {"sign=a%2Fb%3D&x=%7E"}


def test_other_file_systems():
    """Whatever fsspec has, here its own memory; shards too."""
    import fsspec

    memory, text, image = fsspec.filesystem("memory"), torch.randn(3, 4), torch.randn(5, 4)
    try:
        memory.pipe("/one/m.safetensors", save({"text_projection": text, "z": torch.zeros(10**6)}))
        assert torch.equal(sb.Bridge.from_pretrained("memory://one/m.safetensors").text_projection, text)
        names = {"text_projection": "sub/a b", "visual.proj": "b"}
        memory.pipe("/two/model.safetensors.index.json", json.dumps({"weight_map": names}).encode())
        memory.pipe({"/two/sub/a b": save({"text_projection": text}), "/two/b": save({"visual.proj": image})})
        iso = sb.IsoCLIP.from_pretrained("memory://two/model.safetensors.index.json", k_top=1, k_bottom=1)
        assert torch.equal(iso.text_projection, text) and torch.equal(iso.image_projection, image)
        with pytest.raises(FileNotFoundError, match=r"memory://one/none must exist, got no such file"):
            sb.Bridge.from_pretrained("memory://one/none")
    finally:
        memory.rm("/one", recursive=True)
        memory.rm("/two", recursive=True)


def test_a_protocol_that_nobody_knows():
    with pytest.raises(ValueError, match=r"nope://a/b must have a protocol that fsspec knows, got .*; check"):
        sb.Bridge.from_pretrained("nope://a/b")


def test_http_without_its_library(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    text = r"http:// must have its file system installed, got .*; pip install 'semobridge-ext\[http\]'"
    with pytest.raises(ImportError, match=text):
        sb.Bridge.from_pretrained("http://127.0.0.1:9/m.safetensors")


# -- refusals ----------------------------------------------------------------------------------------


def test_server_without_ranges(server: Server):
    save_file({"text_projection": torch.eye(4), "rest": torch.zeros(10**6)}, str(server.folder / "m"))
    server.ignore_ranges = True
    with pytest.raises(ValueError, match=r"must answer range requests, got status 200; download the file"):
        sb.Bridge.from_pretrained(f"{server.url}/m")


def test_file_that_changes_meanwhile(server: Server):
    save_file({"text_projection": torch.eye(4)}, str(server.folder / "m"))
    server.tags = ['"two"', '"one"']
    with pytest.raises(ValueError, match="must stay the same while it is read"):
        sb.Bridge.from_pretrained(f"{server.url}/m")


@pytest.mark.parametrize(
    "status,kind,text",
    [
        (404, FileNotFoundError, "must exist, got no such file; check name"),
        (401, PermissionError, "must be open to you, got status 401; log in"),
        (503, ConnectionError, "must be readable, got status 503"),
    ],
)
def test_status(server: Server, status: int, kind: type, text: str):
    server.status = status
    with pytest.raises(kind, match=rf"Bridge.from_pretrained: {server.url}/m {text}"):
        sb.Bridge.from_pretrained(f"{server.url}/m")


def test_no_network(tmp_path: Path):
    pytest.importorskip("aiohttp", reason="needed: pip install aiohttp")
    with pytest.raises(ConnectionError, match=r"must be reachable, got .*; without a network pass a local"):
        sb.Bridge.from_pretrained("http://127.0.0.1:9/m.safetensors", cache_dir=tmp_path)


def header(entry: object) -> bytes:
    data = json.dumps({"text_projection": entry}).encode()
    return len(data).to_bytes(8, "little") + data


FOREIGN = {
    "empty": (b"", "ends early"),
    "short": (b"abc", "a header of"),
    "pickle": (b"\x80\x02ctorch" + b"x" * 100, "a header of"),
    "no json": ((5).to_bytes(8, "little") + b"hello", "Expecting value"),
    "no offsets": (header({"dtype": "F32", "shape": [2, 2]}), "data_offsets"),
    "integers": (header({"dtype": "I64", "shape": [1, 1], "data_offsets": [0, 8]}), "I64"),
    "sizes": (header({"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 8]}), r"\[2, 2\] in 8 bytes"),
    "cut": (
        header({"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}) + b"x" * 9,
        "ends after 9 of 16",
    ),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_files_behind_a_url(server: Server, name: str):
    data, text = FOREIGN[name]
    (server.folder / "m").write_bytes(data)
    with pytest.raises(ValueError, match=rf"^Bridge.from_pretrained: .*/m must be .*{text}"):
        sb.Bridge.from_pretrained(f"{server.url}/m")
    assert not list(server.folder.parent.glob("cache/*"))


def test_what_is_missing_is_named(tmp_path: Path):
    path = tmp_path / "m.safetensors"
    save_file({"text_projection": torch.eye(4), "visual.trunk.attn_pool.kv.weight": torch.eye(2)}, str(path))
    with pytest.raises(
        ValueError, match=r"must hold a linear image projection, got none of visual\.proj, .*SigLIP"
    ):
        sb.IsoCLIP.from_pretrained(path)
    save_file(
        {"text.text_projection.weight": torch.eye(4), "text.text_projection.bias": torch.ones(3)}, str(path)
    )
    with pytest.raises(ValueError, match=r"text_projection\.bias of .* must be \[4\] floats, got"):
        sb.Bridge.from_pretrained(path)
    save_file({"text_projection": torch.ones(4)}, str(path))
    with pytest.raises(ValueError, match=r"text_projection of .* must be a float matrix, got .* shape \[4\]"):
        sb.Bridge.from_pretrained(path)
    torch.save({"text_projection": torch.eye(4)}, tmp_path / "m.bin")
    with pytest.raises(
        ValueError, match=r"m\.bin must be a whole safetensors file.*pickled ones are never read"
    ):
        sb.Bridge.from_pretrained(tmp_path / "m.bin")
    with pytest.raises(FileNotFoundError, match=r"name_or_path must exist, got .*none\.safetensors"):
        sb.Bridge.from_pretrained(tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError, match=r"must hold one of open_clip_model\.safetensors"):
        (tmp_path / "empty").mkdir()
        sb.Bridge.from_pretrained(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"name_or_path must be a safetensors file, .* got .*some words"):
        sb.Bridge.from_pretrained("some words")
    (tmp_path / "empty" / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match=r"must be the index of a checkpoint"):
        sb.Bridge.from_pretrained(tmp_path / "empty")
