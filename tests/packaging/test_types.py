"""What a type checker says of a subclass: fit, partial_fit, load and set_params give its own class."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.source_tree import ROOT, need_source

PROGRAM = """
from typing import Any
import semobridge_ext as sb
from semobridge_ext import sklearn as door
x: Any = None
{classes}
{calls}
"""
VERBS = {
    "fit(x, x)": (
        "SeMoBridgeClassifier", "SeMoBridgeT", "TipAdapter", "TipAdapterF", "APE", "APET", "GDA", "ProKeR",
        "LPPlusPlus", "ProLIP", "ZeroShot", "NearestClassMean", "LDA", "IsoCLIP", "SpectralGCD",
        "SpectralFilter", "CoOp", "KDPL",
    ),
    "fit(x)": ("RoleCentering",),
    "fit(x, x, x)": ("RETune",),
    "partial_fit(x, x)": (
        "SeMoBridgeClassifier", "TipAdapter", "GDA", "NearestClassMean", "LDA", "RETune", "SpectralFilter",
    ),
    "tune(x, x)": ("SeMoBridgeClassifier", "TipAdapter", "GDA", "ProKeR", "LDA", "IsoCLIP"),
    "set_params(a=1)": ("GDA", "RETune", "IsoCLIP"),
}  # fmt: skip
LOADED = (
    "SeMoBridgeClassifier", "SeMoBridgeT", "TipAdapter", "APE", "GDA", "ZeroShot", "LDA", "IsoCLIP",
    "SpectralGCD", "SpectralFilter", "RETune", "RoleCentering", "Bridge", "LinearMap", "Gallery",
    "SupportSet", "InversionMap",
)  # fmt: skip
DOOR = {"fit(x, x)": ("GDA", "Bridge", "IsoCLIP"), "partial_fit(x, x)": ("GDA",), "load(x)": ("GDA",)}


def calls() -> list[tuple[str, str]]:
    """Each expression, and the class that it must be of."""
    found = [(f"own{name}().{verb}", name) for verb, names in VERBS.items() for name in names]
    found += [(f"Own{name}.load(x)", name) for name in LOADED]
    found += [("OwnCoOp.load(x, x)", "CoOp"), ("OwnInversionMap.fit(x, x)", "InversionMap")]
    return [(call.replace("own", "make_"), f"Own{name}") for call, name in found]


@pytest.mark.slow
def test_verbs_return_their_own_class(tmp_path: Path):
    """Other libraries and the layers below are left out: their own types have no part in it."""
    need_source()
    api = pytest.importorskip("mypy.api")
    names = sorted({expected.removeprefix("Own") for _, expected in calls()})
    classes = [f"class Own{n}(sb.{n}): ...\ndef make_{n}() -> Own{n}: return x" for n in names]
    wanted = calls()
    for verb, those in DOOR.items():
        wanted += [(f"door.{name}{'' if 'load' in verb else '()'}.{verb}", name) for name in those]
    program = PROGRAM.format(
        classes="\n".join(classes), calls="\n".join(f"reveal_type({call})" for call, _ in wanted)
    )
    (tmp_path / "program.py").write_text(program, encoding="utf-8")
    others = ("torch", "numpy", "sklearn", "scipy", "pandas", "open_clip", "transformers", "PIL")
    below = [f"semobridge_ext.{room}" for room in ("_ops", "_engines", "clip", "cli", "data", "runtime")]
    skipped = "".join(f"[mypy-{name}.*]\nfollow_imports = skip\n" for name in (*others, *below))
    skipped += "[mypy-semobridge_ext.runtime.plain_modes]\nfollow_imports = silent\n"  # it decorates verbs
    (tmp_path / "mypy.ini").write_text(
        f"[mypy]\nmypy_path = {ROOT}\nignore_missing_imports = true\nfollow_imports = silent\n{skipped}"
    )
    out, _, _ = api.run(["--config-file", str(tmp_path / "mypy.ini"), "--cache-dir", str(tmp_path / "cache"),
                         str(tmp_path / "program.py")])  # fmt: skip
    told = re.findall(r'Revealed type is "([\w.]+)"', out)
    assert len(told) == len(wanted), out
    wrong = [
        f"{call}: {got}"
        for (call, expected), got in zip(wanted, told, strict=True)
        if got.rpartition(".")[2] != expected
    ]
    assert not wrong, "\n".join(wrong)
