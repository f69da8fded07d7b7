"""Mistakes where two features meet: a saved estimator that is tuned, a bridge whose numbers are set later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import semobridge_ext as sb
from tests.support.learners import TEACHER, WORDS, coop, kdpl
from tests.support.misuse import Case, assert_refused

ROWS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 0, 1, 1, 2, 2])
TEXT = ROWS[:3]
NAN, INF = float("nan"), float("inf")


def tuned(**given: Any) -> Any:
    own = {"n_trials": 2, "sampler": "random", **given}
    return sb.SeMoBridgeClassifier("identity", TEXT).fit(ROWS, LABELS).tune(ROWS, LABELS, **own)


def means(x: Any, labels: Any = LABELS) -> Any:
    return sb.IsoCLIP(torch.eye(4), torch.eye(4), k_top=1, k_bottom=1).class_means(x, labels)


def reset(name: str, value: Any) -> None:
    setattr(sb.Bridge(torch.eye(4)), name, value)


def texts(names: Any) -> Any:
    return sb.class_text_features(torch.nn.Identity(), names)  # refused before the model is looked at


CASES: dict[str, Case] = {
    **{
        f"tune {argument}={value!r}": (
            lambda given={argument: value}: tuned(**given), kind, rf"tune: {argument} must",
        )
        for argument, value, kind in (
            ("seed", "a", TypeError), ("seed", 1.5, TypeError), ("seed", -1, ValueError),
            ("seed", 2**40, ValueError), ("ranges", [1], TypeError), ("ranges", {"s": 5}, TypeError),
            ("ranges", {"s": (1,)}, TypeError), ("ranges", {"s": ("a", "b")}, TypeError),
            ("ranges", {"s": (2, 1)}, ValueError), ("ranges", {"s": (0, NAN)}, ValueError),
            ("ranges", {"tau": (0, 1)}, ValueError), ("fixed", 3, TypeError),
            ("fixed", {"s": "x"}, TypeError), ("fixed", {"s": None}, TypeError),
            ("fixed", {"s": True}, TypeError),
            ("fixed", {"s": INF}, ValueError), ("fixed", {"tau": 1}, ValueError), ("sampler", 3, TypeError),
            ("sampler", "tpe", ValueError),
        )
    },
    **{
        f"class_means {name}": (lambda x=x, y=y: means(x, y), kind, holds)
        for name, x, y, kind, holds in (
            ("of whole numbers", ROWS.int(), LABELS, TypeError, "x must be float32"),
            ("of a list", ROWS.tolist(), LABELS, TypeError, "x must be a torch.Tensor"),
            ("of None", None, LABELS, TypeError, "x must be a torch.Tensor"),
            ("of one row", ROWS[0], [1], ValueError, r"x must be \[N, 4\]"),
            ("of three axes", ROWS[None], [1], ValueError, r"x must be \[N, 4\]"),
            ("without values", ROWS.to("meta"), LABELS, ValueError, "x must hold values"),
            ("and too few labels", ROWS, [1], ValueError, "labels must have 6 labels, one per row of x"),
        )
    },
    **{
        f"bridge.{name} = {value!r}": (lambda n=name, v=value: reset(n, v), kind, f"Bridge: {name} must be")
        for name, value, kind in (
            ("atol", -1.0, ValueError), ("atol", NAN, ValueError), ("atol", "x", TypeError),
            ("text_length", 0.0, ValueError), ("text_length", NAN, ValueError),
            ("text_length", None, TypeError),
        )
    },
    **{
        f"class_text_features of {name}": (lambda given=given: texts(given), TypeError, holds)
        for name, given, holds in (
            ("a set, which has no order", {"ox", "cat"}, "names must be class names in an order, got set"),
            ("None", ["ox", None], "names must be .*, got NoneType None"),
            ("NaN", ["ox", NAN], "names must be .*, got float nan"),
            ("bytes", [b"ox"], "names must be .*, got bytes b'ox'"),
        )
    },
    "encode_text of a set": (
        lambda: sb.encode_text(sb.load_picto_clip()[0], {"ox", "cat"}), TypeError,
        "encode_text: texts must be strings in an order, got set",
    ),
    **{
        f"prompts, {name}": (call, kind, holds)
        for name, call, kind, holds in (
            ("one class", lambda: coop(class_names=WORDS[:1]), ValueError, "class_names must hold two names"),
            (
                "one class beside a teacher", lambda: kdpl(class_names=WORDS[:1], teacher=TEACHER[:1]),
                ValueError, "class_names must hold two names",
            ),
            (
                "one name of a dictionary", lambda: kdpl(class_names=None, dictionary=WORDS, keep=1),
                ValueError, r"KDPL\.fit: keep must be at least 2",
            ),
            (
                "a set beside rows in an order", lambda: kdpl(class_names={*WORDS}), TypeError,
                "class_names must be a sequence of class names, got set",
            ),
            ("no teacher", lambda: kdpl(teacher=None), ValueError, r"KDPL\.fit: teacher must be given"),
        )
    },
    **{
        f"{kind.__name__} with beta=-1": (
            lambda kind=kind: kind(TEXT, beta=-1.0).fit(ROWS, LABELS), ValueError,
            rf"{kind.__name__}\.fit: beta must be ≥ 0, got float -1",
        )
        for kind in (sb.TipAdapter, sb.TipAdapterF, sb.APE, sb.APET)
    },
    "from_bridge of a matrix": (
        lambda: sb.LinearMap.from_bridge(ROWS), TypeError, "LinearMap.from_bridge: bridge must be a Bridge",
    ),
    **{
        f"an empty path to {name}": (call, ValueError, "path must name a file, got ''")
        for name, call in (
            ("save", lambda: sb.Bridge(torch.eye(4)).save("")), ("load", lambda: sb.Bridge.load("")),
            ("save a support", lambda: sb.SupportSet(ROWS, LABELS, 3).save("")),
            ("oti", lambda: sb.oti(sb.load_picto_clip()[0], torch.ones(1, 192), steps=1, out="")),
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_refused(name: str):
    assert_refused(*CASES[name])


def test_a_loaded_lda_says_that_it_has_nothing_to_tune(tmp_path: Path):
    sb.LDA().fit(ROWS, LABELS).save(tmp_path / "lda")
    loaded = sb.LDA.load(tmp_path / "lda")
    assert_refused(lambda: loaded.tune(ROWS, LABELS), ValueError, r"LDA\.tune: self must hold its sums")


def test_a_bridge_keeps_its_numbers_when_others_are_refused():
    bridge = sb.Bridge(torch.eye(4), atol=0.5, text_length=2.0)
    for name in ("atol", "text_length"):
        with pytest.raises(ValueError, match="must be"):
            setattr(bridge, name, NAN)
    assert (bridge.atol, bridge.text_length) == (0.5, 2.0)
    bridge.atol, bridge.text_length = np.float32(0.25), 3
    assert (bridge.atol, bridge.text_length) == (0.25, 3.0)
