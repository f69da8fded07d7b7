"""Few-shot episodes: shots drawn from a training part, every method scored on one fixed test part.

    support: the first K drawings per class of a seeded order (so 1 ⊂ 2 ⊂ 4 ⊂ 8 shots)
    text                norm(f)·tᵀ                      direct prototypes   norm(f)·F̄ᵀ
    bridged prototypes  norm(f)·F̂ᵀ                      bridged queries     norm(bridged(f))·F̄ᵀ
    blend               exp(z_text−1) + exp(z_bridged prototypes−1) + exp(z_bridged queries−1)
    unbridged blend     exp(z_text−1) + 2·exp(z_direct−1), the control: the same without the bridge

F̄, F̂ and the blend are METHODS §1 (_ops/blend_logits/reference.py) with equal weights; nothing is tuned, so
the
validation part stays unused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from semobridge_ext import _errors
from semobridge_ext._ops.blend_logits.eager import blend_logits, prototypes
from semobridge_ext._ops.blend_logits.spec import BlendParams, Similarities
from semobridge_ext.bridging import Bridge

METHODS = (
    "text",
    "direct",
    "bridged_prototypes",
    "bridged_queries",
    "blend",
    "blend_unbridged",
)
# Two-sided 5 % of Student's t with five seeds is 2.8 standard errors.
NOISE_ERRORS = 3.0

Progress = Callable[[Iterable[Any], int], Iterable[Any]]


class Problem(NamedTuple):
    """One few-shot problem in raw (not normalised) features of a CLIP model."""

    support: Tensor  # [S, D] features of the training part
    support_labels: Tensor  # [S] int64
    queries: Tensor  # [N, D] features of the test part
    query_labels: Tensor  # [N] int64
    text: Tensor  # [C, D] unit rows t


class Difference(NamedTuple):
    """A paired difference of two accuracies, as fractions."""

    mean: float
    std: float  # over seeds
    error: float  # standard error of the mean, from the seeds and from the finite test part
    beyond_noise: bool


@torch.inference_mode()
def class_text_features(
    model: Any,
    tokenizer: Callable[[list[str]], Tensor],
    class_names: Sequence[str],
    templates: Sequence[str] = ("{}",),
) -> tuple[Tensor, float]:  # [C, D], ℓ
    """Class text features ``t_c = norm(mean_p norm(prompt_p))`` and the text length ℓ.

    Args:
        model: open_clip ``CLIP`` or ``CustomTextCLIP`` whose text tower pools at the end-of-text token.
        tokenizer: its tokenizer, a list of strings to [B, L] ids.
        class_names: C names, put in place of ``{}``.
        templates: one or more prompts.

    Returns:
        [C, D] unit rows in the model's dtype, and ℓ, the mean length of the un-projected features of
        all prompts (METHODS §1).

    Raises:
        ValueError: a template without ``{}``, or none. NotImplementedError: another kind of tower.
    """
    for template in templates:
        if "{}" not in template:
            message = _errors.message(
                "class_text_features", "template", "contain {}", template, "as in 'an icon of {}'"
            )
            raise ValueError(message)
    if not templates:
        raise ValueError("class_text_features: templates must not be empty, got none; pass ('{}',)")
    tower = getattr(model, "text", model)
    if not hasattr(tower, "ln_final") or getattr(tower, "text_pool_type", "argmax") != "argmax":
        raise NotImplementedError(
            "class_text_features: model must pool text at the end-of-text token (open_clip CLIP), got "
            f"{type(model).__name__}; compute its text features yourself"
        )
    hidden: list[Tensor] = []
    hook = tower.ln_final.register_forward_hook(lambda module, inputs, output: hidden.append(output))
    total, length = None, 0.0
    try:
        for template in templates:
            tokens = tokenizer([template.format(name) for name in class_names])
            features = F.normalize(model.encode_text(tokens), dim=-1)
            total = features if total is None else total + features
            x = hidden.pop()
            pooled = x[torch.arange(len(x)), tokens.argmax(dim=-1)]
            length += float(pooled.float().norm(dim=-1).mean()) / len(templates)
    finally:
        hook.remove()
    assert total is not None
    return F.normalize(total, dim=-1), length


@torch.inference_mode()
def encode_images(
    model: Any,
    preprocess: Callable[[Any], Tensor],
    images: Any,  # [N, H, W, 3] uint8 array or tensor
    *,
    batch_size: int = 256,
    progress: Progress | None = None,
) -> Tensor:  # [N, D], raw
    """Raw image features of uint8 drawings; Memory O(batch_size) beside them.

    Drawings that already have the model's size are only scaled and shifted, which is all that
    ``preprocess`` does to them; others go through it one by one.
    """
    images = torch.as_tensor(images)
    size = getattr(model.visual, "image_size", None)
    size = (size, size) if isinstance(size, int) else tuple(size) if size is not None else None
    mean, std = (getattr(model.visual, f"image_{n}", None) for n in ("mean", "std"))
    fits = images.shape[1:3] == size and mean is not None and std is not None
    if fits:
        shift, factor = (torch.tensor(v).view(1, 3, 1, 1) for v in (mean, std))
    steps: Iterable[int] = range(0, len(images), batch_size)
    if progress is not None:
        steps = progress(steps, -(-len(images) // batch_size))
    parts = []
    for start in steps:
        chunk = images[start : start + batch_size]
        if fits:
            batch = (chunk.permute(0, 3, 1, 2).float() / 255 - shift) / factor
        else:
            from PIL import Image

            batch = torch.stack([preprocess(Image.fromarray(image.numpy())) for image in chunk])
        parts.append(model.encode_image(batch))
    if not parts:
        raise ValueError("encode_images: images must not be empty, got none; choose another set")
    return torch.cat(parts)


def sample_support(
    labels: Tensor,  # [S] int64, of the training part
    shots: int,
    seed: int,
) -> Tensor:  # sorted rows, at most `shots` per class
    """Rows of a K-shot support set; nested in K for one seed, all rows of a class that has fewer.

    Only rows of the part whose labels are passed can be drawn: pass the training part alone.
    """
    if shots < 1:
        raise ValueError(f"sample_support: shots must be ≥ 1, got {shots}; try 1, 2, 4 and 8")
    labels = torch.as_tensor(labels)
    # RandomState's stream is frozen by NumPy's policy; Generator's may change between releases.
    order = torch.from_numpy(np.random.RandomState(seed).permutation(len(labels)))
    order = order[torch.argsort(labels[order], stable=True)]
    sizes = torch.bincount(labels)
    starts = (sizes.cumsum(0) - sizes)[labels[order]]
    rank = torch.arange(len(order)) - starts
    return order[rank < shots].sort().values


@torch.inference_mode()
def run_episodes(
    problem: Problem,
    bridge: Bridge,
    *,
    shots: Sequence[int] = (1, 2, 4, 8),
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    progress: Progress | None = None,
) -> dict[str, Tensor]:  # method -> [shots, seeds, N] bool, prediction right
    """Scores every method of ``METHODS`` on the same support sets and the same queries.

    Raises:
        ValueError: a class without a training drawing.
    """
    classes = len(problem.text)
    counts = torch.bincount(problem.support_labels, minlength=classes)
    if len(counts) > classes or bool((counts == 0).any()):
        raise ValueError(
            "run_episodes: support_labels must cover classes 0.."
            f"{classes - 1}, got {int((counts > 0).sum())} classes with drawings; "
            "drop the classes without any"
        )
    queries = F.normalize(problem.queries, dim=-1)
    bridged_queries = bridge(problem.queries)
    bridged_support = bridge(problem.support, normalize=False)
    z_text = queries @ problem.text.T
    shape = (len(shots), len(seeds), len(queries))
    right = {name: torch.zeros(shape, dtype=torch.bool) for name in METHODS}
    episodes: Iterable[tuple[int, int]] = [(i, j) for i in range(len(shots)) for j in range(len(seeds))]
    if progress is not None:
        episodes = progress(episodes, len(shots) * len(seeds))
    for i, j in episodes:
        rows = sample_support(problem.support_labels, shots[i], seeds[j])
        labels = problem.support_labels[rows]
        raw = prototypes(problem.support[rows], labels, classes)
        bridged = prototypes(bridged_support[rows], labels, classes)
        direct, z2, z3 = queries @ raw.T, queries @ bridged.T, bridged_queries @ raw.T
        logits = {
            "text": z_text,
            "direct": direct,
            "bridged_prototypes": z2,
            "bridged_queries": z3,
            "blend": blend_logits(Similarities(z_text, z2, z3), BlendParams()),
            "blend_unbridged": blend_logits(Similarities(z_text, direct, direct), BlendParams()),
        }
        for name, values in logits.items():
            right[name][i, j] = values.argmax(dim=1) == problem.query_labels
    return right


def compare(
    ours: Tensor,  # [seeds, N] bool
    other: Tensor,  # [seeds, N] bool
) -> Difference:
    """Paired difference of accuracy, ours − other, with the noise it stands against."""
    gain = ours.double() - other.double()
    seeds, images = gain.shape
    by_seed, by_image = gain.mean(dim=1), gain.mean(dim=0)
    std = float(by_seed.std()) if seeds > 1 else 0.0
    # Shots and test drawings are both samples; adding the two variances errs on the careful side.
    variance = std**2 / seeds + (float(by_image.var()) / images if images > 1 else 0.0)
    mean, error = float(gain.mean()), variance**0.5
    return Difference(mean, std, error, abs(mean) > NOISE_ERRORS * error)
