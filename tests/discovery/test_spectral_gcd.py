"""SpectralGCD: its training against a plain loop, what it finds, labels of all kinds, files, bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

import semobridge_ext as sb
from semobridge_ext import reference
from semobridge_ext.discovery import network
from semobridge_ext.discovery.network import Sizes
from semobridge_ext.discovery.schedule import epoch_batches
from tests.support import discovery
from tests.support.assertions import assert_figures, assert_row_relative, assert_same_bits
from tests.support.discovery import SMALL, Images, images

DATA = images()


def fit(data: Images = DATA, **changed: Any) -> sb.SpectralGCD:
    return discovery.fit(data, **changed)


# -- the training ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changed",
    [
        {}, {"forward_kl": 0.0}, {"reverse_kl": 0.5, "entropy_weight": 2.0}, {"adapter": False},
        {"concept_features": None, "teacher": None}, {"forward_kl": 0, "reverse_kl": 0, "teacher": None},
        {"momentum": 0.5, "weight_decay": 0.1, "supervised_weight": 0.8, "lr": 0.02, "adapter_lr": 0.05},
        {"X": DATA.x[0]},
    ],
    ids=["plain", "reverse", "weights", "no adapter", "no concepts", "no teacher", "sgd", "one view"],
)  # fmt: skip
def test_training_is_that_of_a_plain_loop(changed: dict[str, Any]):
    """torch.optim's SGD on the oracle's losses, from the same start and draws."""
    s = {**sb.SpectralGCD().get_params(), **SMALL, "concept_features": DATA.concepts, **changed}
    x, concepts = changed.get("X", DATA.x), s["concept_features"]
    x = x if x.dim() == 3 else x[None]
    k = 0 if concepts is None else len(concepts)
    sizes = Sizes(10, k, s["width"] if k else 10, s["hidden"], s["projection"], 5)
    p = network.initial(sizes, s["adapter"], 0, torch.float64)
    p = {name: value.requires_grad_() for name, value in p.items()}
    unit = reference.scale_rows
    t = s["temperature"]
    groups = [
        {
            "params": [value], "weight_decay": s["weight_decay"] * (value.dim() > 1),
            "first": s["adapter_lr" if name == "adapter" else "lr"],
        }
        for name, value in p.items()
    ]  # fmt: skip
    sgd = torch.optim.SGD(groups, lr=1.0, momentum=s["momentum"])
    codes = torch.tensor([0 if label is None else label for label in DATA.y])
    known = torch.tensor([label is not None for label in DATA.y])
    want = []
    for epoch in range(3):
        cosine = np.cos(np.pi * epoch / 3)
        for group in sgd.param_groups:
            group["lr"] = group["first"] * (1e-3 + (1 - 1e-3) * (1 + cosine) / 2)
        totals = []
        for drawn in epoch_batches(known, 16, len(x), 0, epoch):
            rows = torch.cat([x[drawn[:, 1], drawn[:, 0]], x[drawn[:, 2], drawn[:, 0]]])
            f = unit(rows)
            if s["adapter"]:
                f = unit(f + f @ p["adapter"])
            z = f @ unit(concepts).T / t if k else f
            u = z @ p["concept_weight"].T + p["concept_bias"] if k else f
            logits = unit(u) @ unit(p["prototypes"]).T
            out = u
            for layer in ("first", "second", "last"):
                out = linear(out, p[f"{layer}_weight"], p[f"{layer}_bias"])
                out = out if layer == "last" else torch.nn.GELU()(out)
            faces, names = (unit(v) for v in DATA.teacher)
            teacher = faces[drawn[:, 0]] @ names.T / t if k else z[:16].detach()
            one = reference.gcd_losses(
                logits, out, z, teacher, codes[drawn[:, 0]], known[drawn[:, 0]],
                teacher_temperature=(0.07, 0.04, 0.04)[epoch],
            )  # fmt: skip
            w = s["supervised_weight"]
            total = (1 - w) * (one.distillation + s["entropy_weight"] * one.entropy + one.contrast)
            total = total + w * (one.supervised + one.supervised_contrast)
            if k:
                total = total + s["forward_kl"] * one.forward_kl + s["reverse_kl"] * one.reverse_kl
            sgd.zero_grad()
            total.backward()
            sgd.step()
            totals.append(float(total.detach()))
        want.append(sum(totals) / len(totals))
    got = fit(**changed)
    assert_figures(got.losses_, want, "gcd_training")
    kept = got._folded
    assert_figures(kept["prototypes"], p["prototypes"], "gcd_training")
    if s["adapter"]:
        assert float(p["adapter"].detach().abs().max()) > 1e-5
        assert_figures(kept["adapter"], p["adapter"], "gcd_training")
    if k:
        assert_figures(kept["fold"], unit(concepts).T @ p["concept_weight"].T / t, "gcd_training")
    start = network.initial(sizes, s["adapter"], 0, torch.float64)
    assert float((kept["prototypes"] - start["prototypes"]).abs().max()) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("concepts", [True, False])
def test_old_and_new_classes_are_found(concepts: bool):
    data = images(240, 0.25, dtype=torch.float32)
    changed: dict[str, Any] = {} if concepts else {"concept_features": None, "teacher": None}
    made = fit(data, entropy_weight=4.0, epochs=30, batch_size=48, warmup=10, **changed)
    found = sb.gcd_accuracy(data.true, made.predict(data.x[1]), made.old_classes_)
    assert found.all > 0.95 and found.old > 0.95 and found.new > 0.9
    assert made.score(data.x[1], data.true) == found.all
    assert float(made.losses_[-1]) < float(made.losses_[0])
    old = data.true < 3  # their names are their own: the classifier was trained with them
    assert float((made.predict(data.x[1]) == data.true)[old].double().mean()) > 0.95


@pytest.mark.slow
def test_the_divergences_pull_student_and_teacher_together():
    """z moves towards the teacher's distribution, and only with a weight."""

    def gap(made: sb.SpectralGCD) -> float:
        f = network.adapted(made._folded, DATA.x[0])
        unit = reference.scale_rows
        z = f @ unit(DATA.concepts).T / 0.2
        faces, names = (unit(v) for v in DATA.teacher)
        return float(reference.symmetric_kl(z, faces @ names.T / 0.2))

    long: dict[str, Any] = {"epochs": 20, "adapter_lr": 0.02}
    none = gap(fit(forward_kl=0, reverse_kl=0, teacher=None, **long))
    assert gap(fit(**long)) < 0.8 * none
    assert gap(fit(forward_kl=0, **long)) < 0.9 * none and gap(fit(reverse_kl=0, **long)) < 0.9 * none


