"""runtime/backend.py and the choice of instruction set: requests, environment, refusals."""

from __future__ import annotations

import subprocess
import threading

import pytest
import torch

import semobridge_ext as sb
from semobridge_ext._ops.project_normalize import cpu as cpu_projection
from semobridge_ext.bridging import fold as bridge_fold
from semobridge_ext.ops import project_normalize
from semobridge_ext.runtime import backend as _backend
from semobridge_ext.runtime.choice import resolve
from tests.support.assertions import assert_close, assert_same_bits
from tests.support.fresh import Program, run_fresh
from tests.support.places import runnable_isas

_CALL = """
import torch, semobridge_ext as sb
from semobridge_ext.runtime import backend as _backend
y = sb.ops.project_normalize(torch.eye(3), torch.eye(3))
assert torch.equal(y, torch.eye(3))
print(_backend.requested(), sb.build_info()["isa"])
"""


@pytest.mark.parametrize("name", ["auto", "native", "eager"])
def test_backends_agree(name: str):
    x, matrix = torch.randn(7, 33), torch.randn(33, 20)
    with sb.backend(name):
        got = project_normalize(x, matrix)
    want = sb.reference.project_normalize(x.double(), matrix.double())
    assert_close(got, want, "op")


def test_eager_backend_does_not_touch_the_native_core(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("native kernel called")

    monkeypatch.setattr(cpu_projection, "Projection", refuse)
    monkeypatch.setattr(bridge_fold, "Projection", refuse)
    b = sb.Bridge(torch.randn(6, 5))
    with sb.backend("eager"):
        project_normalize(torch.randn(2, 3), torch.randn(3, 4))
        b(torch.randn(2, 5))
    with sb.backend("native"), pytest.raises(AssertionError, match="native kernel called"):
        b(torch.randn(2, 5))


def test_backend_nests_and_is_restored_after_an_error():
    before = _backend.requested()
    with sb.backend("eager"):
        with pytest.raises(RuntimeError, match="inside"), sb.backend("native"):
            assert _backend.requested() == "native"
            raise RuntimeError("inside")
        assert _backend.requested() == "eager"
    assert _backend.requested() == before


def test_backend_is_of_this_thread_only():
    seen = []
    with sb.backend("eager"):
        thread = threading.Thread(target=lambda: seen.append(_backend.requested()))
        thread.start()
        thread.join()
    assert seen == ["auto"]


@pytest.mark.parametrize("name", ["cuda", "", "Native", None, 3])
def test_unknown_backend(name):
    with pytest.raises(ValueError, match=r"^backend: name must be one of auto, native.*, got .*; "):
        sb.backend(name).__enter__()


def test_triton_is_refused_with_a_reason(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    x, labels = torch.eye(3), torch.arange(3)
    for call in (lambda: sb.topk(x, x, 1), lambda: sb.support_logits(x, x, labels, 3)):
        with sb.backend("triton"), pytest.raises(NotImplementedError, match=r"needs CUDA tensors.*; move "):
            call()


def test_no_triton_kernel_multiplies_by_a_matrix():
    b = sb.Bridge(torch.eye(4))
    for call in (lambda: project_normalize(torch.eye(3), torch.eye(3)), lambda: b(torch.eye(4))):
        with (
            sb.backend("triton"),
            pytest.raises(NotImplementedError, match=r"has no kernel for this call; use "),
        ):
            call()


def test_native_on_another_device_is_refused():
    x, matrix = torch.ones(2, 3, device="meta"), torch.ones(3, 4, device="meta")
    with sb.backend("native"), pytest.raises((NotImplementedError, RuntimeError), match="; "):
        torch.ops.semobridge.project_normalize.default  # noqa: B018 - registered
        resolve("project_normalize", x.device)
    assert project_normalize(x, matrix).shape == (2, 4)


def test_missing_native_module_is_explained(monkeypatch):
    monkeypatch.setattr(_backend, "_C", None)
    monkeypatch.setattr(_backend, "NATIVE_ERROR", "no such file")
    with sb.backend("native"), pytest.raises(RuntimeError, match=r"no such file.*pip install"):
        project_normalize(torch.eye(3), torch.eye(3))
    assert torch.equal(project_normalize(torch.eye(3), torch.eye(3)), torch.eye(3)), "auto falls back"


def _environment_cases() -> list[tuple[str, str, str]]:
    words = ["eager", "native", ""]  # an empty word counts as unset
    return [(w, w or "auto", isa) for w, isa in zip(words, runnable_isas(), strict=False)]


@pytest.fixture(scope="module")
def started() -> dict[tuple[str | None, str | None], subprocess.CompletedProcess[str]]:
    """The package imported under each environment: (backend, instruction set), None where unset."""
    pairs = [(word, isa) for word, _, isa in _environment_cases()]
    pairs += [("gpu", None), (None, "sse9"), (None, None)]
    words = [
        {name: word for name, word in (("SEMOBRIDGE_BACKEND", b), ("SEMOBRIDGE_ISA", i)) if word is not None}
        for b, i in pairs
    ]
    return dict(zip(pairs, run_fresh([Program(_CALL, w) for w in words]), strict=True))


@pytest.mark.parametrize("word,backend,isa", _environment_cases())
def test_backend_and_isa_from_environment(word: str, backend: str, isa: str, started):
    done = started[word, isa]
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [backend, isa]


def test_bad_backend_in_environment(started):
    done = started["gpu", None]
    assert done.returncode != 0
    assert "ValueError: SEMOBRIDGE_BACKEND" in done.stderr and "got 'gpu'" in done.stderr


def test_bad_isa_in_environment(started):
    done = started[None, "sse9"]
    assert done.returncode > 0, "an error, not a crash"
    compiled = ", ".join(name for name, (built, _) in _backend._C.isa_table().items() if built)
    assert f"ValueError: SEMOBRIDGE_ISA: must be one of {compiled}, got sse9; " in done.stderr
    assert "available here: portable" in done.stderr


def test_default_is_the_widest_runnable(started):
    done = started[None, None]
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["auto", runnable_isas()[-1]]


def test_set_isa_refuses_and_keeps(isa: str):
    with pytest.raises(ValueError, match="must be one of"):
        _backend._C.set_isa("neon")
    assert _backend._C.active_isa() == isa == sb.build_info()["isa"]


def test_many_threads_at_once(isa: str):
    """The lock is released around kernels, so calls of several Python threads overlap."""
    matrix = torch.randn(128, 96)
    inputs = [torch.randn(n, 128) for n in (1, 3, 30, 200)]
    want = [project_normalize(x, matrix) for x in inputs]
    failures: list[str] = []

    def work(index: int) -> None:
        try:
            for _ in range(20):
                assert_same_bits(project_normalize(inputs[index], matrix), want[index])
        except AssertionError as error:
            failures.append(str(error))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]


@pytest.mark.parametrize("name", ["gpu", "", None])
def test_unknown_names_are_refused_at_the_call(name):
    """As a statement, without `with`, it would otherwise say nothing."""
    with pytest.raises(ValueError, match="name must be one of auto, native, triton, eager"):
        sb.backend(name)
