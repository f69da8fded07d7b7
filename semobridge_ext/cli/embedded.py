"""The embedded sets as the commands use them: which were asked for, and their drawings encoded."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from semobridge_ext.clip.families import adapter_of
from semobridge_ext.fewshot.study import Progress

TEMPLATES = ("{}", "an icon of {}", "a drawing of {}")
BATCH = 256


class Clip(NamedTuple):
    """The embedded model with what belongs to it."""

    model: Any
    preprocess: Any
    tokenizer: Any


def load_clip() -> Clip:
    from semobridge_ext.data import load_picto_clip

    model, preprocess, tokenizer = load_picto_clip()
    return Clip(model.eval(), preprocess, tokenizer)


def chosen_sets(word: str) -> list[str]:
    """The names that ``--set`` stands for; ValueError with the near match of an unknown one."""
    from semobridge_ext.data import list_picto

    known = list(list_picto())
    if word == "all":
        return known
    if word not in known:
        near = difflib.get_close_matches(word, known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else "choose one of them"
        raise ValueError(f"--set must be one of {', '.join(known)} or all, got '{word}'; {hint}")
    return [word]


@torch.inference_mode()
def encode_drawings(
    model: Any,
    preprocess: Callable[[Any], Tensor],
    images: Any,  # [N, H, W, 3] uint8 array or tensor
    *,
    batch_size: int = BATCH,
    progress: Progress | None = None,
    project: bool = True,
) -> Tensor:  # [N, D], raw; [N, V] with project=False
    """Raw image features of uint8 drawings, or what the projection reads, `batch_size` at a time.

    Drawings that already have the model's size are scaled and shifted as a batch, which is all that
    ``preprocess`` does to them; others go through it one by one.
    """
    images, adapter = torch.as_tensor(images), adapter_of("encode_drawings", model)
    size, mean, std = adapter.image_format
    fits = images.shape[1:3] == size and mean is not None and std is not None
    if fits:
        shift, factor = (torch.tensor(v).view(1, 3, 1, 1) for v in (mean, std))
    steps: Iterable[int] = range(0, len(images), batch_size)
    if progress is not None:
        steps = progress(steps, -(-len(images) // batch_size))
    run, parts = adapter.encode_image if project else adapter.encode_image_hidden, []
    for start in steps:
        chunk = images[start : start + batch_size]
        if fits:
            batch = (chunk.permute(0, 3, 1, 2).float() / 255 - shift) / factor
        else:
            from PIL import Image

            batch = torch.stack([preprocess(Image.fromarray(image.numpy())) for image in chunk])
        parts.append(run(batch))
    if not parts:
        raise ValueError("encode_drawings: images must not be empty, got none; choose another set")
    return torch.cat(parts)