def test_prediction_folds_the_concepts():
    data = images(dtype=torch.float32)
    made = fit(data)
    p, unit = made._folded, reference.scale_rows
    f = unit(data.x[0].double())
    f = unit(f + f @ p["adapter"].double())
    u = f @ p["fold"].double() + p["bias"].double()
    want = unit(u) @ unit(p["prototypes"].double()).T
    assert_row_relative(made.logits(data.x[0]), want, "gcd_fold")
    wide = made.logits(data.x[0].double())
    assert wide.dtype is torch.float64
    assert torch.equal(made.predict(data.x[0]), torch.from_numpy(made.classes_)[want.argmax(1)])
    proba = made.predict_proba(data.x[0].numpy())
    assert isinstance(proba, np.ndarray)
    assert_figures(proba, torch.softmax(want * 10, 1), "gcd_fold", dtype=torch.float32)


def test_same_seed_same_bits_and_inputs_stay():
    before = [DATA.x.clone(), DATA.concepts.clone(), DATA.teacher[0].clone()]
    state = torch.get_rng_state()
    one, two, other = fit(), fit(), fit(seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert_same_bits(one.losses_, two.losses_)
    assert_same_bits(one._folded["fold"], two._folded["fold"])
    assert not torch.equal(one.losses_, other.losses_)
    for was, now in zip(before, (DATA.x, DATA.concepts, DATA.teacher[0]), strict=True):
        assert torch.equal(was, now)
    arrays = fit(
        X=DATA.x.numpy(), concept_features=DATA.concepts.numpy(), teacher=[v.numpy() for v in DATA.teacher]
    )
    assert_same_bits(arrays.losses_, one.losses_)


# -- labels --------------------------------------------------------------------------------------------

WORDS = {0: "cat", 1: "dog", 2: "new 1"}


@pytest.mark.parametrize(
    "encode,want",
    [
        (lambda c: c, [0, 1, 2, 3, 4]),
        (lambda c: -1 if c is None else c, [0, 1, 2, 3, 4]),
        (lambda c: None if c is None else c + 7, [7, 8, 9, 10, 11]),
        (lambda c: None if c is None else np.int64(10 * c), [0, 10, 20, 21, 22]),
        (lambda c: None if c is None else WORDS[c], ["cat", "dog", "new 1", "new 2", "new 3"]),
        (lambda c: None if c is None else -2 - c, [-4, -3, -2, ("new", 1), ("new", 2)]),
        (lambda c: None if c is None else ("a", c), [("a", 0), ("a", 1), ("a", 2), ("new", 1), ("new", 2)]),
    ],
    ids=["None", "-1", "offset", "numpy", "texts", "negative", "tuples"],
)
def test_labels_of_all_kinds(encode, want, tmp_path: Path):
    made = fit(y=[encode(c) for c in DATA.y])
    assert made.classes_.tolist() == want and made.old_classes_.tolist() == want[:3]
    codes = fit().predict(DATA.x[0])
    if want != [-4, -3, -2, ("new", 1), ("new", 2)]:  # sorted the other way round
        assert made.predict(DATA.x[0].numpy()).tolist() == [want[c] for c in codes.tolist()]
    made.save(tmp_path / "gcd.safetensors")
    found = sb.SpectralGCD.load(tmp_path / "gcd.safetensors")
    assert found.classes_.tolist() == want and found.old_classes_.tolist() == want[:3]


def test_labels_as_tensors_and_arrays():
    numbers = [-1 if c is None else c for c in DATA.y]
    want = fit()
    for y in (torch.tensor(numbers), np.array(numbers), np.array(numbers, dtype=np.float64)):
        made = fit(y=y)
        assert_same_bits(made.losses_, want.losses_)
        assert made.classes_.tolist() == [0, 1, 2, 3, 4] and made.classes_.dtype.kind == "i"
    assert isinstance(want.predict(DATA.x[0]), Tensor) and isinstance(
        want.predict(DATA.x[0].numpy()), np.ndarray
    )


# -- files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changed", [{}, {"concept_features": None, "teacher": None}, {"adapter": False}])
def test_saved_estimator_is_the_same(changed: dict[str, Any], tmp_path: Path):
    made = fit(images(dtype=torch.float32), **changed)
    path, x = tmp_path / "gcd.safetensors", DATA.x[0].float()
    made.save(path)
    found = sb.SpectralGCD.load(path)
    assert_same_bits(found.logits(x), made.logits(x))
    assert_same_bits(found.losses_, made.losses_)
    mine, theirs = made.get_params(), found.get_params()
    for params in (mine, theirs):
        params.pop("concept_features")
    assert mine == theirs
    data = images(dtype=torch.float32)
    again = found.fit(data.x, data.y, teacher=changed.get("teacher", data.teacher))
    assert again.losses_.shape == made.losses_.shape
    found.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"gcd\.safetensors"):
        sb.SpectralGCD.load(path)


