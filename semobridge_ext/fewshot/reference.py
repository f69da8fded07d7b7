"""References of the classifiers: plain programs, dense; the cache's is _ops/support_logits/reference.py."""

from __future__ import annotations

import torch
from torch import Tensor


def ape_criterion(
    text: Tensor,  # [C, D] unit rows
    shots: Tensor,  # [C, K, D] unit rows
    *,
    w0: float = 0.7,
    w1: float = 0.3,
) -> Tensor:  # [D], higher is better
    """APE's score of a channel, pair by pair: ``−w0·(mean inter-class product) + w1·var(text)``."""
    rows = torch.cat([text.unsqueeze(1), shots], dim=1)
    classes, samples = rows.shape[:2]
    total, count = torch.zeros_like(rows[0, 0]), 0
    for i in range(classes):
        for j in range(classes):
            for m in range(samples if i != j else 0):
                total += (rows[i, m] * rows[j]).sum(dim=0)
                count += samples
    return -w0 * total / count + w1 * text.var(dim=0)


def gda_weights(
    shots: Tensor,  # [M, D] unit rows
    labels: Tensor,  # [M] int64 in 0..C-1, every class at least once
    classes: int,
) -> tuple[Tensor, Tensor]:  # W [D, C], b [C]
    """GDA (arXiv 2402.04087) with the pseudo-inverse and the covariance that it is published with."""
    means = torch.stack([shots[labels == c].mean(dim=0) for c in range(classes)])
    rest = torch.cat([shots[labels == c] - means[c] for c in range(classes)])
    rows, width = rest.shape
    covariance = rest.T @ rest / (rows - 1)
    eye = torch.eye(width, dtype=shots.dtype)
    precision = width * torch.linalg.pinv((rows - 1) * covariance + covariance.trace() * eye)
    prior = torch.full((classes,), 1 / classes, dtype=shots.dtype).log()
    return precision @ means.T, prior - 0.5 * torch.stack([m @ precision @ m for m in means])


def proker_duals(
    shots: Tensor,  # [M, D] unit rows
    labels: Tensor,  # [M] int64
    text: Tensor,  # [C, D] unit rows
    beta: float,
    ridge: float,
) -> Tensor:  # [M, C]
    """A = (K_SS/λ + I)⁻¹(Y − S·tᵀ) of ProKeR (arXiv 2501.11175), one dense solve."""
    kernel = torch.exp(-beta * (1 - shots @ shots.T))
    wanted = torch.nn.functional.one_hot(labels, len(text)).to(shots.dtype)
    eye = torch.eye(len(shots), dtype=shots.dtype)
    return torch.linalg.solve(kernel / ridge + eye, wanted - shots @ text.T)


def linear_probe(
    shots: Tensor,  # [M, D] unit rows
    labels: Tensor,  # [M] int64
    text: Tensor,  # [C, D] unit rows
    *,
    steps: int = 300,
    momentum: float = 0.9,
    alpha_every: int = 10,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # w [C, D], b [C], α [C], losses [steps]
    """LP++ (arXiv 2404.02285) by autograd and torch.optim.SGD, α with a gradient of its own step."""
    cosines, rows = shots @ text.T, len(shots)
    own = [cosines[labels == c, c].mean() for c in range(len(text))]
    w = torch.stack([shots[labels == c].sum(dim=0) for c in range(len(text))]).requires_grad_()
    b = torch.zeros(len(text), dtype=shots.dtype, requires_grad=True)
    alpha = (250 * torch.stack(own).mean() * torch.ones(len(text), dtype=shots.dtype)).requires_grad_()
    rate = 4 * rows / torch.linalg.matrix_norm(shots, 2) ** 2
    alpha_rate = rows / (4 * (cosines**2).sum(dim=0).max())
    optimizer, losses = torch.optim.SGD([w, b], float(rate), momentum=momentum), []
    for step in range(steps):
        loss = torch.nn.functional.cross_entropy(shots @ w.T + b + alpha * cosines, labels)
        optimizer.zero_grad()
        alpha.grad = None
        loss.backward()
        optimizer.step()
        if (step + 1) % alpha_every == 0:
            assert alpha.grad is not None
            alpha.data -= alpha_rate * alpha.grad
        losses.append(loss.detach())
    return w.detach(), b.detach(), alpha.detach(), torch.tensor(losses, dtype=shots.dtype)


def trained_projection(
    rows: Tensor,  # [M, V] before the projection
    labels: Tensor,  # [M] int64
    start: Tensor,  # [V, D]
    text: Tensor,  # [C, D] unit rows
    *,
    penalty: float,
    lr: float,
    steps: int = 300,
    logit_scale: float = 100.0,
) -> tuple[Tensor, Tensor]:  # [V, D], losses [steps]
    """ProLIP (arXiv 2410.05270) by autograd, torch.optim.Adam and its cosine schedule."""
    unit = torch.nn.functional.normalize
    projection = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([projection], lr=lr, eps=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses = []
    for _ in range(steps):
        logits = logit_scale * unit(rows @ projection, dim=1) @ text.T
        loss = torch.nn.functional.cross_entropy(logits, labels)
        loss = loss + penalty * ((projection - start) ** 2).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
    return projection.detach(), torch.stack(losses)
