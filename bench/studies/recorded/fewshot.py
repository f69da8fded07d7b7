"""Every classifier with every verb."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

import semobridge_ext as sb
from recorded.problems import Problem, case, draw, name_of, problem

P = problem(9, 5, 61, 40, 48)


def _verbs(clf: Any, p: Problem = P) -> dict[str, Any]:
    """What a fitted classifier says, before and after a save."""
    x = p.queries
    with tempfile.TemporaryDirectory() as folder:
        clf.save(Path(folder) / "classifier")
        loaded = type(clf).load(Path(folder) / "classifier")
    found = {
        "logits": clf.logits(x), "decision": clf.decision_function(x), "predict": clf.predict(x),
        "proba": clf.predict_proba(x), "score": clf.score(x, p.targets), "one": clf.logits(x[:1]),
        "loaded": [loaded.logits(x), loaded.predict(x)], "array": clf.logits(x.numpy()),
        "half": clf.logits(x.half()), "classes": clf.classes_,
    }  # fmt: skip
    public = {n: v for n, v in vars(clf).items() if n.endswith("_") and not n.startswith("_")}
    found["fitted"] = {n: v for n, v in public.items() if not isinstance(v, torch.nn.Module)}
    if hasattr(clf, "similarities"):
        found["similarities"] = tuple(clf.similarities(x))
    return found


def _bridge(p: Problem = P) -> sb.Bridge:
    return sb.Bridge(p.projection, text_length=1.3)


@case
def semobridge() -> Any:
    found: dict[str, Any] = {}
    settings: dict[str, tuple[tuple, dict[str, Any]]] = {
        "plain": ((_bridge(), P.text), {}),
        "weighted": ((_bridge(), P.text), {"s": 0.8, "alpha": 2.0, "beta": 5.0, "lambda2": 0.4}),
        "identity": (("identity", P.text), {}),
        "no text": ((_bridge(), None), {}),
    }
    for name, (args, options) in settings.items():
        found[name] = _verbs(sb.SeMoBridgeClassifier(*args, **options).fit(P.shots, P.labels))
    with sb.backend("eager"):
        found["eager"] = _verbs(sb.SeMoBridgeClassifier(_bridge(), P.text).fit(P.shots, P.labels))
    for dtype in (torch.float64, torch.bfloat16):
        p = problem(9, 5, 61, 40, 48, dtype)
        clf = sb.SeMoBridgeClassifier(_bridge(p), p.text).fit(p.shots, p.labels)
        found[name_of(dtype)] = clf.logits(p.queries), clf.predict(p.queries)
    return found


@case
def semobridge_tune() -> Any:
    found: dict[str, Any] = {}
    searches: dict[str, dict[str, Any]] = {
        "optuna": {"n_trials": 25}, "random": {"n_trials": 60, "sampler": "random", "seed": 4},
        "redundant": {"n_trials": 12, "redundant": True, "fixed": {"s": 0.0}},
        "batch": {"n_trials": 16, "batch": 4, "ranges": {"alpha": (0.5, 3.0)}},
    }  # fmt: skip
    for name, options in searches.items():
        clf = sb.SeMoBridgeClassifier(_bridge(), P.text).fit(P.shots, P.labels)
        found[name] = _verbs(clf.tune(P.validation, P.wanted, **options))
    p = problem(150, 4, 900, 96, 64)
    clf = sb.SeMoBridgeClassifier(_bridge(p), p.text).fit(p.shots, p.labels)
    found["large"] = _verbs(clf.tune(p.validation, p.wanted, n_trials=20, sampler="random"), p)
    clf = sb.SeMoBridgeClassifier("identity", P.text).fit(P.shots, P.labels)
    found["identity"] = _verbs(clf.tune(P.validation, P.wanted, n_trials=20, sampler="random"))
    return found


@case
def semobridge_grow() -> Any:
    names = [f"class {i}" for i in range(9)]
    named = [names[i] for i in P.labels.tolist()]
    clf = sb.SeMoBridgeClassifier(_bridge(), P.text[:7], class_names=names[:7])
    rows = P.labels < 7
    clf.fit(P.shots[rows][:21], named[:21] if rows[:21].all() else [n for n in named if n in names[:7]][:21])
    clf.add_shots(P.shots[rows][21:], [n for n in named if n in names[:7]][21:])
    before = clf.logits(P.queries)
    clf.add_classes(names[7:], P.text[7:], P.shots[~rows], [n for n in named if n in names[7:]])
    seeds = sb.SeMoBridgeClassifier(_bridge(), P.text).fit_seeds(P.shots, P.labels, shots=2, seeds=(0, 5))
    return {
        "shots": before, "classes": clf.logits(P.queries), "predict": clf.predict(P.queries),
        "counts": clf.counts_, "exponents": clf.exponents_, "seeds": [c.logits(P.queries) for c in seeds],
    }  # fmt: skip


@case
def semobridge_t() -> Any:
    held = P.validation, P.wanted
    found: dict[str, Any] = {}
    settings: dict[str, dict[str, Any]] = {
        "plain": {"steps": 40}, "fast": {"preset": "fast", "steps": 30},
        "no bias": {"class_bias": False, "steps": 25},
        "losses": {"steps": 25, "losses": {"text_projected": 0.0, "bias": 0.5}},
        "no decay": {"steps": 20, "weight_decay": 0.0, "lr": 1e-3, "warmup": 5, "logit_scale": 50.0},
    }  # fmt: skip
    for name, options in settings.items():
        clf = sb.SeMoBridgeT(_bridge(), P.text, P.hidden, **options).fit(P.shots, P.labels)
        found[name] = _verbs(clf), clf.bridge_.inverse
    clf = sb.SeMoBridgeT(_bridge(), P.text, P.hidden, steps=60, eval_every=10, patience=3, lr=1e-2)
    found["validation"] = _verbs(clf.fit(P.shots, P.labels, validation=held)), clf.bridge_.inverse
    found["tuned"] = _verbs(clf.tune(*held, n_trials=15, sampler="random"))
    clf.add_shots(P.validation[:7], P.wanted[:7])
    found["grown"] = clf.logits(P.queries)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "training"
        for part in ("first", "continued"):
            clf = sb.SeMoBridgeT(_bridge(), P.text, P.hidden, steps=25, checkpoint_every=10)
            clf.fit(P.shots, P.labels, checkpoint=path)
            found[f"checkpoint {part}"] = clf.losses_, clf.tau_, clf.bridge_.inverse
    with sb.backend("eager"):
        found["eager"] = _verbs(sb.SeMoBridgeT(_bridge(), P.text, P.hidden, steps=10).fit(P.shots, P.labels))
    clf = sb.SeMoBridgeT("identity", P.text, losses={"text_embedded": 0.0}, steps=10)
    found["identity"] = _verbs(clf.fit(P.shots, P.labels))
    wide = problem(9, 5, 61, 40, 48, torch.float64)
    clf = sb.SeMoBridgeT(_bridge(wide), wide.text, wide.hidden, steps=15).fit(wide.shots, wide.labels)
    found["float64"] = clf.losses_, clf.bridge_.inverse, clf.logits(wide.queries)
    return found


@case
def semobridge_t_large() -> Any:
    """Shots and classes enough for several blocks of rows and both threads."""
    p = problem(47, 16, 200, 512, 512)
    clf = sb.SeMoBridgeT(_bridge(p), p.text, p.hidden, steps=6).fit(p.shots, p.labels)
    q = problem(300, 5, 50, 64, 96)
    many = sb.SeMoBridgeT(_bridge(q), q.text, q.hidden, steps=6).fit(q.shots, q.labels)
    return [[c.losses_, c.tau_, c.bridge_.inverse, c.logits(d.queries)] for c, d in ((clf, p), (many, q))]


@case
def caches() -> Any:
    found: dict[str, Any] = {}
    for make, options in (
        (sb.TipAdapter, {}), (sb.TipAdapter, {"alpha": 3.0, "beta": 5.5}), (sb.APE, {}),
        (sb.APE, {"channels": 11, "w0": 0.4, "gamma": 0.5}),
        (sb.TipAdapterF, {"epochs": 3, "batch_size": 16}),
        (sb.TipAdapterF, {"epochs": 2, "lr": 1e-2, "seed": 7}),
    ):  # fmt: skip
        clf = make(P.text, **options).fit(P.shots, P.labels)
        found[f"{make.__name__} {options}"] = _verbs(clf), _verbs(clf.tune(P.validation, P.wanted))
    p = problem(40, 16, 300, 128, 64)
    clf = sb.TipAdapterF(p.text, epochs=2).fit(p.shots, p.labels)
    found["large"] = _verbs(clf, p)
    with sb.backend("eager"):
        found["eager"] = _verbs(sb.TipAdapterF(P.text, epochs=2).fit(P.shots, P.labels))
    return found


@case
def baselines() -> Any:
    names = [f"class {i}" for i in range(9)]
    named = [names[i] for i in P.labels.tolist()]
    fitted = {
        "LDA": sb.LDA().fit(P.shots, P.labels), "LDA fixed": sb.LDA(shrinkage=0.3).fit(P.shots, P.labels),
        "LDA one shot": sb.LDA().fit(P.shots[:9], P.labels[:9]),
        "LDA tuned": sb.LDA().fit(P.shots, P.labels).tune(P.validation, P.wanted),
        "mean": sb.NearestClassMean().fit(P.shots, P.labels),
        "zero-shot": sb.ZeroShot(P.text, logit_scale=30.0).fit(),
    }  # fmt: skip
    found = {name: _verbs(clf) for name, clf in fitted.items()}
    found["names"] = sb.NearestClassMean().fit(P.shots, named).predict(P.queries)
    uneven = torch.cat([P.shots, draw(11, 3, 40)]), torch.cat([P.labels, torch.tensor([0, 0, 4])])
    found["uneven"] = [c.fit(*uneven).logits(P.queries) for c in (sb.LDA(), sb.NearestClassMean())]
    return found
