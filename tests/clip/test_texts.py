"""sb.encode_text: features on the prefix tree against each model's own forward pass in float64."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import semobridge_ext as sb
from semobridge_ext.cli.models import Encoder
from semobridge_ext.clip import text_projection, tree_tower
from tests.support.assertions import assert_row_relative, assert_same_bits
from tests.support.prompts import TEXTS, TOKENIZER
from tests.support.towers import TEXT_CONFIG, TEXT_MODELS, custom_text_model, exact_dtype, openai_model

F32, F64 = torch.float32, torch.float64
# SigLIP's rows see each other, and CoCa's class embedding is seen by none before it: no tree of prefixes.
CAUSAL = {name: make for name, make in TEXT_MODELS.items() if not name.startswith(("SigLIP", "CoCa"))}


def oracle(model: nn.Module, prompts: list[str] = TEXTS, dtype: torch.dtype = F64, **options) -> Tensor:
    return sb.reference.encode_text(model, prompts, tokenizer=TOKENIZER, dtype=dtype, **options).double()


# -- features --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["packed", "plain", "eager"])
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("name", CAUSAL)
def test_features_are_the_models_own(name: str, dtype: torch.dtype, way: str, tree_only, monkeypatch):
    model = CAUSAL[name]().to(min(dtype, exact_dtype(name), key=lambda d: d.itemsize))
    if way == "packed":
        monkeypatch.setattr(tree_tower, "_PACKED_ROWS", 1)
    want = oracle(model, dtype=exact_dtype(name))
    with sb.backend("eager" if way == "eager" else "auto"):
        for batch_rows in (1, 20, 10**6):
            got = sb.encode_text(model, TEXTS, tokenizer=TOKENIZER, batch_rows=batch_rows)
            assert got.dtype is next(model.parameters()).dtype and not got.requires_grad
            assert_row_relative(got, want, "tower", context=f"{name} {batch_rows}")
            assert_same_bits(got[3], got[0], "equal texts")


@pytest.mark.parametrize("name", [n for n in CAUSAL if "projection" not in n and "linear" not in n])
def test_before_the_projection(name: str, tree_only):
    model = CAUSAL[name]()
    got = sb.encode_text(model, TEXTS, tokenizer=TOKENIZER, project=False)
    projected = got.double() @ text_projection(model).double()
    assert_row_relative(projected, oracle(model, dtype=exact_dtype(name)), "tower", dtype=F32, context=name)


@pytest.mark.parametrize("kind", ["eos", "first", "last"])
def test_every_pooling(kind: str, tree_only):
    model = custom_text_model({**TEXT_CONFIG, "pool_type": kind, "eos_id": 49407})
    got = sb.encode_text(model, TEXTS, tokenizer=TOKENIZER)
    assert_row_relative(got, oracle(model), "tower", context=kind)


def test_half_weights(tree_only):
    """Computed in float32 on a CPU: as near to the exact features as the dtype can be."""
    model = openai_model(half=True)
    got = sb.encode_text(model, TEXTS, tokenizer=TOKENIZER)
    assert got.dtype is torch.float16
    assert_row_relative(got, oracle(model, dtype=F32), "features")


def test_autocast_gives_the_dtype_alone(tree_only):
    model = TEXT_MODELS["open_clip"]()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = sb.encode_text(model, TEXTS, tokenizer=TOKENIZER)
    assert got.dtype is torch.bfloat16
    plain = sb.encode_text(model, TEXTS, tokenizer=TOKENIZER)
    assert_same_bits(got, plain.to(torch.bfloat16))


def test_autocast_does_not_hide_the_tree(tree_only):
    """Behind a norm its rows are wide and hold rounded values: no sign of another tower."""
    model, _, tokenizer = sb.load_picto_clip()
    plain = sb.encode_text(model, TEXTS, tokenizer=tokenizer, project=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = sb.encode_text(model, TEXTS, tokenizer=tokenizer, project=False)
    assert got.dtype is torch.float32
    assert_same_bits(got, plain)


def test_the_embedded_model_and_its_default_size(tree_only):
    model, _, tokenizer = sb.load_picto_clip()
    prompts = [
        f"{kind} of a {name}"
        for kind in ("an icon", "a photo")
        for name in sb.load_picto("icons").class_names
    ]
    got = sb.encode_text(model, prompts, tokenizer=tokenizer)
    want = sb.reference.encode_text(model, prompts, tokenizer=tokenizer)
    assert_row_relative(got, want, "tower")


# -- the work --------------------------------------------------------------------------------------------


def test_every_beginning_is_computed_once(tree_only, monkeypatch):
    model, rows = TEXT_MODELS["open_clip"](), []
    run = tree_tower.TreeTower.end_rows
    monkeypatch.setattr(
        tree_tower.TreeTower, "end_rows", lambda self, g: (rows.append(len(g.tokens)), run(self, g))[1]
    )
    sb.encode_text(model, TEXTS, tokenizer=TOKENIZER)
    ids = TOKENIZER(TEXTS)
    prompts = [row[: int(row.argmax()) + 1].tolist() for row in ids]
    longest = max(map(len, prompts))
    assert rows == [longest, len({tuple(p[: i + 1]) for p in prompts for i in range(len(p))})]


def test_texts_are_tokenised_once():
    seen: list[str] = []

    def tokenizer(batch: list[str]) -> Tensor:
        seen.extend(batch)
        return TOKENIZER(batch)

    sb.encode_text(TEXT_MODELS["open_clip"](), TEXTS * 3, tokenizer=tokenizer)
    assert len(seen) == len(set(TEXTS)) + 1, "each once, and one for the comparison"


@functools.cache
def embedded() -> tuple[nn.Module, Any]:
    model, _, tokenizer = sb.load_picto_clip()
    return model, tokenizer


@settings(max_examples=5)
@given(st.permutations(range(len(TEXTS))))
def test_order_is_kept(order: list[int]):
    """The tree is sorted: the order of the texts changes no bit."""
    model, tokenizer = embedded()
    whole = sb.encode_text(model, TEXTS, tokenizer=tokenizer)
    assert_same_bits(sb.encode_text(model, [TEXTS[i] for i in order], tokenizer=tokenizer), whole[order])


@pytest.mark.parametrize("way", ["packed", "plain", "eager"])
def test_nan_stays_with_its_text(way: str, monkeypatch):
    """Also where the text stands first, and is the one that is compared."""
    model = TEXT_MODELS["open_clip"]()
    if way == "packed":
        monkeypatch.setattr(tree_tower, "_PACKED_ROWS", 1)
    for text, word in ((1, "dog"), (4, "sleeps")):
        spoilt = TEXT_MODELS["open_clip"]()
        (token,) = TOKENIZER.encode(word)
        with torch.no_grad():
            spoilt.token_embedding.weight[token] = torch.nan
        with sb.backend("eager" if way == "eager" else "auto"):
            got = sb.encode_text(spoilt, TEXTS, tokenizer=TOKENIZER)
        touched = torch.tensor([word in prompt for prompt in TEXTS])
        assert got[touched].isnan().all() and touched[text]
        assert_row_relative(got[~touched], oracle(model)[~touched], "tower")


def test_no_gradient_and_the_mode_is_left():
    model = TEXT_MODELS["open_clip"]().train()
    got = sb.encode_text(model, TEXTS, tokenizer=TOKENIZER)
    assert not got.requires_grad and model.training and all(p.grad is None for p in model.parameters())


def test_interrupted(monkeypatch):
    def stop(self, group):
        raise KeyboardInterrupt

    monkeypatch.setattr(tree_tower.TreeTower, "end_rows", stop)
    model = TEXT_MODELS["open_clip"]().train()
    with pytest.raises(KeyboardInterrupt):
        sb.encode_text(model, TEXTS, tokenizer=TOKENIZER)
    assert model.training, "left as it was found"


def test_progress(capsys):
    model, _, tokenizer = sb.load_picto_clip()
    sb.encode_text(model, TEXTS, tokenizer=tokenizer, progress=True)
    assert "encode_text: 100%" in capsys.readouterr().err
    sb.encode_text(model, TEXTS, tokenizer=tokenizer)
    assert capsys.readouterr().err == ""


def test_class_texts_and_the_command_line_run_on_the_tree(tree_only):
    model, _, tokenizer = sb.load_picto_clip()
    text = sb.class_text_features(model, ["star", "house"], ("{}", "an icon of a {}"), tokenizer=tokenizer)
    assert text.projected.isfinite().all()
    found = Encoder(model, None, tokenizer).texts(["a star", "a house"])
    want = sb.reference.encode_text(model, ["a star", "a house"], tokenizer=tokenizer)
    assert_row_relative(found, want, "tower")


# -- refusals --------------------------------------------------------------------------------------------


def test_refusals():
    model, _, tokenizer = sb.load_picto_clip()
    for error, arguments, words in (
        (ValueError, ([],), "texts must not be empty, got none; pass"),
        (TypeError, (b"a cat",), "texts must be strings, got bytes b'a cat'; pass a list of them"),
        (TypeError, (["a cat", 3],), "texts must hold strings alone, got int 3; clip.encode_text takes"),
    ):
        with pytest.raises(error, match=f"encode_text: {words}"):
            sb.encode_text(model, *arguments, tokenizer=tokenizer)
    for error, rows in ((ValueError, 0), (ValueError, -5), (TypeError, 2.5), (TypeError, True)):
        with pytest.raises(error, match="encode_text: batch_rows must be"):
            sb.encode_text(model, ["a cat"], tokenizer=tokenizer, batch_rows=rows)
    with pytest.raises(TypeError, match="encode_text: model must be"):
        sb.encode_text(nn.Linear(2, 2), ["a cat"], tokenizer=tokenizer)
    with pytest.raises(ValueError, match="encode_text: tokenizer must be given for a model with 100 words"):
        sb.encode_text(custom_text_model({**TEXT_CONFIG, "vocab_size": 100}), ["a cat"])
    with pytest.raises(
        TypeError, match=r"encode_text: model must have a linear text projection, got .* one;"
    ):
        sb.encode_text(TEXT_MODELS["CustomTextCLIP no projection"](), ["a cat"], project=False)
