"""Settings, findings, tasks, images and transforms that learners do not take."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

import semobridge_ext as sb
from semobridge_ext import discovery, incremental
from semobridge_ext.discovery import cache_block_inputs
from tests.support.learners import (
    FINDINGS,
    IMAGES,
    LABELS,
    PROMPTS,
    ROWS,
    TEXT,
    WORDS,
    coop,
    picto,
    prolip,
    tip,
    trained,
)
from tests.support.misuse import Case, assert_refused
from tests.support.prompt_learning import tiny_model
from tests.support.prompts import TOKENIZER

NAN = float("nan")
Y8 = torch.full((12, 3), 255, dtype=torch.uint8)
META = torch.zeros(12, 3, device="meta")
SIDE = torch.zeros(3, 8, 8)
PICTURE = torch.zeros(9, 9, 3, dtype=torch.uint8)


def from_images(images: Any, transform: Any) -> Any:
    own = {"class_names": WORDS, "n_ctx": 2, "epochs": 1, "tokenizer": TOKENIZER}
    return sb.CoOp(tiny_model(), **own).fit_images(images, WORDS * 3, transform)


CASES: dict[str, Case] = {
    **{
        f"{argument} of fit_seeds {value!r}": (
            lambda given={"shots": 1, argument: value}: sb.LDA().fit_seeds(ROWS, LABELS, **given), kind,
            "must",
        )
        for argument, value, kind in (
            ("shots", "a", TypeError), ("shots", 0, ValueError), ("shots", 1.5, TypeError),
            ("seeds", 5, TypeError), ("seeds", ["a"], TypeError), ("seeds", [-1], ValueError),
            ("seeds", [2**40], ValueError),
        )
    },
    **{
        f"GDA alphas={value!r}": (
            lambda value=value: sb.GDA(TEXT).fit(ROWS, LABELS).tune(ROWS, LABELS, alphas=value), kind,
            "alphas must",
        )
        for value, kind in ((5, TypeError), ("a", TypeError), (["a"], TypeError), ([], ValueError),
        ([NAN], ValueError))
    },
    **{
        f"ProLIP {name}={value!r}": (
            lambda given={name: value}: prolip().tune(ROWS, LABELS, **given), kind, f"{name} must",
        )
        for name, value, kind in (
            ("lrs", 5, TypeError), ("lrs", [0], ValueError), ("penalties", ["a"], TypeError),
            ("penalties", [-1], ValueError),
        )
    },
    **{
        f"SeMoBridgeT {name}={value!r}": (lambda given={name: value}: trained(**given), kind, f"{name} must")
        for name, value, kind in (
            ("steps", "a", TypeError), ("warmup", 1.5, TypeError), ("patience", "a", TypeError),
            ("patience", -3, ValueError), ("eval_every", "a", TypeError), ("checkpoint_every", 0, ValueError),
            ("losses", {"image": "a"}, ValueError), ("losses", 5, ValueError),
            ("preset", ["paper"], ValueError),
        )
    },
    **{
        f"validation of {name} is {value!r}": (
            lambda clf=clf, value=value: clf.fit(ROWS, LABELS, validation=value), TypeError,
            r"validation must be \(features, names\), got",
        )
        for value in (5, "ab", (ROWS,), (ROWS, LABELS, 1))
        for name, clf in (
            ("LPPlusPlus", sb.LPPlusPlus(TEXT, steps=2)),
            ("SeMoBridgeT", sb.SeMoBridgeT(sb.Bridge(torch.eye(8)), TEXT, TEXT, steps=2)),
        )
    },
    "TipAdapterF seed='a'": (lambda: tip(seed="a"), TypeError, "seed must be a whole number, got str"),
    "SpectralGCD, NaN as a label": (
        lambda: sb.SpectralGCD(num_classes=4, batch_size=6).fit(ROWS, [0, 1, NAN] * 4), ValueError,
        "got NaN in 4 of 12 places .*; None stands for a row without a label",
    ),
    "gcd_accuracy, old_classes=5": (
        lambda: sb.gcd_accuracy(LABELS, LABELS, 5), TypeError, "old_classes must be a list of class names",
    ),
    "merge_concepts(None)": (lambda: discovery.merge_concepts(None), TypeError,
    "lists must be lists of names"),
    "read_concepts(5)": (lambda: discovery.read_concepts(5), TypeError, "path must be a str or a path"),
    "read_concepts of a folder": (
        lambda: discovery.read_concepts(Path(__file__).parent), FileNotFoundError,
        "path must be an existing file",
    ),
    **{
        f"cache_block_inputs, {name}": (
            lambda images=images, given=given: cache_block_inputs(picto(), images, **given), kind, holds,
        )
        for name, images, given, kind, holds in (
            ("batch_size=0", torch.zeros(1, 3, 48, 48), {"batch_size": 0}, ValueError,
            "batch_size must be ≥ 1"),
            ("batch_size='a'", torch.zeros(1, 3, 48, 48), {"batch_size": "a"}, TypeError,
            "batch_size must be"),
            ("bytes", torch.zeros(1, 3, 48, 48, dtype=torch.uint8), {}, TypeError, "images must be float32"),
            ("batches of bytes", [torch.zeros(1, 3, 48, 48, dtype=torch.uint8)], {}, TypeError,
            "images must be float32"),
            ("meta", torch.zeros(1, 3, 48, 48, device="meta"), {}, ValueError, "images must hold values"),
        )
    },
    # findings
    **{
        f"findings, Y is {name}": (
            lambda y=y: sb.RETune(epochs=1).fit(ROWS, y, PROMPTS), kind, f"Y must {holds}",
        )
        for name, y, kind, holds in (
            ("255 as bytes", Y8, ValueError, "hold 0, 1, NaN or −1, got 255 in row 0"),
            ("complex", FINDINGS.to(torch.complex64), TypeError, "be a dense tensor of real numbers"),
            ("sparse", FINDINGS.to_sparse(), TypeError, "be a dense tensor of real numbers"),
            ("meta", META, ValueError, "hold values"),
            ("ragged", [[1], [1, 0]], ValueError, "be rows of one length"),
        )
    },
    "findings=5": (
        lambda: sb.RETune(epochs=1).fit(ROWS, FINDINGS, PROMPTS, findings=5), TypeError,
        "be several names, got 5",
    ),
    "a finding without a name": (
        lambda: sb.RETune(epochs=1).fit(ROWS, FINDINGS, PROMPTS, findings=["a", None, "b"]), ValueError,
        "be names",
    ),
    "known is a text": (
        lambda: sb.RETune(epochs=1).fit(ROWS, FINDINGS, PROMPTS, known="a"), TypeError,
        "known must be a bool",
    ),
    "prompts of texts": (
        lambda: sb.RETune(epochs=1).fit(ROWS, FINDINGS, [[["a"] * 8] * 2] * 3), ValueError,
        "must hold numbers",
    ),
    **{
        f"tasks={tasks!r}": (lambda tasks=tasks: incremental.label_incremental(FINDINGS, tasks), TypeError,
        "tasks must")
        for tasks in (None, "a", [[0.5], [1, 2]], [["a"]], [5], True)
    },
    "incremental_report(5, 5)": (lambda: sb.incremental_report(5, 5), TypeError,
    "tests must be a list, got int 5"),
    "a row of scores that is a number": (
        lambda: sb.incremental_report([FINDINGS], [5]), TypeError, "scores must be a list, got int 5",
    ),
    # prompts
    "CoOp class_names=5": (lambda: coop(class_names=5), TypeError, "class_names must be a sequence"),
    "images from a generator": (
        lambda: from_images((i for i in range(6)), lambda i: SIDE), TypeError,
        "images must be a sequence of images",
    ),
    "a transform that gives nothing": (
        lambda: from_images(range(6), lambda i: None), TypeError,
        r"transform must give \[3, H, W\] tensors of one size",
    ),
    "a transform that gives two sizes": (
        lambda: from_images(range(6), lambda i: torch.zeros(3, 8, 8 + i)), TypeError, "tensors of one size",
    ),
    "class texts, batch_size=0": (
        lambda: sb.class_text_features(tiny_model(), WORDS, batch_size=0), ValueError,
        "batch_size must be ≥ 1",
    ),
    **{
        f"prompts {prompts!r} of a class": (
            lambda prompts=prompts: sb.class_text_features(tiny_model(), ["a"], {"a": prompts}), TypeError,
            "templates must hold prompts of 'a'",
        )
        for prompts in (5, [5], b"a")
    },
    "a class that cannot be looked up": (
        lambda: sb.class_text_features(tiny_model(), [["a"]], {"a": "b"}), ValueError,
        "prompts of every class",
    ),
    **{
        f"tokenizer that is {name}": (
            lambda tokenizer=tokenizer: sb.encode_text(tiny_model(), ["a", "b"], tokenizer=tokenizer),
            TypeError,
            f"tokenizer must {holds}",
        )
        for name, tokenizer, holds in (
            ("a number", 5, "be callable"), ("a function of nothing", lambda texts: None, "give token ids"),
            ("a function of texts", lambda texts: "a", "give token ids"),
        )
    },
    "a tokenizer of more words than the model's": (
        lambda: sb.encode_text(tiny_model(), ["a", "b"],
        tokenizer=lambda texts: torch.full((len(texts), 8), 10**6)),
        ValueError, "tokenizer must give ids below [0-9]+, as the model has words, got 1000000",
    ),
    **{
        f"a model on meta, {name}": (
            lambda call=call: call(deepcopy(tiny_model()).to("meta")), ValueError,
            "model must hold its weights, got a CLIP",
        )
        for name, call in {
            "class texts": lambda model: sb.class_text_features(model, ["a"], tokenizer=TOKENIZER),
            "oti": lambda model: sb.oti(model, IMAGES, tokenizer=TOKENIZER, steps=1),
            "Bridge": sb.Bridge.from_clip,
            "encode_image": lambda model: sb.clip.encode_image(model, torch.zeros(1, 3, 8, 8)),
        }.items()
    },
    "encode_images, preprocess=5": (
        lambda: sb.encode_images(picto(), PICTURE, preprocess=5), TypeError, "preprocess must be callable",
    ),
    "encode_images, a preprocessing of nothing": (
        lambda: sb.encode_images(picto(), PICTURE, preprocess=lambda image: None), ValueError,
        "gives a NoneType in place of a tensor",
    ),
    "encode_image, bytes": (
        lambda: sb.clip.encode_image(tiny_model(), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)), TypeError,
        "images must be float32",
    ),
    "encode_image, one image": (
        lambda: sb.clip.encode_image(tiny_model(), SIDE), ValueError, r"images must be \[B, 3, H, W\]",
    ),
    "clip.encode_text, texts": (
        lambda: sb.clip.encode_text(tiny_model(), ["a"]), TypeError, r"ids must be token ids \[B, L\]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_refused_in_the_grammar_of_errors(name: str) -> None:
    assert_refused(*CASES[name])
