"""ProLIP against autograd and torch.optim.Adam in float64."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

import semobridge_ext as sb
from semobridge_ext.fewshot.reference import trained_projection
from tests.support.assertions import assert_close, assert_figures
from tests.support.problems import Problem, make

LR = 3e-3


def problem(shots=3, dtype: torch.dtype = torch.float64, **more) -> tuple[Problem, torch.Tensor]:
    """Rows of width 24 before a projection to 18, and texts of that width."""
    p = make(5, shots, 40, noise=1.2, dtype=torch.float64, **more)
    matrix = torch.randn(24, 18, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) / 5
    given = p._replace(text=p.text @ matrix)
    return Problem(*(v.to(dtype) if v.is_floating_point() else v for v in given)), matrix.to(dtype)


def reference(p: Problem, matrix: torch.Tensor, **options) -> tuple[torch.Tensor, torch.Tensor]:
    text = normalize(p.text.double(), dim=1)
    return trained_projection(p.shots.double(), p.labels, matrix.double(), text, **options)


def logits_of(p: Problem, projection: torch.Tensor) -> torch.Tensor:
    return 100 * normalize(p.queries.double() @ projection, dim=1) @ normalize(p.text.double(), dim=1).T


@pytest.mark.parametrize("shots", [1, 4, [1, 2, 3, 1, 2]])
def test_steps_of_autograd(shots):
    p, matrix = problem(shots)
    clf = sb.ProLIP(matrix, p.text, lr=LR, steps=60).fit(p.shots, p.labels)
    penalty = 5 / len(p.shots)  # one over the shots per class
    assert clf.penalty_ == penalty
    projection, losses = reference(p, matrix, penalty=penalty, lr=LR, steps=60)
    assert_figures(clf.losses_, losses, "projection_losses")
    assert_close(clf.projection_, projection, "projection_training")
    assert_close(clf.logits(p.queries), logits_of(p, projection), "projection_training")
    assert float((projection - matrix).abs().max()) > 1e-2 and float(losses[-1]) < 0.8 * float(losses[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_short_dtypes(dtype):
    p, matrix = problem(dtype=dtype)
    clf = sb.ProLIP(matrix, p.text, lr=LR, penalty=0.5, steps=20).fit(p.shots, p.labels)
    projection, _ = reference(p, matrix, penalty=0.5, lr=LR, steps=20)
    assert clf.projection_.dtype is torch.float32
    assert_close(clf.logits(p.queries), logits_of(p, projection), "projection_training")


def test_tune_picks_what_training_at_each_pair_picks(monkeypatch):
    # Wider than the class's own grid, so that the pairs differ on so few rows.
    monkeypatch.setattr(sb.ProLIP, "LRS", (3e-3, 3e-2))
    monkeypatch.setattr(sb.ProLIP, "PENALTIES", (3.0, 0.3, 0.0))
    p, matrix = problem(2)
    pairs = [(lr, penalty) for lr in sb.ProLIP.LRS for penalty in sb.ProLIP.PENALTIES]
    scores = []
    for lr, penalty in pairs:
        projection, _ = reference(p, matrix, penalty=penalty, lr=lr, steps=40)
        scores.append(int((logits_of(p, projection).argmax(dim=1) == p.targets).sum()))
    clf = sb.ProLIP(matrix, p.text, steps=40).fit(p.shots, p.labels).tune(p.queries, p.targets)
    assert len(set(scores)) > 2 and (clf.lr_, clf.penalty_) == pairs[scores.index(max(scores))]
    assert clf.score(p.queries, p.targets) == max(scores) / 40
    assert clf.tune(p.queries, p.targets, lrs=[1e-4]).lr_ == 1e-4
    clf.tune(p.queries, p.targets, lrs=[1e200, 1e-4], penalties=[0.3])  # the first diverges: passed over
    assert (clf.lr_, clf.penalty_) == (1e-4, 0.3) and torch.isfinite(clf.projection_).all()
    with pytest.raises(ValueError, match=r"lrs must hold a rate that converges, got \[1e\+200\]"):
        clf.tune(p.queries, p.targets, lrs=[1e200])
    assert (clf.lr_, clf.penalty_) == (1e-4, 0.3)


def test_a_model_gives_its_projection():
    model = sb.load_picto_clip()[0]
    rows, text = torch.randn(6, 192), torch.randn(3, 192)
    names = [0, 1, 2] * 2
    ours = sb.ProLIP(model, text, steps=0).fit(rows, names)
    assert torch.equal(ours.projection_, sb.clip.image_projection(model))
    want = sb.ZeroShot(text).fit().logits(rows @ sb.clip.image_projection(model))
    assert_close(ours.logits(rows), want.double(), "projection_training")


def test_a_file_starts_where_the_first_fit_did(tmp_path):
    p, matrix = problem()
    clf = sb.ProLIP(matrix, p.text, lr=LR, steps=10).fit(p.shots, p.labels)
    clf.save(tmp_path / "c.safetensors")
    again = sb.ProLIP.load(tmp_path / "c.safetensors")
    assert torch.equal(again.logits(p.queries), clf.logits(p.queries))
    with pytest.raises(ValueError, match=r"ProLIP.tune: self must hold its shots, .*; call fit"):
        again.tune(p.queries, p.targets)
    again.fit(p.shots, p.labels)
    assert_close(again.projection_, clf.projection_, "projection_training")
    assert not torch.equal(clf.projection_, matrix)


def test_refusals():
    p, matrix = problem()
    for options, words in (
        ({"lr": 0.0}, "lr must be > 0"), ({"penalty": -1.0}, "penalty must be ≥ 0 or None"),
        ({"steps": 1.5}, "steps must be a whole number"), ({"lr": float("inf")}, "lr must be finite"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=rf"ProLIP.fit: {words}"):
            sb.ProLIP(matrix, p.text, **options).fit(p.shots, p.labels)
    with pytest.raises(ValueError, match=r"image_projection must have a row for each of the 24 columns"):
        sb.ProLIP(matrix[1:], p.text).fit(p.shots, p.labels)
    with pytest.raises(TypeError, match=r"ProLIP.fit: image_projection must be"):
        sb.ProLIP([[1.0]], p.text).fit(p.shots, p.labels)
    with pytest.raises(ValueError, match="image_projection must be finite"):
        sb.ProLIP(matrix * float("nan"), p.text).fit(p.shots, p.labels)
    clf = sb.ProLIP(matrix, p.text, lr=1e30, steps=9)
    with pytest.raises(ValueError, match=r"ProLIP.fit: the loss must stay finite"):
        clf.fit(p.shots.float(), p.labels)
    assert not hasattr(clf, "classes_")
    clf = sb.ProLIP(matrix, p.text, steps=2).fit(p.shots, p.labels)
    for rates in ([], [0.0], [float("nan")]):
        with pytest.raises(ValueError, match=r"ProLIP.tune: lrs must hold finite rates > 0"):
            clf.tune(p.queries, p.targets, lrs=rates)
    for weights in ([], [-0.1]):
        with pytest.raises(ValueError, match=r"ProLIP.tune: penalties must hold finite numbers ≥ 0"):
            clf.tune(p.queries, p.targets, penalties=weights)
    with pytest.raises(ValueError, match="must be finite, got NaN or inf in 1 of 15 rows"):
        sb.ProLIP(matrix, p.text).fit(
            torch.where(torch.arange(15).unsqueeze(1) == 3, torch.nan, p.shots), p.labels
        )
