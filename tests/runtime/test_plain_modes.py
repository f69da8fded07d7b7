"""What is trained, inverted or measured depends on the arguments alone, in every mode of torch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import semobridge_ext as sb
from semobridge_ext.runtime.plain_modes import plain_modes
from tests.support.assertions import assert_same_bits

CLASSES, EACH = 4, 5


def _drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


TEXT = torch.nn.functional.normalize(_drawn(CLASSES, 192), dim=1)
LABELS = [c for c in range(CLASSES) for _ in range(EACH)]
X = TEXT.repeat_interleave(EACH, dim=0) + 0.05 * _drawn(CLASSES * EACH, 192)
HELD = X + 0.2 * _drawn(*X.shape, 1)[:, :, 0]
# Without classes: where rows lie apart, rounding moves none to another cluster.
NOISE = torch.randn(80, 30, generator=torch.Generator().manual_seed(80))
NAMES = ["arrow", "flag", "house", "star"]


def _seed() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def _coop(model: Any, x: Tensor) -> Tensor:
    given = {"n_ctx": 2, "epochs": 2, "batch_size": 8, "lr": 0.02}
    return sb.CoOp(model, NAMES, **given).fit(x, [NAMES[c] for c in LABELS]).context_


def _kdpl(model: Any, x: Tensor) -> Tensor:
    given = {"n_ctx": 2, "ctx_init": None, "epochs": 2, "batch_size": 8}
    return sb.KDPL(model, TEXT, NAMES, **given).fit(x, x).context_


def _re_tune(model: Any, x: Tensor) -> Tensor:
    known = (torch.tensor(LABELS)[:, None] == torch.arange(2)).long()
    prompts = TEXT.reshape(2, 2, 192)
    re_tune = sb.RETune(epochs=2).fit(x, known, prompts)
    return re_tune.partial_fit(x, 1 - known).decision_function(x)


def _gcd(model: Any, x: Tensor) -> Tensor:
    y = [c if c < 2 else None for c in LABELS]
    small = {"width": 8, "hidden": 8, "projection": 4, "epochs": 2, "batch_size": 8}
    gcd = sb.SpectralGCD(TEXT, num_classes=CLASSES, **small).fit(x, y, teacher=(x, TEXT))
    return gcd.predict_proba(x)


def _map(model: Any, x: Tensor) -> Tensor:
    given = {"pilots": 8, "steps": 2, "refine": (), "hidden": 4, "train_steps": 10, "generator": _seed()}
    return sb.InversionMap.fit(model, x, **given).matrix


def _estimate(model: Any, x: Tensor) -> Tensor:
    pytest.importorskip("scipy")
    y = [i % 7 if i % 7 < 3 else None for i in range(len(NOISE))]
    return torch.tensor(sb.estimate_num_classes(NOISE, y, max_classes=9).accuracy, dtype=torch.float64)


def _diagnosis(model: Any, x: Tensor) -> Tensor:
    found = sb.diagnose(x, LABELS, other=TEXT, resamples=10).before
    values = [value for estimate in found.values.values() for value in estimate]
    return torch.cat([torch.tensor(values, dtype=torch.float64), found.intra, found.inter, found.edges])


METHODS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "TipAdapterF": lambda model, x: sb.TipAdapterF(TEXT, epochs=2).fit(x, LABELS).logits(x),
    "APET": lambda model, x: sb.APET(TEXT, epochs=2).fit(x, LABELS).logits(x),
    "CoOp": _coop,
    "KDPL": _kdpl,
    "RETune": _re_tune,
    "SpectralGCD": _gcd,
    "oti": lambda model, x: sb.oti(model, x, steps=3, generator=_seed()).features,
    "ovi": lambda model, x: sb.ovi(model, x[:2], steps=2, generator=_seed()).features,
    "InversionMap": _map,
    "estimate_num_classes": _estimate,
    "diagnose": _diagnosis,
}


@contextmanager
def _default_float64():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "inference mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "default float64": _default_float64,
}


@pytest.fixture(scope="module")
def model() -> Any:
    return sb.load_picto_clip()[0]


@pytest.mark.parametrize("name", METHODS)
def test_the_callers_modes_change_nothing(model: Any, name: str) -> None:
    want = METHODS[name](model, X)
    for mode, entered in MODES.items():
        with entered():
            found = METHODS[name](model, X)
        assert found.dtype is want.dtype, mode
        assert_same_bits(found, want)


PROJECTION = torch.eye(192)
BRIDGE = sb.Bridge(_drawn(192, 192), text_length=2.0)
CLASSIFIERS: dict[str, Callable[[], Any]] = {
    "SeMoBridge": lambda: sb.SeMoBridgeClassifier(BRIDGE, TEXT),
    "SeMoBridgeT": lambda: sb.SeMoBridgeT(BRIDGE, TEXT, TEXT, preset="fast", steps=3),
    "TipAdapter": lambda: sb.TipAdapter(TEXT),
    "TipAdapterF": lambda: sb.TipAdapterF(TEXT, epochs=2),
    "APE": lambda: sb.APE(TEXT),
    "APET": lambda: sb.APET(TEXT, epochs=2),
    "GDA": lambda: sb.GDA(TEXT),
    "LDA": sb.LDA,
    "ProKeR": lambda: sb.ProKeR(TEXT),
    "LPPlusPlus": lambda: sb.LPPlusPlus(TEXT, steps=5),
    "ProLIP": lambda: sb.ProLIP(PROJECTION, TEXT, steps=3),
    "NearestClassMean": sb.NearestClassMean,
    "ZeroShot": lambda: sb.ZeroShot(TEXT),
}


def _judged(name: str) -> tuple[Tensor, float]:
    """Fitted, tuned, fitted further and drawn anew."""
    clf = CLASSIFIERS[name]().fit(X, LABELS)
    if hasattr(clf, "tune"):
        words = {"n_trials": 5, "sampler": "random"} if name.startswith("SeMo") else {}
        clf.tune(HELD, LABELS, **words)
    if hasattr(clf, "partial_fit"):
        clf.partial_fit(HELD, LABELS)
    (drawn,) = clf.fit_seeds(X, LABELS, shots=2, seeds=[0])
    return torch.cat([clf.logits(HELD), drawn.logits(HELD)]), clf.score(HELD, LABELS)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_default_device_takes_nothing(name: str) -> None:
    """A GPU by default, shots on the CPU: what is made on the way stays with the shots."""
    want, right = _judged(name)
    torch.set_default_device("meta")  # whatever strays there is lost
    try:
        found, again = _judged(name)
    finally:
        torch.set_default_device(None)
    assert_same_bits(found, want)
    assert right == again


def test_modes_come_back() -> None:
    """A training may set them as it likes; gradients stay as the caller wants them."""

    @plain_modes()
    def trained() -> tuple[bool, bool, bool, str]:
        return (
            torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"), torch.is_grad_enabled(),
            torch.empty(0).device.type,
        )  # fmt: skip

    assert trained() == (False, False, True, "cpu")
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
        assert trained() == (False, False, False, "cpu")
        assert torch.is_inference_mode_enabled() and torch.is_autocast_enabled("cpu")
        assert torch.empty(0).device.type == "meta"
    with torch.no_grad():
        assert trained()[2] is False
