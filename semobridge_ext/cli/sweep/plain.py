"""What a model itself computes, in float64, and the methods' plain formulas on its own weights.

Nothing here asks the package: names of weights are looked up in the state, towers run as the model runs them,
and gradients are autograd's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Where libraries keep what ends a tower: a parameter [K, D], or a layer's weight [D, K] and its bias.
_ENDS = {
    "text": ("text_projection", "text.text_projection", "text.proj", "text_model.head"),
    "image": (
        "visual.proj",
        "visual_projection",
        "visual.head.proj",
        "visual.trunk.head.fc",
        "visual.trunk.head",
    ),
}


class NoOracleError(Exception):
    """The model has no part that the plain program would need."""


def end_of(model: nn.Module, side: str) -> Tensor:  # [K + 1, D]
    """The matrix and the bias that end a tower, zeros where it has none."""
    state = model.state_dict()
    for name in _ENDS[side]:
        if name in state and state[name].dim() == 2:
            return torch.cat([state[name], torch.zeros_like(state[name][:1])])
        weight, bias = state.get(f"{name}.weight"), state.get(f"{name}.bias")
        if weight is not None and weight.dim() == 2:
            return torch.cat([weight.T, (torch.zeros_like(weight[:, 0]) if bias is None else bias)[None]])
    raise NoOracleError(f"no matrix at the end of the {side} tower")


def _features(found: Any) -> Tensor:
    if isinstance(found, Tensor):
        return found
    if isinstance(found, (tuple, list)):
        return found[0]
    return found.pooler_output


def _unit(model: Any) -> bool:
    """Whether features come normalised by default, as CoCa's."""
    return type(model).__name__ == "CoCa"


def texts(model: Any, ids: Tensor) -> Tensor:  # [N, L] -> [N, D]
    if hasattr(model, "get_text_features"):
        return _features(model.get_text_features(input_ids=ids))
    return _features(model.encode_text(ids, normalize=False) if _unit(model) else model.encode_text(ids))


