"""The oracles of prompt learning: autograd through a model's own forward pass, over all of its positions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize


def prompt_features(
    encode: Callable[[Tensor], Tensor],  # [C, L] ids -> [C, D], the model's own
    embedding: nn.Module,  # its token embedding
    ids: Tensor,  # [C, L] int64
    source: Tensor,  # [C, L] int64: which vector stands there, −1 for the token's own row
    vectors: Tensor,  # [V, T]
) -> Tensor:  # [C, D]
    """Text features of prompts in which learned vectors stand for embeddings; open to autograd.

    Args:
        encode: token ids to features. embedding: what its first lookup is; a hook replaces rows of it.
        ids: padded as the model's tokenizer pads. source: of the same shape. vectors: any floating dtype.

    Returns:
        [C, D] as the model leaves them.
    """
    learned = (source >= 0).unsqueeze(-1)
    rows = vectors[source.clamp(min=0)]
    handle = embedding.register_forward_hook(lambda module, given, out: torch.where(learned, rows, out))
    try:
        return encode(ids)
    finally:
        handle.remove()


def kdpl_loss(teacher: Tensor, student: Tensor) -> Tensor:  # [B, K] logits each -> scalar
    """½·KL(T‖S) + ½·KL(S‖T) of the softmaxes, batch mean."""
    p, q = torch.softmax(teacher, dim=1), torch.softmax(student, dim=1)
    return ((p * (p / q).log()).sum(1) + (q * (q / p).log()).sum(1)).mean() / 2


def learn(
    features: Callable[[Tensor], Tensor],  # [V, T] -> [C, D]
    vectors: Tensor,  # [V, T]
    batches: Sequence[tuple[Tensor, Callable[[Tensor], Tensor], float]],
    scale: float,
    *,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
) -> tuple[list[float], Tensor]:
    """Losses before each step of torch.optim.SGD, and the vectors after the last.

    Args:
        features: text features of the vectors. vectors: where they begin.
        batches: image rows [B, D], the loss of logits [B, C], and the rate of each step.
        scale: κ.
    """
    leaf = vectors.detach().clone().requires_grad_()
    optimizer = torch.optim.SGD([leaf], lr=1.0, momentum=momentum, weight_decay=weight_decay)
    losses = []
    for rows, loss_of, lr in batches:
        optimizer.param_groups[0]["lr"] = lr
        logits = scale * normalize(rows, dim=1) @ normalize(features(leaf), dim=1).T
        loss = loss_of(logits)
        (leaf.grad,) = torch.autograd.grad(loss, [leaf])
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses, leaf.detach()
