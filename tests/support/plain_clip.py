"""A CLIP of plain torch modules, its parts named as open_clip names them, and a tokenizer of whole words.

For machines without open_clip: the tests and the benches of a GPU build their towers from it.
"""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, quick_gelu: bool) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        gelu = QuickGELU() if quick_gelu else nn.GELU()
        layers = {"c_fc": nn.Linear(width, 4 * width), "gelu": gelu, "c_proj": nn.Linear(4 * width, width)}
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:  # [B, L, T]
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, attn_mask=mask, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class _Transformer(nn.Module):
    def __init__(self, width: int, heads: int, layers: int, quick_gelu: bool) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(_Block(width, heads, quick_gelu) for _ in range(layers))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class _Vision(nn.Module):
    def __init__(
        self, image_size: int, patch: int, width: int, heads: int, layers: int, features: int, quick: bool
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.conv1 = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width) * 0.02)
        positions = (image_size // patch) ** 2 + 1
        self.positional_embedding = nn.Parameter(torch.randn(positions, width) * 0.02)
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = _Transformer(width, heads, layers, quick)
        self.proj = nn.Parameter(torch.randn(width, features) * width**-0.5)

    def forward(self, images: Tensor) -> Tensor:  # [B, 3, H, W] -> [B, D]
        x = self.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat((self.class_embedding.expand(len(x), 1, -1), x), dim=1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj


class PlainCLIP(nn.Module):
    """Text and vision tower, random weights drawn from torch's generator.

    Args:
        features: D.
        text: width, heads, layers. context_length, words: of its input.
        vision: image size, patch, width, heads, layers; None: no vision tower.
        quick_gelu: OpenAI's activation.
        bidirectional: SigLIP's text tower: no mask, the last position pooled, a projection with a bias.
    """

    def __init__(
        self,
        features: int,
        text: tuple[int, int, int],
        vision: tuple[int, int, int, int, int] | None = None,
        *,
        context_length: int = 77,
        words: int = 512,
        quick_gelu: bool = False,
        bidirectional: bool = False,
    ) -> None:
        super().__init__()
        width, heads, layers = text
        self.context_length, self.text_pool_type = context_length, "last" if bidirectional else "argmax"
        self.token_embedding = nn.Embedding(words, width)
        self.positional_embedding = nn.Parameter(torch.randn(context_length, width) * 0.02)
        self.transformer = _Transformer(width, heads, layers, quick_gelu)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = (
            nn.Linear(width, features)
            if bidirectional
            else nn.Parameter(torch.randn(width, features) * width**-0.5)
        )
        mask = torch.full((context_length, context_length), float("-inf")).triu(1)
        self.register_buffer("attn_mask", None if bidirectional else mask, persistent=False)
        self.logit_scale = nn.Parameter(torch.tensor(4.6))
        self.visual = None if vision is None else _Vision(*vision, features, quick_gelu)

    def encode_text(self, ids: Tensor) -> Tensor:  # [B, L] -> [B, D]
        x = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]
        x = self.ln_final(self.transformer(x, self.attn_mask))
        if self.text_pool_type == "last":
            return self.text_projection(x[:, -1])
        return x[torch.arange(len(x), device=x.device), ids.argmax(dim=-1)] @ self.text_projection

    def encode_image(self, images: Tensor) -> Tensor:  # [B, 3, H, W] -> [B, D]
        assert self.visual is not None
        return self.visual(images)


class WordTokenizer:
    """A start token, one id a word, an end token that is the largest id, zeros: CLIP's form."""

    def __init__(self, words: int = 512, context_length: int = 77) -> None:
        self.words, self.context_length = words, context_length

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> Tensor:  # [B, L]
        texts = [texts] if isinstance(texts, str) else texts
        out = torch.zeros(len(texts), context_length or self.context_length, dtype=torch.int64)
        for row, text in zip(out, texts, strict=True):
            ids = [1 + zlib.crc32(word.encode()) % (self.words - 3) for word in text.split()]
            ids = [self.words - 2, *ids[: len(row) - 2], self.words - 1]
            row[: len(ids)] = torch.tensor(ids)
        return out
