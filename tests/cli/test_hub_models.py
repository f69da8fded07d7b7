"""Whole models through the real huggingface_hub and open_clip, from a server of the hub's protocol."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import numpy as np
import open_clip
import pytest
import torch
from huggingface_hub import constants
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import save

from semobridge_ext import cli
from semobridge_ext.cli import models
from semobridge_ext.cli.shards import Folder
from tests.support.assertions import assert_row_relative, assert_same_bits
from tests.support.hub_server import Hub, Repository, connected, running_hub
from tests.support.source_tree import environment, run

WEIGHTS, CONFIG = "open_clip_model.safetensors", "open_clip_config.json"
ARCHITECTURE = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 4, "heads": 1, "layers": 1},
}
PREPROCESS = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7], "size": [32, 32]}


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(5)
    return open_clip.CLIP(**ARCHITECTURE).eval()


@pytest.fixture(scope="module")
def weights(model: torch.nn.Module) -> bytes:
    return save({name: value.contiguous() for name, value in model.state_dict().items()})


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: bytes) -> Iterator[Hub]:
    config = json.dumps({"model_cfg": ARCHITECTURE, "preprocess_cfg": PREPROCESS}).encode()
    with running_hub() as server, connected(server, monkeypatch, tmp_path / "home"):
        server.repositories["org/tiny"] = Repository({WEIGHTS: weights, CONFIG: config})
        yield server


def got(server: Hub) -> list[int]:
    """Bytes of each answer with a body from the CDN."""
    return [one.sent for one in server.asked("/cdn/") if one.method == "GET"]


def test_a_model_of_the_hub(hub: Hub, model: torch.nn.Module):
    encoder = models.load("extract", "hf-hub:org/tiny", None)
    loaded = encoder.model.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())
    assert_same_bits(loaded["visual.proj"], model.visual.proj)
    assert encoder.preprocess.transforms[-1].mean == [0.1, 0.2, 0.3]
    assert encoder.tokenizer(["a star"]).shape == (1, 8)


def test_extract_from_the_hub(hub: Hub, model: torch.nn.Module, tmp_path: Path, capsys):
    """Online once, then offline from the cache: the same features."""
    pixels = np.random.default_rng(0).integers(0, 255, (2, 40, 50, 3), np.uint8)
    (tmp_path / "in").mkdir()
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "in" / f"{i}.png")
    pytest.importorskip("pyarrow", reason="needed: pip install pyarrow")
    command = ["--model", "hf-hub:org/tiny", "--workers", "0", "--dtype", "float32", "--quiet"]
    assert cli.main(["extract", str(tmp_path / "in"), str(tmp_path / "one"), *command]) == 0
    count = len(hub.requests)
    constants.HF_HUB_OFFLINE = True  # the fixture puts it back
    assert cli.main(["extract", str(tmp_path / "in"), str(tmp_path / "two"), *command]) == 0
    assert len(hub.requests) == count
    transform = image_transform_v2(PreprocessCfg(**PREPROCESS), is_train=False)
    with torch.no_grad():
        want = model.encode_image(torch.stack([transform(Image.fromarray(p)) for p in pixels]))
    for name in ("one", "two"):
        folder = Folder("test", tmp_path / name)
        assert_same_bits(folder.features(folder.shards()[0]), want)


def test_a_tag_of_the_hub(hub: Hub, model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """`--model NAME --pretrained TAG`, whose file lies in a repository."""
    (tmp_path / "tiny-clip.json").write_text(json.dumps(ARCHITECTURE))
    open_clip.add_model_config(tmp_path / "tiny-clip.json")
    try:
        tag = {"hf_hub": "org/tiny/"}
        monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-clip", {"own": tag})
        encoder = models.load("extract", *models.resolve("extract", "tiny-clip", "own"))
        assert_same_bits(encoder.model.visual.proj, model.visual.proj)
    finally:
        (tmp_path / "tiny-clip.json").unlink()
        open_clip.factory._MODEL_CONFIGS.pop("tiny-clip")
        open_clip.factory._MODEL_CONFIG_PATHS.remove(tmp_path / "tiny-clip.json")


@pytest.mark.slow
def test_from_a_process_of_its_own(hub: Hub, model: torch.nn.Module, tmp_path: Path):
    """As a user has it: HF_ENDPOINT and HF_HOME alone say where the hub and its cache are."""
    pytest.importorskip("pyarrow", reason="needed: pip install pyarrow")
    (tmp_path / "in").mkdir()
    Image.new("RGB", (40, 40), "red").save(tmp_path / "in" / "a.png")
    command = [
        sys.executable, "-m", "semobridge_ext.cli", "extract", str(tmp_path / "in"), str(tmp_path / "out"),
        "--model", "hf-hub:org/tiny", "--workers", "0", "--dtype", "float32", "--quiet",
    ]  # fmt: skip
    given = environment() | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "own")}
    done = run(*command, env=given)
    assert done.returncode == 0, done.stderr
    transform = image_transform_v2(PreprocessCfg(**PREPROCESS), is_train=False)
    with torch.no_grad():
        want = model.encode_image(transform(Image.new("RGB", (40, 40), "red"))[None]).double()
    assert_row_relative(Folder("test", tmp_path / "out").load(), want / want.norm(), "features")


# -- failures --------------------------------------------------------------------------------------------


def test_a_download_goes_on_where_it_broke(hub: Hub, weights: bytes, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 5000)  # what is lost with a connection; 10 MB else
    hub.cuts = [10_000, 20_000]
    path = huggingface_hub.hf_hub_download("org/tiny", WEIGHTS)
    assert Path(path).read_bytes() == weights
    assert got(hub) == [10_000, 20_000, len(weights) - 30_000]
    ranges = [one.range for one in hub.asked("/cdn/") if one.method == "GET"]
    assert ranges == [None, "bytes=10000-", "bytes=30000-"]


def test_a_busy_server_is_asked_again(hub: Hub):
    hub.failures["/cdn/"] = [429]
    assert models.load("extract", "hf-hub:org/tiny", None).project
    assert hub.waits


def test_weights_that_end_early(hub: Hub):
    """open_clip drops what huggingface_hub says of them, and goes on with random ones."""
    hub.body = lambda part: part[:-16]
    with pytest.raises(RuntimeError, match=r"^extract: --model hf-hub:org/tiny .* must load, got"):
        models.load("extract", "hf-hub:org/tiny", None)


def test_weights_of_another_digest(hub: Hub, tmp_path: Path):
    """huggingface_hub compares the length alone."""
    hub.body = lambda part: part[:-16] + bytes(16)
    with pytest.raises(ValueError, match=rf"^extract: {WEIGHTS} of org/tiny must have the SHA-256 .*; del"):
        models.load("extract", "hf-hub:org/tiny", None)
    hub.body = None
    (kept,) = (path for path in tmp_path.rglob("blobs/*") if len(path.name) == 64)
    kept.unlink()
    assert models.load("extract", "hf-hub:org/tiny", None).project


def test_weights_that_cannot_be_had(hub: Hub):
    """open_clip goes on without them, with random ones."""
    hub.failures["/cdn/"] = [403] * 9
    with pytest.raises(RuntimeError, match=r"^extract: --model hf-hub:org/tiny .* must load, got"):
        models.load("extract", "hf-hub:org/tiny", None)
    del hub.repositories["org/tiny"].versions[0][WEIGHTS]
    with pytest.raises(RuntimeError, match=r"must load, got"):
        models.load("extract", "hf-hub:org/tiny", None)


def test_gated(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    hub.repositories["org/tiny"].gated, hub.repositories["org/tiny"].token = True, "right"
    with pytest.raises(RuntimeError, match=r"must load, got .*gated"):
        models.load("extract", "hf-hub:org/tiny", None)
    monkeypatch.setenv("HF_TOKEN", "right")
    assert models.load("extract", "hf-hub:org/tiny", None).project


def test_offline_without_anything_kept(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RuntimeError, match=r"must load, got .*; without a network pass"):
        models.load("extract", "hf-hub:org/tiny", None)
    assert not hub.requests