# -- bad input -------------------------------------------------------------------------------------------

SPOILT = DATA.x.clone()
SPOILT[1, 3, 2] = float("nan")

BAD: dict[str, tuple[dict[str, Any], type, str]] = {
    "NaN": ({"X": SPOILT}, ValueError, r"SpectralGCD.fit: X must be finite, got NaN or inf in 1 of 120 rows"),
    "one axis": ({"X": DATA.x[0, 0]}, ValueError, r"SpectralGCD.fit: X must be 2-D"),
    "no rows": ({"X": DATA.x[:, :0]}, ValueError, r"X must hold values, got shape \[2, 0, 10\]"),
    "few rows": ({"batch_size": 61}, ValueError, r"X must have at least batch_size=61 rows, got 60"),
    "labels": ({"y": DATA.y[:-1]}, ValueError, r"y must have 60 labels, one per row of X, got 59"),
    "no label": ({"y": [None] * 60}, ValueError, r"y must hold a label, got none; label some images"),
    "many classes": ({"num_classes": 2}, ValueError, r"num_classes must be at least .* got 3 old ones in y"),
    "no teacher": ({"teacher": None}, ValueError, r"teacher must be given for the divergences, got None"),
    "nothing to teach": (
        {"forward_kl": 0, "reverse_kl": 0}, ValueError, r"teacher must have something to teach, got two",
    ),
    "no concepts": ({"concept_features": None}, ValueError, r"teacher must have something .* got no"),
    "teacher alone": ({"teacher": DATA.x[0]}, TypeError, r"teacher must be a pair of features"),
    "teacher's rows": (
        {"teacher": (DATA.teacher[0][1:], DATA.teacher[1])}, ValueError, r"teacher\[0\] must have 60 rows",
    ),
    "teacher's concepts": (
        {"teacher": (DATA.teacher[0], DATA.teacher[1][1:])}, ValueError, r"teacher\[1\] must have 12 rows",
    ),
    "teacher's width": (
        {"teacher": (DATA.teacher[0], DATA.teacher[1][:, 1:])}, ValueError, r"teacher\[1\] must have width 6",
    ),
    "teacher's NaN": (
        {"teacher": (DATA.teacher[0] / 0, DATA.teacher[1])}, ValueError, r"teacher\[0\] must be finite",
    ),
    "concepts' width": ({"concept_features": DATA.concepts[:, :9]}, ValueError, r"be \[K, 10\] with"),
    "concepts' NaN": ({"concept_features": DATA.concepts / 0}, ValueError, r"concept_features must be fin"),
    "one class": ({"num_classes": 1}, ValueError, r"num_classes must be ≥ 2, got int 1; it counts"),
    "half an epoch": ({"epochs": 0.5}, TypeError, r"epochs must be a whole number, got float 0.5"),
    "no epoch": ({"epochs": 0}, ValueError, r"epochs must be ≥ 1, got int 0"),
    "momentum": ({"momentum": 1.5}, ValueError, r"momentum must be ≥ 0 and at most 1, got float 1.5"),
    "weight": ({"forward_kl": -1}, ValueError, r"forward_kl must be ≥ 0, got int -1; 0 leaves it out"),
    "rate": ({"lr": float("inf")}, ValueError, r"lr must be above 0, got float inf"),
    "adapter": ({"adapter": 1}, TypeError, r"adapter must be True or False, got int 1; False leaves it out"),
    "diverged": ({"lr": 1e30}, ValueError, r"the loss must stay finite, got nan in epoch \d of 3; lower"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case: str):
    changed, kind, told = BAD[case]
    with pytest.raises(kind, match=told):
        fit(**changed)


def test_a_failed_fit_leaves_the_estimator():
    made = fit()
    want = made.logits(DATA.x[0])
    with pytest.raises(ValueError, match="X must be finite"):
        made.fit(SPOILT, DATA.y, teacher=DATA.teacher)
    made.set_params(lr=1e30)
    with pytest.raises(ValueError, match="the loss must stay finite"):
        made.fit(DATA.x, DATA.y, teacher=DATA.teacher)
    assert_same_bits(made.logits(DATA.x[0]), want)


def test_a_last_step_that_diverges_is_noticed():
    one = {"epochs": 1, "batch_size": 60}  # the loss of the only step is that of the start
    assert torch.isfinite(fit(**one).logits(DATA.x[0])).all()
    with pytest.raises(
        ValueError, match=r"the parameters must stay finite, got NaN or infinity in epoch 1 of 1"
    ):
        fit(lr=1e308, momentum=0.0, weight_decay=1e10, **one)


def test_queries_are_checked():
    made = fit()
    for ask in (made.predict, made.logits, made.predict_proba):
        with pytest.raises(ValueError, match=r"SpectralGCD\.\w+: X has 9 features, but it is expecting 10"):
            ask(DATA.x[0, :, :9])
        with pytest.raises(
            ValueError, match=r"X must be finite, got NaN or inf in 1 of 60 rows \(first: 3\)"
        ):
            ask(SPOILT[1])
        with pytest.raises(ValueError, match="must be fitted first"):
            getattr(sb.SpectralGCD(), ask.__name__)(DATA.x[0])
    with pytest.raises(ValueError, match="predictions must hold 2 values"):
        made.score(DATA.x[0], [0, 1])
    with pytest.raises(ValueError, match="must be fitted first"):
        sb.SpectralGCD().save("x")
