"""The guided targets: each begins green on its seeds, and a loader that fails is noticed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.guided import loaders, run
from tests.support.source_tree import need_source


@pytest.mark.parametrize(
    "name",
    [
        *loaders.OTHERS,
        "Bridge.load",
        "SupportSet.load",
        "extract, shards.jsonl",
        *(
            pytest.param(n, marks=pytest.mark.slow)
            for n in ("invert, .npy", "retrieve, img_emb/img_emb_0.npy")
        ),
    ],
)
def test_seeds(name: str, tmp_path: Path):
    """Without atheris: the program that it drives takes every seed, whole and cut."""
    read = loaders.reader(name, tmp_path)
    found = loaders.seeds(name)
    assert found
    for data in found:
        for end in (len(data), len(data) // 2, 3):
            read(data[:end], tmp_path)


def test_a_reader_that_fails_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    read = loaders.reader("Bridge.load", tmp_path)
    from semobridge_ext import _files

    def broken(*given: object, **named: object) -> None:
        raise KeyError("x")

    monkeypatch.setattr(_files, "load_tensors", broken)
    with pytest.raises(AssertionError, match="another error: KeyError"):
        read(loaders.seeds("Bridge.load")[0], tmp_path)


def test_a_packed_file_comes_back():
    data = loaders.remote_seeds()[0]
    whole = loaders.unpacked(data)
    assert loaders.packed(whole) == data and int.from_bytes(whole[:8], "little") == data.index(loaders.BREAK)


@pytest.mark.slow
@pytest.mark.skipif(not run.has_atheris(), reason=f"{run.NEED_ATHERIS}; then: make fuzz")
def test_a_loader_under_atheris():
    status, told, count = run.run("tar", 5)
    assert status == 0 and count > 200, told[-3000:]


def clang() -> None:
    need_source()
    if not run.has_clang():
        pytest.skip(f"{run.NEED_CLANG}; then: make fuzz")


@pytest.mark.slow
@pytest.mark.campaign
def test_kernels_under_libfuzzer():
    clang()
    status, told, count = run.run(run.KERNELS, 10)
    assert status == 0 and count > 1000, told[-3000:]
