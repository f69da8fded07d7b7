"""The embedded CLIP and the folders that all calls read, once for all files."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

import pytest

from semobridge_ext.cli import models
from tests.cli.calls.folders import CLASSES, EACH, SHARD
from tests.support.images import command, write


@pytest.fixture(scope="package", autouse=True)
def one_model() -> Iterator[None]:
    """The embedded CLIP is loaded once: most of a run's time would go to it."""
    once = cache(partial(models.load, "test"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "load", lambda _, name, tag, device="cpu": once(name, tag, device))
        yield


@pytest.fixture(scope="package")
def home(tmp_path_factory: pytest.TempPathFactory, one_model: None) -> Path:
    """What the commands make of a few drawings, the eighth of which is broken."""
    folder = tmp_path_factory.mktemp("calls")
    write(folder / "images", CLASSES, EACH)[7].write_bytes(b"no image")
    words = ["--quiet", "--workers", 0, "--shard-size", SHARD, "--batch-size", 2]
    assert command("extract", folder / "images", folder / "feats", *words) == 0
    assert command("map", folder / "feats", folder / "bridged", "--mapping", "bridge", "--quiet") == 0
    return folder
