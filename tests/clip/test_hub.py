"""from_pretrained through the real huggingface_hub, against a server that speaks the hub's protocol."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save

import semobridge_ext as sb
from semobridge_ext.clip import checkpoints
from tests.support.hub_server import Hub, Repository, commit_of, connected, running_hub

TEXT, IMAGE = torch.arange(12.0).reshape(3, 4) + 1, torch.arange(20.0).reshape(5, 4) - 7
# The matrices lie behind the first request, and far more lies behind them.
STATE = {"a": torch.zeros(30_000), "text_projection": TEXT, "visual.proj": IMAGE, "z": torch.ones(500_000)}
WHOLE = save(STATE)
FILE = "open_clip_model.safetensors"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("SEMOBRIDGE_CACHE", str(tmp_path / "cache"))
    with running_hub() as server, connected(server, monkeypatch, tmp_path / "home"):
        server.repositories["org/repo"] = Repository({FILE: WHOLE, "README.md": b"words"})
        yield server


def fetch(name: str = "org/repo", **options: object) -> torch.Tensor:
    return sb.Bridge.from_pretrained(name, **options).text_projection


def kept(tmp_path: Path) -> list[Path]:
    return sorted(tmp_path.glob("cache/*"))


# -- what is read ----------------------------------------------------------------------------------------


def test_the_projections_alone_are_read(hub: Hub):
    iso = sb.IsoCLIP.from_pretrained("org/repo", k_top=1, k_bottom=1)
    assert torch.equal(iso.text_projection, TEXT) and torch.equal(iso.image_projection, IMAGE)
    parts = [one for one in hub.asked("/cdn/") if one.method == "GET"]
    assert [one.status for one in parts] == [206] * 3
    assert sum(one.sent for one in parts) == checkpoints._FIRST + 4 * (12 + 20)
    assert sum(one.sent for one in hub.requests) < len(WHOLE) / 20
    # All parts are of the commit that the name had first.
    commit = hub.repositories["org/repo"].commit
    assert {one.path.split("/")[4] for one in hub.asked("/resolve/")} == {commit}


@pytest.mark.parametrize(
    "name",
    ["hf-hub:org/repo", "hf://org/repo", f"hf-hub:org/repo/{FILE}", "hf://org/repo/sub/b.safetensors",
     "URL/org/repo/resolve/main/sub/b.safetensors?download=true"],
)  # fmt: skip
def test_names(hub: Hub, name: str):
    hub.repositories["org/repo"].versions[0]["sub/b.safetensors"] = WHOLE
    assert torch.equal(fetch(name.replace("URL", hub.url)), TEXT)


def test_shards(hub: Hub):
    index = {"weight_map": {"text_projection": "sub/a.safetensors", "visual.proj": "b.safetensors"}}
    hub.repositories["org/big"] = Repository({
        "model.safetensors.index.json": json.dumps(index).encode(),
        "sub/a.safetensors": save({"text_projection": TEXT}), "b.safetensors": save({"visual.proj": IMAGE}),
    })  # fmt: skip
    iso = sb.IsoCLIP.from_pretrained("org/big", k_top=1, k_bottom=1)
    assert torch.equal(iso.text_projection, TEXT) and torch.equal(iso.image_projection, IMAGE)


def test_a_push_while_the_parts_are_read(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    """main moves after the header: the matrix is still that of the first commit."""
    repository = hub.repositories["org/repo"]
    plain = checkpoints._Remote.tensor

    def pushed(self: object, key: str) -> torch.Tensor:
        repository.versions.append({FILE: save({**STATE, "text_projection": -TEXT})})
        return plain(self, key)

    monkeypatch.setattr(checkpoints._Remote, "tensor", pushed)
    assert torch.equal(fetch(), TEXT)
    assert torch.equal(fetch(refresh=True), -TEXT)


def test_revisions(hub: Hub):
    repository = hub.repositories["org/repo"]
    first = repository.commit
    repository.versions.append({FILE: save({**STATE, "text_projection": 2 * TEXT})})
    assert torch.equal(fetch(revision=first), TEXT) and torch.equal(fetch(), 2 * TEXT)
    with pytest.raises(FileNotFoundError, match=r"^Bridge\.from_pretrained: .* got no revision 'v2'; look"):
        fetch(revision="v2")


# -- what is kept ----------------------------------------------------------------------------------------


def test_what_is_kept_needs_no_request(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    fetch()
    count = len(hub.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert torch.equal(fetch(), TEXT) and len(hub.requests) == count


def test_a_file_in_the_cache_of_huggingface_hub_is_read_there(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    huggingface_hub.hf_hub_download("org/repo", FILE)
    count = len(hub.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert torch.equal(fetch(), TEXT) and torch.equal(fetch(f"hf://org/repo/{FILE}"), TEXT)
    assert len(hub.requests) == count


def test_offline_without_anything_kept(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match=r"must be in a cache while HF_HUB_OFFLINE is set, .*; unset"):
        fetch()
    assert not hub.requests


# -- failures --------------------------------------------------------------------------------------------


def test_a_busy_server_is_asked_again(hub: Hub):
    hub.failures["/cdn/"] = [503, 429]
    assert torch.equal(fetch(), TEXT)
    assert len(hub.waits) == 2 and min(hub.waits) >= 2  # as its Retry-After says


@pytest.mark.parametrize("where", ["/cdn/", "/api/"])
def test_a_server_that_stays_busy(hub: Hub, tmp_path: Path, where: str):
    hub.failures[where] = [503] * 99
    with pytest.raises(ConnectionError, match=r"must be readable, got status 503; try again later"):
        fetch()
    assert not kept(tmp_path)


def test_a_connection_that_breaks_is_made_again(hub: Hub):
    hub.cuts = [1000, 10]
    assert torch.equal(fetch(), TEXT)
    assert [one.sent for one in hub.asked("/cdn/")][:2] == [1000, 10]


def test_no_network(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match=r"must be reachable, got .*; without a network pass a local"):
        fetch()


def test_the_deadline_ends_a_server_that_stalls(hub: Hub, tmp_path: Path):
    hub.stalls = True
    with pytest.raises(ConnectionError, match=r"no whole answer within 0\.4 s; raise timeout="):
        fetch(timeout=0.4)
    assert not kept(tmp_path)


def test_a_repository_that_is_not_there(hub: Hub):
    with pytest.raises(FileNotFoundError, match=r"got no repository org/none that you may see; check the"):
        fetch("org/none")


def test_files_that_are_not_there(hub: Hub):
    with pytest.raises(
        FileNotFoundError, match=rf"other\.safetensors must exist, got .* with {FILE}, README"
    ):
        fetch("hf://org/repo/other.safetensors")
    hub.repositories["org/old"] = Repository({"pytorch_model.bin": b"pickle"})
    with pytest.raises(FileNotFoundError, match=rf"must hold one of {FILE}, .* got pytorch_model\.bin; pass"):
        fetch("org/old")


@pytest.mark.parametrize("token", [None, "wrong"])
def test_gated(hub: Hub, monkeypatch: pytest.MonkeyPatch, token: str | None):
    hub.repositories["org/gated"] = Repository({FILE: WHOLE}, token="right", gated=True)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(PermissionError, match=r"got a gated repository; accept its terms at .*HF_TOKEN or"):
        fetch("org/gated")
    monkeypatch.setenv("HF_TOKEN", "right")
    assert torch.equal(fetch("org/gated"), TEXT)


def test_private(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    hub.repositories["org/own"] = Repository({FILE: WHOLE}, token="right")
    with pytest.raises(FileNotFoundError, match=r"no repository org/own that you may see; .*HF_TOKEN"):
        fetch("org/own")
    monkeypatch.setenv("HF_TOKEN", "right")
    assert torch.equal(fetch("org/own"), TEXT)
    assert {one.token for one in hub.asked("/resolve/")} == {"right"}
    assert {one.token for one in hub.asked("/cdn/")} == {None}, "the token stays with the hub"


# -- bytes that disagree ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [lambda part: part[:-3], lambda part: part + b"abc", lambda part: b""],
    ids=["short", "long", "empty"],
)
def test_another_number_of_bytes(hub: Hub, tmp_path: Path, body: object):
    hub.body = body
    with pytest.raises(ValueError, match=r"must send the 65536 bytes of a range, got \d+; try again"):
        fetch()
    assert not kept(tmp_path)


def test_a_server_without_ranges(hub: Hub, tmp_path: Path):
    hub.ignores_ranges = True
    with pytest.raises(ValueError, match=rf"must send the 65536 bytes of a range, got {len(WHOLE)}; "):
        fetch()
    assert not kept(tmp_path)


def test_the_commit_is_what_a_file_is_read_at(hub: Hub):
    fetch()
    assert commit_of({FILE: WHOLE, "README.md": b"words"}) in hub.asked("/tree/")[0].path
