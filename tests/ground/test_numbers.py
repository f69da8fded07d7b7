"""Settings that are NumPy's numbers, seeds of any size, names that are read once."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import semobridge_ext as sb
from semobridge_ext import _numbers, incremental
from semobridge_ext.discovery import cache_block_inputs
from tests.support.assertions import assert_same_bits
from tests.support.learners import (
    FINDINGS,
    LABELS,
    ROWS,
    WORDS,
    coop,
    filtered,
    gcd,
    kdpl,
    picto,
    prolip,
    tip,
    trained,
    tuned,
)
from tests.support.prompt_learning import tiny_model
from tests.support.prompts import TOKENIZER

# name: (fit, settings, what of the fit must be the same bits, what load takes besides the path)
NUMPY: dict[str, tuple[Callable[..., Any], dict[str, Any], str, dict[str, Any]]] = {
    "TipAdapterF": (
        tip, {"epochs": 3, "batch_size": 4, "lr": 0.5, "seed": 1, "checkpoint_every": 1}, "keys_", {},
    ),
    "SeMoBridgeT": (
        trained, {"steps": 4, "warmup": 1, "lr": 0.125, "losses": {"image": 0.5}, "checkpoint_every": 2},
        "losses_", {},
    ),
    "ProLIP": (prolip, {"steps": 3, "lr": 0.5, "penalty": 0.25}, "projection_", {}),
    "SpectralGCD": (
        gcd, {"num_classes": 5, "epochs": 3, "batch_size": 4, "lr": 0.5, "seed": 2, "warmup": 3}, "losses_",
        {},
    ),
    "SpectralFilter": (filtered, {"energy": 0.5, "share": 0.75, "temperature": 0.5}, "scores_", {}),
    "RETune": (
        tuned, {"epochs": 3, "batch_size": 4, "width": 5, "lr": 0.5, "seed": 3, "adaptor": "bottleneck"},
        "losses_", {},
    ),
    "CoOp": (
        coop, {"epochs": 3, "batch_size": 2, "lr": 0.5, "seed": 4, "logit_scale": 8.0, "batch_rows": 9},
        "context_", {"model": tiny_model(), "tokenizer": TOKENIZER},
    ),
    "KDPL": (
        kdpl, {"epochs": 3, "batch_size": 2, "lr": 0.5, "seed": 5, "momentum": 0.5}, "context_",
        {"model": tiny_model(), "tokenizer": TOKENIZER},
    ),
}  # fmt: skip


def numpys(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: numpys(part) for name, part in value.items()}
    return {int: np.int64, float: np.float32}.get(type(value), lambda v: v)(value)


@pytest.mark.parametrize("name", NUMPY)
def test_numpys_numbers_train_and_are_kept_as_pythons(name: str, tmp_path: Path) -> None:
    make, settings, result, given = NUMPY[name]
    want = make(**settings)
    found = make(tmp_path / "run", **{key: numpys(value) for key, value in settings.items()})
    assert_same_bits(getattr(found, result), getattr(want, result))
    found.save(tmp_path / "file")
    again = type(found).load(tmp_path / "file", **given)
    for key, value in settings.items():
        if name != "SeMoBridgeT":  # whose file holds the bridge, not how it was trained
            kept = again.get_params()[key]
            assert kept == value and not isinstance(kept, np.generic), key
    if (tmp_path / "run").exists():  # a finished run, which the same settings in Python's numbers go on from
        assert_same_bits(getattr(make(tmp_path / "run", **settings), result), getattr(want, result))


def test_cuts_of_numpy_are_kept_as_pythons(tmp_path: Path) -> None:
    iso = sb.IsoCLIP(ROWS, ROWS[:9], k_top=np.int64(1), k_bottom=np.int32(2))
    iso.save(tmp_path / "file")
    assert sb.IsoCLIP.load(tmp_path / "file").get_params()["k_bottom"] == 2


def test_counts_of_numpy_are_counts() -> None:
    model = picto()
    pixels = torch.zeros(3, 3, 48, 48)
    want = cache_block_inputs(model, pixels)
    assert_same_bits(cache_block_inputs(model, pixels.numpy(), batch_size=np.int64(2)), want)
    for draw in (incremental.class_incremental, incremental.label_incremental, incremental.data_incremental):
        for found, task in zip(
            draw(FINDINGS, np.int64(2), seed=np.int64(1)), draw(FINDINGS, 2, seed=1), strict=True
        ):
            assert found.rows.tolist() == task.rows.tolist()


# -- seeds ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [20240615, 2**64 + 1])
@pytest.mark.parametrize("make", [tuned, coop, kdpl, gcd, tip])
def test_a_seed_may_be_any_whole_number(make: Callable[..., Any], seed: int) -> None:
    given = {"batch_size": 4, "adaptor": "bottleneck"} if make is tuned else {}
    assert math.isfinite(float(make(seed=seed, **given).losses_[-1]))


def test_small_seeds_are_mixed_as_they_always_were() -> None:
    """A resumed run repeats the draws of the version that began it."""
    assert _numbers.seed_of(-5) == -5 and _numbers.seed_of(7, 3) == 7 * 1_000_003 + 3
    assert _numbers.seed_of(7, 3, 2) == (7 * 1_000_003 + 3) * 1_000_003 + 2
    assert 0 <= _numbers.seed_of(20240615, 4, 5) < 2**64
    assert _numbers.seed_of(20240615, 4, 5) != _numbers.seed_of(20240615, 4, 6)


# -- names ---------------------------------------------------------------------------------------------


def test_names_from_a_generator_are_read_once() -> None:
    want = kdpl()
    found = kdpl(class_names=(name for name in WORDS))
    assert_same_bits(found.context_, want.context_)


def test_sets_serve_where_an_order_counts_for_nothing() -> None:
    want = sb.gcd_accuracy(LABELS, LABELS, [0])
    assert sb.gcd_accuracy(LABELS, LABELS, {0}) == want == sb.gcd_accuracy(LABELS, LABELS, frozenset([0]))
    one = sb.NearestClassMean().partial_fit(ROWS, LABELS, classes={0, 1, 2})
    assert one.predict(ROWS).tolist() == sb.NearestClassMean().fit(ROWS, LABELS).predict(ROWS).tolist()
