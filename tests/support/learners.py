"""Every learner on a problem of a few rows, with the settings that a test changes."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

import semobridge_ext as sb
from tests.support.prompt_learning import NAMES, tiny_model
from tests.support.prompts import TOKENIZER

picto = cache(lambda: sb.load_picto_clip()[0])
ROWS = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2] * 4)
PARTLY = ["a", None, "b", None] * 3
TEXT = ROWS[:3]
FINDINGS = torch.tensor([[1, 0, 1], [0, 1, 0]] * 6)
PROMPTS = torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(1))
WORDS = NAMES[:2]
IMAGES = torch.randn(6, tiny_model().text_projection.shape[1], generator=torch.Generator().manual_seed(2))
TAUGHT = torch.randn(6, 5, generator=torch.Generator().manual_seed(3))
TEACHER = torch.randn(2, 5, generator=torch.Generator().manual_seed(4))


def tip(path: Any = None, **given: Any) -> Any:
    return sb.TipAdapterF(TEXT, **{"epochs": 2, **given}).fit(ROWS, LABELS, checkpoint=path)


def trained(path: Any = None, **given: Any) -> Any:
    clf = sb.SeMoBridgeT(sb.Bridge(torch.eye(8)), TEXT, TEXT, **{"steps": 2, **given})
    return clf.fit(ROWS, LABELS, checkpoint=path)


def prolip(path: Any = None, **given: Any) -> Any:
    return sb.ProLIP(torch.eye(8), TEXT, **{"steps": 2, **given}).fit(ROWS, LABELS)


def gcd(path: Any = None, **given: Any) -> Any:
    small = {"num_classes": 4, "hidden": 6, "projection": 4, "epochs": 2, "batch_size": 6, "warmup": 2}
    return sb.SpectralGCD(**{**small, **given}).fit(ROWS, PARTLY, checkpoint=path)


def tuned(path: Any = None, **given: Any) -> Any:
    return sb.RETune(**{"epochs": 2, **given}).fit(ROWS, FINDINGS, PROMPTS, checkpoint=path)


def coop(path: Any = None, **given: Any) -> Any:
    own = {"class_names": WORDS, "n_ctx": 2, "epochs": 2, "batch_size": 4, "tokenizer": TOKENIZER}
    return sb.CoOp(tiny_model(), **{**own, **given}).fit(IMAGES, WORDS * 3, checkpoint=path)


def kdpl(path: Any = None, **given: Any) -> Any:
    own = {
        "teacher": TEACHER, "class_names": WORDS, "n_ctx": 2, "ctx_init": None, "epochs": 2,
        "batch_size": 4, "tokenizer": TOKENIZER,
    }  # fmt: skip
    return sb.KDPL(tiny_model(), **{**own, **given}).fit(IMAGES, TAUGHT, checkpoint=path)


def filtered(path: Any = None, **given: Any) -> Any:
    return sb.SpectralFilter(**given).fit(ROWS, ROWS[:10])
