"""The tower of learned rows: features and gradients are those of the models' own forward passes."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import semobridge_ext as sb
from semobridge_ext.clip.families import adapter_of
from semobridge_ext.prompts.prompt_features import PromptEncoder
from semobridge_ext.prompts.prompt_words import POSITIONS
from semobridge_ext.prompts.reference import prompt_features
from tests.support import towers
from tests.support.assertions import assert_figures
from tests.support.prompt_learning import F64, NAMES, tiny_model
from tests.support.prompts import TOKENIZER

MODELS = {
    "open_clip": lambda: towers.open_clip_model(),
    "open_clip, QuickGELU": lambda: towers.open_clip_model(quick_gelu=True),
    "Hugging Face": towers.hugging_face_model,
}


@cache
def made(kind: str, dtype: torch.dtype) -> Any:
    return MODELS[kind]().to(dtype).requires_grad_(False)


def embedding_of(model: Any) -> nn.Module:
    text = getattr(model, "text_model", None)
    return model.token_embedding if text is None else text.embeddings.token_embedding


def layout(position: str, specific: bool, n: int) -> tuple[Tensor, Tensor]:
    """Ids [C, 16] and sources, put together from the tokenizer's own ids of the names."""
    ids, source = torch.zeros(len(NAMES), 16, dtype=torch.int64), torch.full((len(NAMES), 16), -1)
    for c, name in enumerate(NAMES):
        start, *tokens, stop, end = [int(i) for i in TOKENIZER([f"{name}."])[0] if i]
        own = [("v", (c if specific else 0) * n + j) for j in range(n)]
        cut = {"end": n, "middle": n // 2, "front": 0}[position]
        row = [start, *own[:cut], *tokens, *own[cut:], stop, end]
        for i, item in enumerate(row):
            if isinstance(item, tuple):
                ids[c, i], source[c, i] = tokens[0], item[1]
            else:
                ids[c, i] = item
    return ids, source


def both(
    model: Any, position: str, specific: bool, n: int = 3, batch_rows: int | None = None
) -> list[tuple[Tensor, Tensor]]:
    """Features and gradients, ours and the oracle's."""
    encoder = PromptEncoder("test", model, TOKENIZER)
    g = torch.Generator().manual_seed(5)
    count = n * (len(NAMES) if specific else 1)
    vectors = torch.randn(count, towers.TEXT, generator=g, dtype=F64).to(encoder.dtype)
    grad = torch.randn(len(NAMES), encoder.features, generator=g, dtype=F64).to(encoder.dtype)
    words = encoder.words(NAMES)
    prompts = encoder.prompts(*encoder.ids(NAMES, words, n, position, specific), batch_rows)
    with torch.no_grad():
        ours = prompts.forward(vectors)
        ours_grad = prompts.backward(grad, vectors)
    leaf = vectors.clone().requires_grad_()
    adapter = adapter_of("test", model)
    ids, source = layout(position, specific, n)
    theirs = prompt_features(adapter.encode_text, embedding_of(model), ids, source, leaf)
    (theirs_grad,) = torch.autograd.grad(theirs, leaf, grad)
    return [(ours, theirs.detach()), (ours_grad, theirs_grad)]


@pytest.mark.parametrize("specific", [False, True], ids=["shared", "specific"])
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("kind", MODELS)
def test_features_and_gradient_are_the_models_own(kind: str, position: str, specific: bool):
    for dtype in (F64, torch.float32):
        for got, want in both(made(kind, dtype), position, specific):
            assert_figures(got, want, "prompt_tower", dtype=dtype)


def test_openai_clip():
    """It norms its rows in float32, whatever they are."""
    for got, want in both(towers.openai_model().requires_grad_(False), "end", False):
        assert_figures(got, want, "prompt_tower", dtype=torch.float32)


@pytest.mark.parametrize("batch_rows", [1, 7, 20])
def test_parts_change_nothing_but_rounding(batch_rows: int):
    for got, want in both(made("open_clip", F64), "end", False, batch_rows=batch_rows):
        assert_figures(got, want, "prompt_tower")


def test_eager_on_the_same_rows():
    """What runs on a GPU: plain PyTorch for every part."""
    with sb.backend("eager"):
        for got, want in both(made("open_clip", F64), "middle", False):
            assert_figures(got, want, "prompt_tower")


def test_a_shared_context_runs_once():
    """Start and context are one trunk; names share the rows of their common beginnings."""
    encoder = PromptEncoder("test", made("open_clip", torch.float32), TOKENIZER)
    words = encoder.words(NAMES)
    shared = encoder.prompts(*encoder.ids(NAMES, words, 4, "end", False), None).rows
    tokens = [len(name.tokens) + len(name.tail) for name in words.names]
    assert tokens == [3, 4, 5, 5, 4, 7]
    assert shared == 1 + 4 + sum(tokens) - 2  # "big red" of bus and bird
    own = encoder.prompts(*encoder.ids(NAMES, words, 4, "end", True), None).rows
    assert own == 1 + 4 * len(NAMES) + sum(tokens)


def test_equal_prompts_share_a_gradient():
    """Two classes of one prompt: each row's gradient counts."""
    encoder = PromptEncoder("test", made("open_clip", F64), TOKENIZER)
    twice = ["cat", "Cat"]  # one to the tokenizer
    ids, ends = encoder.ids(twice, encoder.words(twice), 2, "end", False)
    assert torch.equal(ids[0], ids[1])
    prompts = encoder.prompts(ids, ends, None)
    vectors = torch.randn(2, towers.TEXT, dtype=F64)
    grad = torch.randn(2, towers.D, dtype=F64)
    prompts.forward(vectors)
    got = prompts.backward(grad, vectors)
    single = encoder.prompts(ids[:1], ends[:1], None)
    single.forward(vectors)
    assert_figures(got, single.backward(grad.sum(0, keepdim=True), vectors), "prompt_tower")


def test_a_tower_that_sees_both_ways_is_refused():
    text = {**towers.TEXT_CONFIG, "no_causal_mask": True}
    with pytest.raises(NotImplementedError, match=r"CoOp\.fit: model must .* sees both ways"):
        sb.CoOp(towers.open_clip_model(text=text), NAMES).fit(torch.randn(2, towers.D), NAMES[:2])


def test_a_tower_that_computes_more_than_its_weights_is_refused(monkeypatch):
    model = tiny_model()
    own = model.encode_text
    monkeypatch.setattr(model, "encode_text", lambda ids, **given: own(ids, **given) + 1)
    with pytest.raises(NotImplementedError, match=r"CoOp\.fit: model must .* differ from what its weights"):
        sb.CoOp(model, NAMES, n_ctx=2).fit(torch.randn(2, towers.D), NAMES[:2])


def test_a_tokenizer_without_a_start_is_refused():
    def bare(texts: list[str]) -> Tensor:
        rows = [[int(i) for i in TOKENIZER([t])[0] if i][1:] for t in texts]
        return torch.tensor([row + [0] * (16 - len(row)) for row in rows])

    with pytest.raises(NotImplementedError, match=r"CoOp\.fit: tokenizer must put a token before"):
        sb.CoOp(tiny_model(), NAMES, n_ctx=2, tokenizer=bare).fit(torch.randn(2, towers.D), NAMES[:2])
