"""SupportSet: the same sums as support_logits, appending, files, memory mapping, errors."""

from __future__ import annotations

import copy
import pickle
import threading
import time

import pytest
import torch

import semobridge_ext as sb
from semobridge_ext.fewshot import support_set
from tests.support.assertions import assert_close, assert_same_bits
from tests.support.fresh import Program, run_fresh
from tests.support.samples import DTYPES
from tests.support.support_problems import oracle, problem

C = 7


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_logits_are_support_logits(dtype: torch.dtype, weighted: bool, isa: str):
    q, k, labels, w = problem(19, 1300, C, 24, dtype)
    w = w if weighted else None
    support = sb.SupportSet(k, labels, C, weights=w)
    got = support.logits(q, beta=3.0)
    assert_same_bits(got, sb.support_logits(q, k, labels, C, beta=3.0, weights=w))
    assert len(support) == 1300 and support.width == 24 and support.num_classes == C
    assert support.keys is k and support.labels is labels and support.weights is w
    assert repr(support).startswith("SupportSet(1300 keys, 7 classes, 24 × ")


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("sizes", [(500, 1), (1, 500), (3, 0, 4), tuple([5] * 40), (300, 2, 2, 200)])
def test_appending_equals_building_at_once(sizes: tuple[int, ...], weighted: bool):
    q, k, labels, w = problem(11, sum(sizes), C, 16)
    cuts = [t.split(sizes) for t in (k, labels, w)]
    make = [(a, b, c if weighted else None) for a, b, c in zip(*cuts, strict=True)]
    support = sb.SupportSet(make[0][0], make[0][1], C, weights=make[0][2])
    for keys, rows, weights in make[1:]:
        support.append(keys, rows, weights)
    assert torch.equal(support.keys, k) and torch.equal(support.labels, labels)
    full = torch.bincount(labels, minlength=C) > 0
    want = oracle(q, k, labels, C, 2.0, w if weighted else None)
    assert_close(support.logits(q, beta=2.0)[:, full], want[:, full], "op")
    assert len(support._segments) <= 2 + len(k).bit_length(), "one segment per append is not merged"


def test_appending_does_not_copy_a_large_set():
    k = torch.randn(3000, 8)
    support = sb.SupportSet(k, torch.zeros(3000).long(), C)
    support.append(torch.randn(10, 8), torch.ones(10).long())
    assert support._segments[0].keys.data_ptr() == k.data_ptr()


def test_a_refused_append_changes_nothing():
    q, k, labels, _ = problem(3, 60, C, 8)
    support = sb.SupportSet(k, labels, C)
    before = support.logits(q)
    for keys, rows, weights, error, text in [
        (k, labels + C, None, ValueError, r"labels must lie in 0\.\.6, got \d+ at position 0"),
        (k[:, :4], labels, None, ValueError, "keys must have width 8"),
        (k.half(), labels, None, TypeError, r"keys must be torch.float32"),
        (k, labels, torch.ones(60), ValueError, "weights must be None"),
        (k, labels[:3], None, ValueError, r"labels must be \[60\]"),
    ]:
        with pytest.raises(error, match=f"SupportSet.append: {text}"):
            support.append(keys, rows, weights)
    assert_same_bits(support.logits(q), before)
    with pytest.raises(ValueError, match=r"SupportSet\.append: weights must be given"):
        sb.SupportSet(k, labels, C, weights=torch.ones(60)).append(k, labels)


def test_gradients_reach_queries_keys_and_weights():
    q, k, labels, w = (t.requires_grad_() if t.is_floating_point() else t for t in problem(5, 90, C, 8))
    support = sb.SupportSet(k, labels, C, weights=w)
    support.logits(q, beta=2.0).square().sum().backward()
    theirs = [t.detach().double().requires_grad_() for t in (q, k, w)]
    oracle(theirs[0], theirs[1], labels, C, 2.0, theirs[2]).square().sum().backward()
    for a, b in zip((q, k, w), theirs, strict=True):
        assert_close(a.grad, b.grad, "op_grad")


# -- files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_save_and_load(tmp_path, dtype: torch.dtype, weighted: bool, isa: str):
    q, k, labels, w = problem(9, 1100, C, 12, dtype)
    support = sb.SupportSet(k, labels, C, weights=w if weighted else None)
    path = tmp_path / "support.safetensors"
    support.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["support.safetensors"], "a temporary file is left"
    loaded = sb.SupportSet.load(path)
    assert loaded.num_classes == C and len(loaded) == 1100 and loaded.keys.dtype is dtype
    order = torch.argsort(labels, stable=True)
    assert torch.equal(loaded.keys, k[order]) and torch.equal(loaded.labels, labels[order])
    assert_same_bits(loaded.logits(q, beta=2.0), support.logits(q, beta=2.0))
    again = tmp_path / "again.safetensors"
    loaded.save(again)
    assert again.read_bytes() == path.read_bytes()


def test_save_after_append_and_append_after_load(tmp_path):
    q, k, labels, _ = problem(4, 900, C, 12)
    support = sb.SupportSet(k[:800], labels[:800], C)
    support.append(k[800:], labels[800:])
    assert len(support._segments) == 2
    support.save(tmp_path / "s")
    loaded = sb.SupportSet.load(tmp_path / "s")
    assert_same_bits(loaded.logits(q), sb.SupportSet(k, labels, C).logits(q))
    loaded.append(k[:50], labels[:50])
    more = torch.cat([k, k[:50]]), torch.cat([labels, labels[:50]])
    assert_close(loaded.logits(q), oracle(q, *more, C, 1.0), "op")


