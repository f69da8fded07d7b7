"""What `tune` refuses: the error begins with the call that was made, and names its argument."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

import semobridge_ext as sb
from tests.support.images import command

NAN = float("nan")
X, Y = torch.eye(3), [0, 1, 2]
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "no trials": ({"n_trials": 0}, "n_trials must be a whole number from 1 up, got int 0"),
    "half a trial": ({"n_trials": 0.5}, "n_trials must be a whole number from 1 up, got float 0.5"),
    "no batch": ({"batch": 0}, "batch must be a whole number from 1 up, got int 0"),
    "another sampler": ({"sampler": "grid"}, "sampler must be 'optuna', 'random' or an Optuna sampler"),
    "a range of another name": ({"ranges": {"z": (0, 1)}}, "ranges must name s, alpha, .*, got z"),
    "a range backwards": (
        {"ranges": {"s": (2, 1)}},
        r"ranges must hold .* 0 <= low <= high, got s: \(2, 1\)",
    ),
    "a range of one number": ({"ranges": {"s": 3}}, "ranges must hold .* 0 <= low <= high, got s: 3"),
    "a range of texts": ({"ranges": {"s": ("a", "b")}}, "ranges must hold .* 0 <= low <= high, got s: "),
    "ranges that are none": ({"ranges": 3}, "ranges must be a dict by name, got int 3"),
    "a fixed one of another name": ({"fixed": {"z": 1}}, "fixed must name s, alpha, .*, got z"),
    "a fixed NaN": ({"fixed": {"s": NAN}}, "fixed must hold finite numbers, got s: nan"),
    "a fixed text": ({"fixed": {"s": "a"}}, "fixed must hold finite numbers, got s: 'a'"),
    "fixed ones that are none": ({"fixed": 3}, "fixed must be a dict by name, got int 3"),
}


def fitted(kind: type) -> Any:
    text = [torch.eye(3)] * (1 if kind is sb.SeMoBridgeClassifier else 2)
    steps = {} if kind is sb.SeMoBridgeClassifier else {"steps": 1}
    return kind("identity", *text, **steps).fit(X, Y)


@pytest.mark.parametrize("kind", [sb.SeMoBridgeClassifier, sb.SeMoBridgeT])
@pytest.mark.parametrize("case", CASES)
def test_the_call_and_its_argument_are_named(kind: type, case: str) -> None:
    given, told = CASES[case]
    clf = fitted(kind)
    before = clf.params_
    with pytest.raises((ValueError, TypeError), match=rf"^{kind.__name__}\.tune: {told}"):
        clf.tune(X, Y, **{"sampler": "random", "n_trials": 2, **given})
    assert clf.params_ == before


def test_a_library_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(
        ImportError, match=r"^SeMoBridgeClassifier\.tune: optuna must be installed for sampler"
    ):
        fitted(sb.SeMoBridgeClassifier).tune(X, Y, n_trials=2)


def test_the_command_names_its_option(monkeypatch: pytest.MonkeyPatch, tmp_path: Any, capsys: Any) -> None:
    """Before it reads or trains anything."""
    monkeypatch.setitem(sys.modules, "optuna", None)
    words = ["--sampler", "optuna", "--train", "none.npz", "--test", "none.npz", "--out", tmp_path / "out"]
    assert command("fewshot", *words) == 2
    assert "fewshot: optuna must be installed for --sampler optuna, got none" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
