"""sb.encode_text where the model's own pass must run: it does, is said once, and gives its own features."""

from __future__ import annotations

import logging
import re

import pytest
import torch
from torch import Tensor, nn

import semobridge_ext as sb
from semobridge_ext.clip import texts
from tests.support.assertions import assert_row_relative, assert_same_bits
from tests.support.prompts import LONG, TEXTS, TOKENIZER
from tests.support.towers import TEXT_CONFIG, TEXT_MODELS, custom_text_model


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    monkeypatch.setattr(texts, "_said", set())


class Louder(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 1.1 * super().forward(x)


def louder(model: nn.Module) -> None:
    encode = model.encode_text
    model.encode_text = lambda ids: 1.1 * encode(ids)


OTHERS = {
    "a hook on a block": lambda m: m.transformer.resblocks[1].register_forward_hook(lambda _, i, o: 1.1 * o),
    "a hook that looks on": lambda m: m.ln_final.register_forward_hook(lambda _, i, o: None),
    "an adapter": lambda m: setattr(m.transformer.resblocks[0].mlp.c_fc, "__class__", Louder),
    "another encode_text": louder,
    "another embedding": lambda m: setattr(m, "token_embedding", nn.Sequential(m.token_embedding, nn.Tanh())),
    "another mask": lambda m: m.attn_mask.fill_(0.0),
}


@pytest.mark.parametrize("other", OTHERS)
def test_what_the_weights_do_not_tell(other: str, caplog):
    model = TEXT_MODELS["open_clip"]()
    OTHERS[other](model)
    with torch.no_grad():
        want = model.encode_text(TOKENIZER(TEXTS))
    with caplog.at_level(logging.WARNING, "semobridge_ext"):
        for _ in range(2):
            got = sb.encode_text(model, TEXTS, tokenizer=TOKENIZER)
            assert_row_relative(got, want.double(), "features", context=other)
    (record,) = caplog.records  # said once
    assert record.getMessage().startswith("encode_text: every position of every text is computed")


@pytest.mark.parametrize(
    "text,told",
    [({"embed_cls": True}, r"class embedding \(CoCa\)"), ({"no_causal_mask": True}, "sees both ways")],
    ids=["class token", "bidirectional"],
)
def test_towers_that_are_no_tree(text: dict, told: str, caplog):
    model = custom_text_model({**TEXT_CONFIG, "pool_type": "last", **text})
    with torch.no_grad():
        want = model.encode_text(TOKENIZER(TEXTS))
    with caplog.at_level(logging.WARNING, "semobridge_ext"):
        for rows in (1, 4096):
            got = sb.encode_text(model, TEXTS, tokenizer=TOKENIZER, batch_rows=rows)
            assert_row_relative(got, want.double(), "features")
    assert len(caplog.records) == 1 and re.search(told, caplog.text)


class Bare(nn.Module):
    """A model of no known make: it encodes, and tells nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Parameter(torch.randn(49408, 8))

    def encode_text(self, ids: Tensor) -> Tensor:
        return self.words[ids].sum(dim=1)


def test_a_model_that_tells_nothing():
    model = Bare()
    got = sb.encode_text(model, TEXTS, tokenizer=TOKENIZER)
    assert_row_relative(got, model.encode_text(TOKENIZER(TEXTS)).double().detach(), "features")


@pytest.mark.parametrize("count", [1, 3])
def test_one_text_is_the_models_own(count: int, caplog):
    """Nothing is shared, so nothing is gained, and nothing is said."""
    model = TEXT_MODELS["open_clip"]()
    with torch.no_grad():
        want = model.encode_text(TOKENIZER([LONG]))
    got = sb.encode_text(model, [LONG] * count, tokenizer=TOKENIZER)
    assert_same_bits(got, want.expand(count, -1).contiguous())
    assert not caplog.records


# -- Hugging Face's tokenizers ---------------------------------------------------------------------------


class HuggingFaceTokenizer:
    """Pads on demand, on either side, and says where."""

    convert_tokens_to_ids = None

    def __init__(self, side: str = "right", **more: Tensor) -> None:
        self.side, self.more = side, more

    def __call__(self, batch: list[str], **_) -> dict[str, Tensor]:
        rows = [row[: int(row.argmax()) + 1] for row in TOKENIZER(batch)]
        longest = max(len(row) for row in rows)
        ids, mask = torch.full((2, len(rows), longest), 0).unbind()
        for i, row in enumerate(rows):
            at = slice(len(row)) if self.side == "right" else slice(longest - len(row), None)
            ids[i, at], mask[i, at] = row, 1
        return {"input_ids": ids, "attention_mask": mask, **self.more}


@pytest.mark.parametrize("name", ["Hugging Face", "Hugging Face old eos"])
def test_padding_behind_the_end(name: str, tree_only):
    model, tokenizer = TEXT_MODELS[name](), HuggingFaceTokenizer()
    want = sb.reference.encode_text(model, TEXTS, tokenizer=tokenizer)
    got = sb.encode_text(model, TEXTS, tokenizer=tokenizer)
    assert_row_relative(got, want, "tower")


@pytest.mark.parametrize("kind", ["padding is masked before the end", "position_ids"])
def test_masks_and_inputs_that_a_tree_does_not_see(kind: str, caplog):
    model = TEXT_MODELS["Hugging Face"]()
    prompts = [LONG, "a photo of a cat"]  # the first is compared, and has no padding
    tokenizer = HuggingFaceTokenizer("left")
    if kind == "position_ids":
        longest = len(TOKENIZER([LONG])[0])
        tokenizer = HuggingFaceTokenizer(position_ids=torch.arange(longest).expand(2, longest).flip(1))
    want = sb.reference.encode_text(model, prompts, tokenizer=tokenizer, dtype=torch.float32)
    with caplog.at_level(logging.WARNING, "semobridge_ext"):
        got = sb.encode_text(model, prompts, tokenizer=tokenizer)
    assert_row_relative(got, want.double(), "features")
    assert len(caplog.records) == 1 and kind in caplog.text