def images(model: Any, pixels: Tensor) -> Tensor:  # [N, 3, H, W] -> [N, D]
    if not hasattr(model, "get_image_features"):
        raw = {"normalize": False} if _unit(model) else {}
        return _features(model.encode_image(pixels, **raw))
    if model.config.model_type != "siglip2":
        return _features(model.get_image_features(pixel_values=pixels))
    side = model.config.vision_config.patch_size
    shape = [pixels.shape[2] // side, pixels.shape[3] // side]
    cut = F.unfold(pixels, side, stride=side).reshape(len(pixels), 3, side * side, -1).permute(0, 3, 2, 1)
    mask = torch.ones(len(pixels), shape[0] * shape[1], dtype=torch.int64)
    shapes = torch.tensor([shape] * len(pixels))
    return _features(model.get_image_features(cut.flatten(2), mask, shapes))


def inverse(matrix: Tensor) -> Tensor:
    return torch.linalg.pinv(matrix)


def bridged(rows: Tensor, end: Tensor) -> Tensor:
    """norm(norm(f W⁺)·W), W with its bias as the last row where that is not zero."""
    w = end if bool(end[-1].any()) else end[:-1]
    return F.normalize(F.normalize(rows @ inverse(w), dim=1) @ w, dim=1)


def cut(rows: Tensor, ends: dict[str, Tensor], side: str, top: int, bottom: int) -> Tensor:
    """IsoCLIP: norm(x·U_k U_kᵀ·A), on rows with a one appended where a bias stands."""
    held = {name: end if bool(end[-1].any()) else end[:-1] for name, end in ends.items()}
    u, singular, ht = torch.linalg.svd(held["image"] @ held["text"].T)
    rank = min(*held["image"].shape, *held["text"].shape)
    basis = (u if side == "image" else ht.T)[:, top : min(rank, len(singular)) - bottom]
    if len(held[side]) > rows.shape[1]:
        rows = F.pad(rows, (0, 1), value=1.0)
    return F.normalize(rows @ basis @ basis.T @ held[side], dim=1)


# -- inversion ---------------------------------------------------------------------------------------------


def _replacing(
    module: nn.Module, change: Callable[[Tensor], Tensor | None], run: Callable[[], Tensor]
) -> Tensor:
    """What `run` gives while the module's output is changed."""
    handle = module.register_forward_hook(lambda _, inputs, out: change(out))  # None leaves it as it is
    try:
        return run()
    finally:
        handle.remove()


def word_embedding(model: nn.Module, words: int) -> nn.Embedding:
    found = [m for m in model.modules() if isinstance(m, nn.Embedding) and m.num_embeddings == words]
    if not found:
        raise NoOracleError(f"no embedding of {words} words")
    return found[0]


def patch_embedding(model: Any) -> nn.Module:
    visual, vision = getattr(model, "visual", None), getattr(model, "vision_model", None)
    for owner, name in ((visual, "conv1"), (getattr(visual, "trunk", None), "patch_embed")):
        if isinstance(found := getattr(owner, name, None), nn.Module):
            return found
    embeddings = getattr(vision, "embeddings", None)
    inner = getattr(getattr(embeddings, "patch_embeddings", None), "projection", None)  # GroupViT
    found = getattr(embeddings, "patch_embedding", inner)
    if not isinstance(found, nn.Module):
        raise NoOracleError("no patch embedding")
    return found


def width_of(embedding: nn.Module, run: Callable[[], Tensor]) -> int:
    """Columns of the rows that a patch embedding gives in one run."""
    shapes: list[torch.Size] = []
    _replacing(embedding, lambda out: shapes.append(out.shape), run)  # type: ignore[func-returns-value]
    channels_first = len(shapes[0]) == 4 and isinstance(embedding, nn.Conv2d)
    return shapes[0][1] if channels_first else shapes[0][-1]


def with_words(model: nn.Module, embedding: nn.Module, ids: Tensor, at: list[int], v: Tensor) -> Tensor:
    """Features of one text [L] for each of v [B, R, T], its words at the places `at` replaced."""
    many = ids.expand(len(v), -1)

    def change(out: Tensor) -> Tensor:
        if out.shape[:2] != many.shape:  # other uses of the same layer
            return out
        out = out.clone()
        out[:, at] = v
        return out

    return _replacing(embedding, change, lambda: texts(model, many))


def with_patches(model: nn.Module, embedding: nn.Module, side: int, v: Tensor) -> Tensor:
    """Features of images whose U patch embeddings are v [B, P, V], patch u the ⌊u·P/U⌋th."""
    pixels = v.new_zeros(len(v), 3, side, side)

    def change(out: Tensor) -> Tensor:
        if out.dim() == 3:  # [B, U, V]
            at = torch.arange(out.shape[1]) * v.shape[1] // out.shape[1]
            return v[:, at]
        if out.shape[1] != v.shape[2]:  # [B, h, w, V]
            height, width = out.shape[1:3]
            return v[:, torch.arange(height * width) * v.shape[1] // (height * width)].reshape(out.shape)
        at = torch.arange(out.shape[2] * out.shape[3]) * v.shape[1] // (out.shape[2] * out.shape[3])
        return v[:, at].transpose(1, 2).reshape(out.shape)

    return _replacing(embedding, change, lambda: images(model, pixels))


def descend(
    features_of: Callable[[Tensor], Tensor], start: Tensor, targets: Tensor, steps: int
) -> tuple[Tensor, Tensor]:  # losses [steps], features [B, D]
    """AdamW as the papers run it, by autograd through the model's own forward pass."""
    v = start.clone().requires_grad_()
    optimizer = torch.optim.AdamW([v], lr=2e-2, weight_decay=0.01)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (1 - F.cosine_similarity(features_of(v), targets, dim=1)).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    with torch.no_grad():
        return torch.stack(losses), F.normalize(features_of(v), dim=1)
