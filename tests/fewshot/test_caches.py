"""Tip-Adapter, Tip-Adapter-F and APE against their formulas in float64."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch.nn.functional import cross_entropy, normalize

import semobridge_ext as sb
from semobridge_ext.fewshot.ape_channels import ape_scores
from semobridge_ext.fewshot.reference import ape_criterion
from semobridge_ext.reference import support_logits
from tests.support.assertions import assert_close, assert_figures
from tests.support.checksums import save_resealed
from tests.support.problems import Problem, make


def tip_logits(
    p: Problem, keys: torch.Tensor, labels: torch.Tensor, alpha: float, beta: float
) -> torch.Tensor:
    """Pair by pair, without a one-hot product."""
    q, text = normalize(p.queries.double(), dim=1), normalize(p.text.double(), dim=1)
    out = 100 * q @ text.T
    for s in range(len(keys)):
        out[:, labels[s]] += alpha * torch.exp(-beta * (1 - q @ keys[s]))
    return out


def test_tip_adapter_formula():
    p = make(7, [1, 2, 3, 1, 2, 3, 4], 40)
    clf = sb.TipAdapter(p.text, alpha=2.0, beta=3.0).fit(p.shots, p.labels)
    want = tip_logits(p, normalize(p.shots.double(), dim=1), p.labels, 2.0, 3.0)
    got = clf.logits(p.queries)
    assert_close(got, want, "logits")
    assert (
        torch.equal(clf.predict(p.queries), got.argmax(dim=1))
        and len(set(clf.predict(p.queries).tolist())) > 2
    )


def test_tip_adapter_f_takes_the_steps_of_a_plain_loop():
    p = make(6, 3, 10, dtype=torch.float64)
    options = {
        "epochs": 4,
        "lr": 1e-2,
        "batch_size": 7,
        "seed": 5,
        "alpha": 2.0,
        "beta": 3.0,
        "logit_scale": 5.0,
    }
    clf = sb.TipAdapterF(p.text, **options).fit(p.shots, p.labels)
    x, text = normalize(p.shots, dim=1), normalize(p.text, dim=1)
    keys = x.clone().requires_grad_()
    optimizer = torch.optim.AdamW([keys], lr=1e-2, eps=1e-4)
    generator, losses, steps = torch.Generator().manual_seed(5), [], 4 * 3
    for step in range(steps):
        if step % 3 == 0:
            batches = torch.randperm(18, generator=generator).split(7)
        rows = batches[step % 3]
        optimizer.param_groups[0]["lr"] = 1e-2 * 0.5 * (1 + math.cos(math.pi * step / steps))
        logits = 5.0 * x[rows] @ text.T + 2.0 * support_logits(x[rows], keys, p.labels, 6, beta=3.0)
        loss = cross_entropy(logits, p.labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    assert_close(clf.losses_, torch.stack(losses), "cache_training")
    assert_close(clf.keys_, keys, "cache_training")
    assert float((clf.keys_ - x).abs().max()) > 1e-3


def test_ape_closed_form_is_the_sum_over_pairs():
    p = make(5, 3, 2, dtype=torch.float64)
    order = torch.argsort(p.labels, stable=True)
    text, shots = normalize(p.text, dim=1), normalize(p.shots[order], dim=1)
    want = ape_criterion(text, shots.view(5, 3, -1), w0=0.6, w1=0.4)
    got = ape_scores(text, shots, p.labels[order], 0.6, 0.4)
    assert_close(got, want, "matrix")


def test_ape_formula():
    p = make(5, [1, 2, 3, 1, 2], 20)
    clf = sb.APE(p.text, alpha=1.5, beta=2.0, gamma=0.2, channels=9).fit(p.shots, p.labels)
    text, shots = normalize(p.text.double(), dim=1), normalize(p.shots.double(), dim=1)
    kept = ape_scores(text, shots, p.labels).topk(9).indices.sort().values
    assert torch.equal(clf.channels_, kept)
    keys, small = normalize(shots[:, kept], dim=1), normalize(text[:, kept], dim=1)
    own = torch.softmax(keys @ small.T, dim=1)[torch.arange(9), p.labels]
    weights = torch.exp(0.2 * torch.log2((1 + 1e-6) / (own + 1e-6)))
    q = normalize(p.queries.double(), dim=1)
    cache = support_logits(normalize(q[:, kept], dim=1), keys, p.labels, 5, beta=2.0, weights=weights)
    want = 100 * q @ text.T + 1.5 * cache
    assert_close(clf.logits(p.queries), want, "logits")


@pytest.mark.parametrize("model", [sb.TipAdapter, sb.TipAdapterF, sb.APE, sb.APET])
def test_files_and_refusals(model, tmp_path):
    p = make(5, 2, 20)
    names = ["a", "b", "c", "d", "e"]
    y = [names[i] for i in p.labels]
    clf = model(p.text, class_names=names).fit(p.shots, y).tune(p.queries, [names[i] for i in p.targets])
    clf.save(tmp_path / "c.safetensors")
    again = model.load(tmp_path / "c.safetensors")
    assert torch.equal(again.logits(p.queries), clf.logits(p.queries))
    assert list(again.predict(p.queries)) == list(clf.predict(p.queries))
    assert_figures(again.predict_proba(p.queries).sum(dim=1), torch.ones(20), "length", dtype=torch.float32)
    with pytest.raises(ValueError, match="without text or shots"):
        model(p.text, class_names=names).fit(p.shots, ["z", *y[1:]])
    with pytest.raises(ValueError, match="have width"):
        model(p.text[:, 1:]).fit(p.shots, p.labels)
    with pytest.raises(ValueError, match="fitted first"):
        model(p.text).predict(p.queries)


def test_ape_channels_are_checked():
    p = make(5, 2, 2)
    with pytest.raises(ValueError, match=r"channels must lie in 1\.\.24"):
        sb.APE(p.text, channels=25).fit(p.shots, p.labels)


@pytest.mark.parametrize(
    "kind, name",
    [
        (sb.TipAdapter, "keys_"),
        (sb.TipAdapterF, "keys_"),
        (sb.APE, "keys_"),
        (sb.APE, "weights_"),
        (sb.APET, "weights_"),
        (sb.ProKeR, "keys_"),
    ],
)
def test_a_file_of_half_keys_is_refused(kind: type, name: str, tmp_path: Path):
    """Nothing here writes one, and the kernels of the search would end in their own words."""
    p = make(3, 4, 1)
    kind(p.text).fit(p.shots, p.labels).save(tmp_path / "saved")
    with safe_open(tmp_path / "saved", "pt") as file:
        tensors, meta = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    save_resealed(tensors | {name: tensors[name].half()}, tmp_path / "saved", meta)
    with pytest.raises(ValueError, match=f"'{name}' as float32 or float64, got a float16 tensor"):
        kind.load(tmp_path / "saved")
