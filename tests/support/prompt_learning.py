"""Prompt learning on towers of a few rows: the authors' one, random ones of every library, small problems."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import open_clip
import torch
from torch import Tensor, nn

import semobridge_ext as sb
from tests.support import towers
from tests.support.prompts import TOKENIZER
from tests.support.vectors import rows, vector

NAMES = ["cat", "sea lion", "big red bus", "big red bird", "old oak", "the big old oak tree"]
F64 = torch.float64


def words_tokenizer(given: dict[str, Any], length: int) -> Callable[[list[str]], Tensor]:
    """The authors' vocabulary: words and full stops, between a start and an end."""

    def tokenize(texts: list[str]) -> Tensor:
        found = torch.full((len(texts), length), given["pad"])
        for i, text in enumerate(texts):
            words = text.replace(".", " . ").split()
            ids = [given["start"], *(given["vocabulary"][word] for word in words), given["end"]]
            found[i, : len(ids)] = torch.tensor(ids)
        return found

    return tokenize


def authors_model() -> tuple[nn.Module, Callable[[list[str]], Tensor], dict[str, Any]]:
    """Their two-layer tower as open_clip's CLIP, their tokenizer, and all that they were given."""
    given = vector("coop_tiny_tower")["inputs"]
    places, width = rows(given["positional_embedding"]), 8
    text = {"context_length": len(places), "vocab_size": 30, "width": width, "heads": given["heads"],
            "layers": 2}  # fmt: skip
    vision = {"image_size": 8, "patch_size": 8, "width": 8, "layers": 1, "head_width": 8}
    model = open_clip.CLIP(6, vision, text, quick_gelu=True).double().eval().requires_grad_(False)
    for name, value in given["blocks"].items():
        model.transformer.get_parameter(name).copy_(rows(value))
    model.token_embedding.weight.copy_(rows(given["token_embedding"]))
    model.positional_embedding.copy_(places)
    model.text_projection.copy_(rows(given["text_projection"]))
    model.ln_final.weight.copy_(rows(given["ln_final"]["weight"]))
    model.ln_final.bias.copy_(rows(given["ln_final"]["bias"]))
    model.logit_scale.fill_(torch.tensor(given["logit_scale"], dtype=F64).log())
    return model, words_tokenizer(given, len(places)), given


@cache
def tiny_model(dtype: torch.dtype = torch.float32) -> nn.Module:
    return towers.open_clip_model().to(dtype).requires_grad_(False)


@cache
def authors() -> tuple[nn.Module, Callable[[list[str]], Tensor], list[str]]:
    """Their model, tokenizer and class names, for problems of a few rows."""
    model, tokenizer, given = authors_model()
    return model, tokenizer, given["class_names"]


def small_coop(checkpoint: Any = None, seed: int = 0, epochs: int = 2) -> sb.CoOp:
    """On the authors' tower, a checkpoint after each epoch."""
    model, tokenizer, names = authors()
    y = [names[i % 3] for i in range(6)]
    given = {"n_ctx": 2, "epochs": epochs, "batch_size": 3, "checkpoint_every": 1, "tokenizer": tokenizer}
    return sb.CoOp(model, names, **given).fit(images(6, seed, 6), y, checkpoint=checkpoint)


def small_kdpl(checkpoint: Any = None, seed: int = 0, epochs: int = 2, known: bool = False) -> sb.KDPL:
    """The two likeliest of three names a step, or all of them as classes."""
    model, tokenizer, names = authors()
    given = {"n_ctx": 2, "ctx_init": None, "epochs": epochs, "batch_size": 3, "checkpoint_every": 1}
    given |= {"class_names": names} if known else {"dictionary": names, "keep": 2}
    learner = sb.KDPL(model, images(3, 7, 5), tokenizer=tokenizer, **given)
    return learner.fit(images(6, seed, 6), images(6, seed + 1, 5), checkpoint=checkpoint)


def images(count: int, seed: int = 0, width: int = towers.D) -> Tensor:  # [count, D]
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


SMALL: dict[str, Any] = {"n_ctx": 3, "epochs": 3, "batch_size": 4, "tokenizer": TOKENIZER}


def coop(checkpoint: Any = None, seed: int = 0, **changed: Any) -> sb.CoOp:
    """Ten images of the first three names, fitted."""
    y = [NAMES[i % 3] for i in range(10)]
    model = changed.pop("model", None) or tiny_model()
    return sb.CoOp(model, NAMES[:3], **SMALL | changed).fit(images(10, seed), y, checkpoint=checkpoint)


def kdpl(checkpoint: Any = None, seed: int = 0, **changed: Any) -> sb.KDPL:
    """Ten images and a teacher of width 5, without labels: the three likeliest of six names a step."""
    given = {"dictionary": NAMES, "keep": 3, "ctx_init": None, **SMALL, **changed}
    model = given.pop("model", None) or tiny_model()
    names = given.get("class_names") or given["dictionary"]
    teacher = images(len(names), 7, 5)
    return sb.KDPL(model, teacher, **given).fit(
        images(10, seed), images(10, seed + 1, 5), checkpoint=checkpoint
    )
