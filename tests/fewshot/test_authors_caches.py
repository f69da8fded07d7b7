"""Cache models against numbers of the authors' programs, APE-T against a plain loop of autograd."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

import semobridge_ext as sb
from semobridge_ext.fewshot.ape_channels import ape_scores
from semobridge_ext.ops import support_logits
from tests.support.assertions import assert_close, assert_figures
from tests.support.problems import make
from tests.support.vectors import rows, vector

LABELS = torch.arange(3).repeat_interleave(2)


def given(name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict]:
    """Shots, text, queries and what the program made of them."""
    told = vector(name)
    found = told["inputs"]
    return rows(found["shots"]).flatten(0, 1), rows(found["text"]), rows(found["queries"]), told["outputs"]


@pytest.mark.parametrize("alpha,beta", [(1.17, 1.0), (3.0, 5.5)])
def test_tip_adapter(alpha, beta):
    shots, text, queries, want = given("tip_adapter")
    clf = sb.TipAdapter(text, alpha=alpha, beta=beta).fit(shots, LABELS)
    assert_close(clf.logits(queries), rows(want["logits"][f"alpha{alpha}_beta{beta}"]), "logits")


def test_tip_adapter_f():
    """The losses are 3e-14, so that the weight decay is what moves the keys."""
    shots, text, _, want = given("tip_adapter")
    clf = sb.TipAdapterF(text, epochs=5).fit(shots, LABELS)
    assert_close(clf.keys_, rows(want["f_keys_after_5_steps"]), "cache_training")
    assert_figures(clf.losses_, want["f_losses_5_steps"], "figure")
    x = normalize(shots, dim=1)
    keys = x.clone().requires_grad_()
    logits = 100 * x @ text.T + 1.17 * support_logits(x, keys, LABELS, 3, beta=1.0)
    (grad,) = torch.autograd.grad(cross_entropy(logits, LABELS), keys)
    assert_figures(grad, rows(want["f_grad_keys"]), "figure")


def test_ape():
    shots, text, queries, want = given("ape")
    scores = ape_scores(text, normalize(shots, dim=1), LABELS)
    assert_close(scores, rows(want["scores"]), "matrix")
    product = (0.3 * text.var(dim=0) - scores) / 0.7
    assert_close(product, rows(want["mean_interclass_product"]), "matrix")
    clf = sb.APE(text, channels=5).fit(shots, LABELS)
    assert clf.channels_.tolist() == want["channels_sorted"]
    assert_close(torch.log(clf.weights_) / clf.gamma_, rows(want["divergence"]), "matrix")
    assert_close(clf.logits(queries), rows(want["logits"]), "logits")


def test_published_channels_by_name():
    g = torch.Generator().manual_seed(4)
    text, shots = torch.randn(4, 1024, generator=g), torch.randn(8, 1024, generator=g)
    y = torch.arange(4).repeat(2)
    named = sb.APE(text, channels="Caltech101").fit(shots, y)
    plain = sb.APE(text, channels=800, w0=0.5, w1=0.5).fit(shots, y)
    other = sb.APE(text, channels=800).fit(shots, y)
    assert torch.equal(named.channels_, plain.channels_) and torch.equal(named.weights_, plain.weights_)
    assert not torch.equal(named.channels_, other.channels_)
    trained = sb.APET(text, channels="dtd", epochs=1).fit(shots, y)
    assert trained.residual_.shape == (4, 700)
    narrow = sb.APE(text[:, :128], channels="caltech101").fit(shots[:, :128], y)
    assert len(narrow.channels_) == 100  # the same share
    with pytest.raises(ValueError, match=r"APE\.fit: channels must name one of imagenet, .*, got birds"):
        sb.APE(text, channels="birds").fit(shots, y)


def test_a_name_of_channels_is_saved(tmp_path):
    p = make(5, 2, 20)
    for model in (sb.APE, sb.APET):
        clf = model(p.text, channels="sun397").fit(p.shots, p.labels)
        clf.save(tmp_path / "c.safetensors")
        again = model.load(tmp_path / "c.safetensors")
        assert again.channels == "sun397" and torch.equal(again.logits(p.queries), clf.logits(p.queries))
        assert torch.equal(again.fit(p.shots, p.labels).logits(p.queries), clf.logits(p.queries))


def test_gamma_is_searched_saved_and_read(tmp_path):
    p = make(8, 3, 90, noise=2.8)
    clf = sb.APE(p.text, gamma=5.0).fit(p.shots, p.labels).tune(p.queries, p.targets)
    assert clf.gamma_ in clf.GAMMAS and clf.gamma == 5.0
    clf.save(tmp_path / "c.safetensors")
    again = sb.APE.load(tmp_path / "c.safetensors")
    assert again.gamma_ == clf.gamma_ and torch.equal(again.logits(p.queries), clf.logits(p.queries))


# -- APE-T ---------------------------------------------------------------------------------------------


def test_ape_t_takes_the_steps_of_a_plain_loop():
    p = make(6, [1, 2, 3, 3, 2, 4], 10, dtype=torch.float64)
    options = {"epochs": 4, "lr": 1e-2, "batch_size": 6, "seed": 5, "channels": 9}
    numbers = {"alpha": 2.0, "beta": 3.0, "logit_scale": 5.0}
    clf = sb.APET(p.text, **options, **numbers).fit(p.shots, p.labels)
    x, text = normalize(p.shots, dim=1), normalize(p.text, dim=1)
    # Chosen by the texts alone.
    products = torch.stack([text[i] * text[j] for i in range(6) for j in range(6) if i != j]).mean(dim=0)
    kept = (-0.2 * products + 0.8 * text.var(dim=0)).topk(9).indices.sort().values
    assert torch.equal(clf.channels_, kept)

    residual = torch.zeros(6, 9, dtype=torch.float64, requires_grad=True)
    weights = torch.ones(15, dtype=torch.float64, requires_grad=True)

    def logits(queries: torch.Tensor) -> torch.Tensor:
        place = torch.eye(24, dtype=torch.float64)[kept]  # [9, D]
        keys = x + (residual @ place)[p.labels]
        terms = weights * torch.exp(-3.0 * (1 - queries @ keys.T))
        votes = torch.nn.functional.one_hot(p.labels, 6).double()
        return 5.0 * queries @ (text + residual @ place).T + 2.0 * terms @ votes

    optimizer = torch.optim.AdamW([residual, weights], lr=1e-2, eps=1e-3, weight_decay=0.1)
    generator, losses, steps = torch.Generator().manual_seed(5), [], 4 * 3
    for step in range(steps):
        if step % 3 == 0:
            batches = torch.randperm(15, generator=generator).split(6)
        optimizer.param_groups[0]["lr"] = 1e-2 * 0.5 * (1 + math.cos(math.pi * step / steps))
        loss = cross_entropy(logits(x[batches[step % 3]]), p.labels[batches[step % 3]])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    assert_close(clf.losses_, torch.stack(losses), "cache_training")
    assert_close(clf.weights_, weights.detach(), "cache_training")
    assert_figures(clf.residual_, residual.detach(), "cache_residual")
    assert float(residual.detach().abs().max()) > 1e-3 and float(clf.weights_.std()) > 1e-5
    assert_close(clf.logits(p.queries), logits(normalize(p.queries, dim=1)).detach(), "logits")


def test_ape_t_without_epochs_is_tip_adapter():
    p = make(6, 3, 20)
    clf = sb.APET(p.text, epochs=0).fit(p.shots, p.labels)
    assert_close(
        clf.logits(p.queries),
        sb.TipAdapter(p.text).fit(p.shots, p.labels).logits(p.queries).double(),
        "logits",
    )


def test_ape_t_learns():
    p = make(12, 4, 400, noise=1.6)
    noisy = p.text + 2 * torch.randn(12, 24, generator=torch.Generator().manual_seed(2))
    before = sb.TipAdapter(noisy).fit(p.shots, p.labels)
    after = sb.APET(noisy, lr=0.05, epochs=40, channels=24).fit(p.shots, p.labels)
    assert after.losses_[-1] < 0.9 * after.losses_[0]
    assert after.score(p.queries, p.targets) > before.score(p.queries, p.targets) + 0.05
