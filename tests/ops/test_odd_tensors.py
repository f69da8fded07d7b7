"""Every tensor argument of every public operator, as PyTorch's odder tensors: no crash, no other result.

A wrong address ends the process, so each kind runs in one of its own and says where it stands.
"""

from __future__ import annotations

import re

import pytest

from tests.support.fresh import Program, run_fresh

_PROGRAM = """
import sys, warnings
warnings.simplefilter("ignore")  # torch's own, of fake tensors
import torch
import semobridge_ext as sb
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from tests.support.assertions import assert_figures

torch.manual_seed(0)
N, S, D, C = 3, 6, 4, 2
rows = lambda n, d=D: torch.randn(n, d)
labels = lambda n: torch.arange(n) % C
bridge = sb.Bridge(torch.randn(5, D))

def support_set(keys, labels, weights, queries):
    support = sb.SupportSet(keys, labels, C, weights=weights)
    support.append(keys, labels, weights)
    return support.logits(queries)

def classifier(X, text, queries):
    clf = sb.SeMoBridgeClassifier("identity", text).fit(X, labels(S).tolist())
    return clf.logits(queries) + clf.logits(queries).argmax(1, keepdim=True)

def tip_adapter(X, text, queries):
    return sb.TipAdapter(text).fit(X, labels(S).tolist()).logits(queries)

def metrics(query, gallery, query_labels, gallery_labels):
    found = sb.retrieval_metrics(query, gallery, query_labels, gallery_labels)
    return torch.tensor([found["mAP"], found["R-Precision"]], dtype=torch.float64)

def bridge_itself(inverse, x):
    own = sb.Bridge(torch.randn(5, D, generator=torch.Generator().manual_seed(1)))
    own.inverse = torch.nn.Parameter(inverse, requires_grad=False)
    return own(x)

OPS = {
    "symmetric_kl": (sb.ops.symmetric_kl, {"logits_a": rows(N), "logits_b": rows(N)}),
    "project_normalize": (sb.ops.project_normalize, dict(x=rows(N), matrix=rows(D, 5), bias=torch.randn(5))),
    "Projection": (
        lambda first, x, bias: sb.ops.Projection(first)(x, bias=bias),
        dict(first=rows(D, 5), x=rows(N), bias=torch.randn(5)),
    ),
    "support_logits": (
        lambda queries, keys, labels, weights: sb.support_logits(queries, keys, labels, C, weights=weights),
        dict(queries=rows(N), keys=rows(S), labels=labels(S), weights=torch.rand(S)),
    ),
    "SupportSet": (support_set, dict(keys=rows(S), labels=labels(S), weights=torch.rand(S), queries=rows(N))),
    "topk": (
        lambda queries, gallery, exclude: sb.topk(queries, gallery, 2, exclude=exclude).scores,
        dict(queries=rows(N), gallery=rows(S), exclude=torch.arange(N)),
    ),
    "retrieval_metrics": (
        metrics, dict(query=rows(N), gallery=rows(S), query_labels=labels(N), gallery_labels=labels(S)),
    ),
    "bridge": (
        lambda img_feats, class_bias: bridge(img_feats) + bridge(img_feats, class_bias=class_bias),
        dict(img_feats=rows(N), class_bias=torch.randn(5)),
    ),
    "Bridge.inverse": (bridge_itself, dict(inverse=rows(D, 5), x=rows(N))),
    "Bridge": (lambda w: sb.Bridge(w, atol=0.0)(rows(N) * 0 + 1), dict(w=rows(5))),
    "LinearMap": (
        lambda matrix, offset, x: sb.LinearMap(matrix, offset)(x),
        dict(matrix=rows(D, 5), offset=torch.randn(5), x=rows(N)),
    ),
    "SeMoBridgeClassifier": (classifier, dict(X=rows(S), text=rows(C), queries=rows(N))),
    "TipAdapter": (tip_adapter, dict(X=rows(S), text=rows(C), queries=rows(N))),
}

class Mine(torch.Tensor):
    pass

def freed(t):
    t = t.clone()
    t.untyped_storage().resize_(0)
    return t

def misaligned(t):
    raw = torch.zeros(t.numel() * t.element_size() + 64, dtype=torch.uint8).numpy()
    raw[1 : 1 + t.numel() * t.element_size()] = t.contiguous().numpy().reshape(-1).view("uint8")
    odd = torch.frombuffer(raw.data, dtype=t.dtype, offset=1, count=t.numel()).reshape(t.shape)
    assert odd.data_ptr() % t.element_size() != 0
    return odd

def fake(t):
    with FakeTensorMode() as mode:
        return mode.from_tensor(t)

KINDS = {  # what becomes of the argument, and the plain tensor that it must equal; None: an error may come
    "negative": (lambda t: torch._neg_view(-t), lambda t: t),
    "conjugate": (lambda t: torch.complex(t, -t).conj().imag if t.is_floating_point() else t, lambda t: t),
    "zero": (lambda t: torch._efficientzerotensor(t.shape, dtype=t.dtype), torch.zeros_like),
    "subclass": (lambda t: t.as_subclass(Mine), lambda t: t),
    "misaligned": (misaligned, lambda t: t),
    "freed": (freed, None),
    "fake": (fake, None),
    "meta": (lambda t: t.to("meta"), None),
}

def attempt(call, arguments):
    try:
        return call(**arguments), None
    except Exception as error:
        return None, error

kind = KIND
if kind in ("default-meta", "fake-mode"):
    for op, (call, arguments) in OPS.items():
        if op in ("SeMoBridgeClassifier", "TipAdapter", "Bridge", "Bridge.inverse"):
            continue  # their own tensors go to that device, in plain PyTorch
        print(op, flush=True)
        plain, _ = attempt(call, arguments)
        with torch.device("meta") if kind == "default-meta" else FakeTensorMode():
            found, error = attempt(call, arguments)
        if kind == "default-meta" and error is None and not found.is_meta:
            assert torch.equal(found, plain), op
        print(" ", "error" if error else type(found).__name__)
    sys.exit(0)
change, same_as = KINDS[kind]
for op, (call, arguments) in OPS.items():
    for name, value in arguments.items():
        print(op, name, flush=True)
        odd, error = attempt(call, arguments | {name: change(value)})
        if same_as is None:
            print(" ", f"{type(error).__name__}: {error}" if error else type(odd).__name__)
            if kind == "freed":
                assert isinstance(error, ValueError) and "storage was freed" in str(error), error
            continue
        plain, expected = attempt(call, arguments | {name: same_as(value)})
        assert (error is None) == (expected is None), (op, name, error, expected)
        if error is None:
            odd = odd.as_subclass(torch.Tensor)
            # Not its bits: an operator's products are those of the fold, taken apart.
            assert odd.dtype is plain.dtype
            scale = max(1.0, float(plain.abs().max()))
            assert_figures(odd, plain, "backends", dtype=torch.float32, scale=scale)
"""

KINDS = re.findall(r'^    "([a-z-]+)": \(', _PROGRAM.split("KINDS = {")[1], re.MULTILINE)


@pytest.mark.parametrize("kind", [*KINDS, "default-meta", "fake-mode"])
def test_odd(kind: str):
    (done,) = run_fresh([Program(f"KIND = {kind!r}\n{_PROGRAM}")])
    assert done.returncode == 0, (
        f"ended with {done.returncode} at {done.stdout[-300:]}\n{done.stderr[-2000:]}"
    )
