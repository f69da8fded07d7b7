"""The protocol of KDPL and CoOp: a context from the first half of the classes, tested on the other half."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from semobridge_ext.cli import models
from semobridge_ext.cli.named.problem import Prepared, extracted, folder_name
from semobridge_ext.cli.reproduction.published import SEEN, UNSEEN
from semobridge_ext.fewshot.draws import sample_support
from semobridge_ext.prompts import KDPL, CoOp

_CONTEXT: dict[str, Any] = {"n_ctx": 4, "ctx_init": "a photo of a"}
_BATCH = 32


class Teacher(NamedTuple):
    names: tuple[str, str | None]
    encoder: models.Encoder
    templates: tuple[str, ...]


def teacher_rows(
    spec: str, args: argparse.Namespace, teacher: Teacher, prepared: Prepared, home: Path
) -> Tensor:  # [N, E]
    """The teacher's features of the training part, of the same images in the same order."""
    folder = extracted("reproduce", spec, args, teacher.names, home / f"{folder_name(spec)}-teacher", False)
    if folder.column("image_path") != prepared.folder.column("image_path"):
        raise ValueError(
            f"reproduce: --teacher must see the images that the student saw, got others in {folder.path}; "
            "delete it and run again"
        )
    return torch.cat(list(folder.blocks()))[prepared.rows[0]]


def _accuracy(rows: Tensor, labels: Tensor, text: Tensor, first: int) -> float:
    """Of the classes from `first` on, whose texts are the rows of `text`."""
    mine = (labels >= first) & (labels < first + len(text))
    if not bool(mine.any()):
        raise ValueError(
            f"reproduce: --datasets must hold test images of both halves of its classes, got none of classes "
            f"{first} to {first + len(text) - 1}; name the whole data set"
        )
    chosen = (normalize(rows[mine], dim=1) @ normalize(text.float().cpu(), dim=1).T).argmax(dim=1) + first
    return float((chosen == labels[mine]).double().mean())


def episode(
    prepared: Prepared,
    encoder: models.Encoder,
    teacher: Teacher,
    shown: Tensor,  # [N, E] of the training part
    epochs: int,
    draw: tuple[int, int],  # shots, seed
    checkpoints: Path,
) -> list[dict[str, Any]]:
    """CoOp and KDPL on one draw of shots, and the prompts that nobody learned."""
    shots, seed = draw
    problem, names = prepared.problem, prepared.names
    half = -(-len(names) // 2)
    x, y = problem.train
    base = (y < half).nonzero().flatten()
    rows = base[sample_support(y[base], shots, seed)]
    batch = min(_BATCH, len(rows))
    given = {"tokenizer": encoder.tokenizer, "epochs": epochs, "seed": seed, "batch_size": batch, **_CONTEXT}
    place = f"{folder_name(problem.name)}-{shots}-{seed}.safetensors"
    coop = CoOp(encoder.model, names[:half], **given)
    coop.fit(x[rows], [names[c] for c in y[rows].tolist()], checkpoint=checkpoints / f"coop-{place}")
    kdpl = KDPL(
        encoder.model, teacher.encoder.model, names[:half], teacher_templates=teacher.templates,
        teacher_tokenizer=teacher.encoder.tokenizer, **given,
    )  # fmt: skip
    kdpl.fit(x[rows], shown[rows], checkpoint=checkpoints / f"kdpl-{place}")
    assert problem.text is not None
    texts = {"zero-shot": problem.text}
    texts |= {name: learned.features_for(names) for name, learned in (("CoOp", coop), ("KDPL", kdpl))}
    return [
        {
            "set": problem.name, "method": name, "shots": shots, "seed": seed,
            UNSEEN: _accuracy(*problem.test, text[half:], half),
            SEEN: _accuracy(*problem.test, text[:half], 0),
        }
        for name, text in texts.items()
    ]  # fmt: skip
