"""Augmentation of drawings, on whole batches; its strength grows from 0 to 1 during training."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def uniform(n: int, low: float, high: float) -> torch.Tensor:
    """[n] uniform numbers in [low, high)."""
    return torch.rand(n) * (high - low) + low


def affine(ink: torch.Tensor, strength: float) -> torch.Tensor:
    """Shift, scale, turn and shear a little; no mirroring, since left and right arrows differ.

    ink [B, 3, H, W], 0 where the page is empty.
    """
    n = len(ink)
    scale = 1 + uniform(n, -1, 1) * (0.10 + 0.12 * strength)
    ratio = 1 + uniform(n, -1, 1) * 0.10 * strength
    angle = uniform(n, -1, 1) * 0.18 * strength
    shear = uniform(n, -1, 1) * 0.10 * strength
    shift = 2 * (torch.rand(n, 2) * 2 - 1) * (0.06 + 0.03 * strength)
    cos, sin = torch.cos(angle), torch.sin(angle)
    across = [cos / scale, (-sin + shear) / scale, shift[:, 0]]
    down = [sin / scale * ratio, cos / scale * ratio, shift[:, 1]]
    theta = torch.stack(across + down, 1).view(n, 2, 3)
    grid = F.affine_grid(theta, list(ink.shape), align_corners=False)
    return F.grid_sample(ink, grid, align_corners=False)


def restroke(ink: torch.Tensor, strength: float) -> torch.Tensor:
    """Make the strokes of some drawings bolder, of some thinner."""
    chosen = (torch.rand(len(ink)) < 0.4 * strength).nonzero()[:, 0]
    if not len(chosen):
        return ink
    some = ink[chosen]
    amount = uniform(len(chosen), -0.4, 0.9).view(-1, 1, 1, 1)
    bolder, thinner = F.max_pool2d(some, 3, 1, 1), -F.max_pool2d(-some, 3, 1, 1)
    towards = torch.where(amount > 0, bolder, thinner)
    ink[chosen] = torch.lerp(some, towards, amount.abs())
    return ink


def recolour(image: torch.Tensor, strength: float) -> torch.Tensor:
    """Give some of the black-and-white drawings a random ink and paper; coloured ones keep their meaning."""
    colourless = (image.amax(1) - image.amin(1)).amax((1, 2)) < 0.05
    chosen = (colourless & (torch.rand(len(image)) < 0.35 * strength)).nonzero()[:, 0]
    if not len(chosen):
        return image
    paper, ink = torch.rand(2, len(chosen), 3, 1, 1)
    # Push the two apart where they would be hard to tell from each other.
    close = ((paper - ink).abs().mean((1, 2, 3)) < 0.3).view(-1, 1, 1, 1)
    paper = torch.where(close, (ink + 0.5) % 1.0, paper)
    image[chosen] = ink + (paper - ink) * image[chosen]
    return image


def augment(images: torch.Tensor, strength: float) -> torch.Tensor:
    """uint8 [B, H, W, 3] to float32 [B, 3, H, W] in 0..1, altered at random."""
    ink = 1 - images.permute(0, 3, 1, 2).float() / 255
    return recolour(1 - restroke(affine(ink, strength), strength), strength)