def test_the_file_is_plain_safetensors(tmp_path):
    from safetensors.torch import load_file

    _, k, labels, w = problem(1, 30, C, 5)
    sb.SupportSet(k, labels, C, weights=w).save(tmp_path / "s")
    tensors = load_file(tmp_path / "s")
    assert set(tensors) == {"keys", "labels", "weights"}
    assert torch.equal(tensors["weights"], w[torch.argsort(labels, stable=True)])


def test_loading_maps_instead_of_reading(tmp_path):
    """64 MiB of keys must not become resident by opening them; in a process of its own."""
    rows = 1 << 15
    labels = torch.arange(rows) % 100
    sb.SupportSet(torch.ones(rows, 1024, dtype=torch.float16), labels, 100).save(tmp_path / "s")
    program = """if True:
        import sys, torch, semobridge_ext as sb
        def resident():
            for line in open("/proc/self/status"):
                if line.startswith("VmRSS"):
                    return int(line.split()[1]) * 1024
        before = resident()
        support = sb.SupportSet.load(sys.argv[1])
        opened = resident() - before
        support.logits(torch.zeros(1, 1024))
        print(opened, resident() - before)
    """
    (done,) = run_fresh([Program(program, {}, [str(tmp_path / "s")])])
    assert done.returncode == 0, done.stderr
    opened, used = map(int, done.stdout.split())
    assert opened < 16 << 20 and used > 60 << 20, (opened, used)


@pytest.mark.parametrize("damage", ["truncated", "foreign", "unsorted", "missing"])
def test_bad_files_are_named_and_refused(tmp_path, damage: str):
    from safetensors.torch import save_file

    _, k, labels, _ = problem(1, 40, C, 5)
    path = tmp_path / "bad.safetensors"
    sb.SupportSet(k, labels, C).save(path)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-10])
    elif damage == "foreign":
        save_file({"keys": k, "labels": labels}, path)
    elif damage == "unsorted":
        meta = {"format": "semobridge-ext support 1", "num_classes": "7", "fields": "labels keys"}
        save_file({"keys": k, "labels": labels.sort().values.flip(0).contiguous()}, path, metadata=meta)
    else:
        path.unlink()
    with pytest.raises((ValueError, FileNotFoundError), match=r"SupportSet.load: .*bad\.safetensors"):
        sb.SupportSet.load(path)


def test_a_killed_save_leaves_the_old_file(tmp_path, monkeypatch):
    _, k, labels, _ = problem(1, 40, C, 5)
    path = tmp_path / "s"
    sb.SupportSet(k, labels, C).save(path)
    old = path.read_bytes()
    support = sb.SupportSet(k * 2, labels, C)
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        support.save(path)
    assert path.read_bytes() == old and [p.name for p in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"labels": torch.tensor([0, 9, 0])}, ValueError, r"labels must lie in 0\.\.1, got 9 at position 1"),
        ({"keys": torch.ones(3)}, ValueError, r"keys must be \[S, D\]"),
        ({"weights": torch.ones(2)}, ValueError, r"weights must be \[3\]"),
    ],
)
def test_bad_inputs(change: dict, error: type[Exception], text: str):
    arguments = {"keys": torch.ones(3, 4), "labels": torch.tensor([0, 1, 0]), "num_classes": 2, **change}
    weights = arguments.pop("weights", None)
    with pytest.raises(error, match=f"SupportSet: {text}"):
        sb.SupportSet(*arguments.values(), weights=weights)
    support = sb.SupportSet(torch.ones(3, 4), torch.tensor([0, 1, 0]), 2)
    with pytest.raises(ValueError, match=r"SupportSet\.logits: queries must have width 4"):
        support.logits(torch.ones(2, 5))
    with pytest.raises(ValueError, match=r"SupportSet\.logits: beta must be"):
        support.logits(torch.ones(2, 4), beta=-1)


def test_appends_wait_for_one_another(monkeypatch):
    make = support_set._segment

    def slow(*args):
        time.sleep(0.02)  # others come in between, if they can
        return make(*args)

    support = sb.SupportSet(torch.eye(40)[:4], torch.arange(4), 40)
    monkeypatch.setattr(support_set, "_segment", slow)
    workers = [
        threading.Thread(target=support.append, args=(torch.eye(40)[i : i + 4], torch.arange(i, i + 4)))
        for i in range(4, 40, 4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(support) == 40 and sorted(support.labels.tolist()) == list(range(40))
    assert support.logits(torch.eye(40)).argmax(dim=1).tolist() == list(range(40))


def test_save_writes_the_rows_of_one_moment(tmp_path, monkeypatch):
    support = sb.SupportSet(torch.eye(8)[:6], torch.arange(6), 8)
    order, waiting = support_set.SupportSet._in_class_order, [1]

    def grown(self, name):
        while waiting:
            waiting.pop()
            support.append(torch.eye(8)[6:], torch.arange(6, 8))
        return order(self, name)

    monkeypatch.setattr(support_set.SupportSet, "_in_class_order", grown)
    support.save(tmp_path / "s.safetensors")
    assert len(support) == 8
    assert sb.SupportSet.load(tmp_path / "s.safetensors").labels.tolist() == list(range(6))


def test_copies_grow_apart():
    support = sb.SupportSet(torch.eye(4)[:2], torch.arange(2), 4)
    for other in (copy.copy(support), pickle.loads(pickle.dumps(support))):
        other.append(torch.eye(4)[2:], torch.arange(2, 4))
        assert (len(support), len(other)) == (2, 4)
