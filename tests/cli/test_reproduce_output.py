"""What `semobridge-ext reproduce` makes of records: means, published figures, a table, a CSV and a page."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest

from semobridge_ext.cli.reproduction import output
from semobridge_ext.cli.reproduction.output import MEAN_SHOTS, Study, rows_of
from semobridge_ext.cli.reproduction.published import (
    ACCURACY,
    FIGURES,
    MAP_THEIRS,
    PROTOCOLS,
    UNSEEN,
    figure_of,
)
from semobridge_ext.cli.reproduction.published import model_key as key_of

# The papers' tables, written down once more.
TOLD = [
    ("semobridge", "ViT-B/16", ACCURACY, "SeMoBridge-T", MEAN_SHOTS, 78.144),
    ("semobridge", "ViT-B/16", ACCURACY, "SeMoBridge-T", 1, 74.01),
    ("semobridge", "ViT-B/16", ACCURACY, "SeMoBridge-T", 16, 82.20),
    ("semobridge", "ViT-B/16", ACCURACY, "SeMoBridge", MEAN_SHOTS, 75.404),
    ("semobridge", "ViT-B/16", ACCURACY, "zero-shot", MEAN_SHOTS, 65.52),
    ("tip-adapter", "ViT-B/16", ACCURACY, "Tip-Adapter", MEAN_SHOTS, 73.434),
    ("gda", "RN50", ACCURACY, "GDA", 4, 69.77),
    ("gda", "RN50", ACCURACY, "GDA", 8, 73.31),
    ("cross-the-gap", "ViT-L/14", MAP_THEIRS, "OTI", 0, 57.0),
    ("cross-the-gap", "SigLIP ViT-B/16", MAP_THEIRS, "native", 0, 57.2),
    ("isoclip", "ViT-B/16", MAP_THEIRS, "IsoCLIP", 0, 52.8),
    ("isoclip", "ViT-B/32", MAP_THEIRS, "native", 0, 40.9),
    ("kdpl", "RN50", UNSEEN, "KDPL", 16, 63.80),
    ("kdpl", "ViT-B/32", UNSEEN, "CoOp", 16, 64.52),
]


def test_published_figures_are_those_of_the_papers() -> None:
    for *where, value in TOLD:
        figure = figure_of(*where)
        assert (
            figure is not None
            and figure.value == value
            and re.search(r"arXiv \d{4}\.\d{5}|ICLR", figure.source)
        )
    assert set(FIGURES) == set(PROTOCOLS)
    for name, figures in FIGURES.items():
        assert len({f[:4] for f in figures}) == len(figures)
        assert {f.measure for f in figures} <= set(PROTOCOLS[name].measures)


def test_figures_belong_to_models_with_the_same_weights() -> None:
    assert key_of("ViT-B-16-quickgelu", "openai") == "ViT-B/16"
    assert key_of("ViT-B-16", "openai") is None  # another activation than these weights were trained with
    assert key_of("ViT-B-16-quickgelu", "dfn2b") is None and key_of("picto", None) is None
    assert key_of("ViT-B-16-SigLIP", "webli") == "SigLIP ViT-B/16"
    assert figure_of("semobridge", None, ACCURACY, "SeMoBridge-T", 1) is None
    for protocol in PROTOCOLS.values():
        assert key_of(*protocol.model) is not None


def few(accuracies: dict[tuple[str, str, int], list[float]]) -> list[dict[str, Any]]:
    return [
        {"set": name, "method": method, "shots": shots, "seed": seed, ACCURACY: value}
        for (name, method, shots), values in accuracies.items() for seed, value in enumerate(values)
    ]  # fmt: skip


def study(records: list[dict[str, Any]], key: str | None = "ViT-B/16", protocol: str = "semobridge") -> Study:
    return Study(protocol, "a <model>", key, ["pets & more: 4 classes"], ["2 draws"], records)


def test_means_are_over_sets_and_their_spread_over_draws() -> None:
    found = {
        (r.set, r.method, r.shots): r
        for r in rows_of(study(few({
            ("a", "SeMoBridge-T", 1): [0.5, 0.7], ("b", "SeMoBridge-T", 1): [0.9, 0.8, 0.1],
            ("a", "SeMoBridge-T", 2): [0.6], ("b", "LDA", 1): [0.4],
        })))
    }  # fmt: skip
    mean = found["mean of 2 data sets", "SeMoBridge-T", 1]
    assert mean.ours == pytest.approx(fmean([0.7, 0.75])) and mean.seeds == 2  # the third draw is b's alone
    assert mean.std == pytest.approx(stdev([0.7, 0.75]))
    assert mean.published is not None and mean.published.value == 74.01
    assert found["a", "SeMoBridge-T", 1].ours == pytest.approx(0.6)
    assert found["a", "SeMoBridge-T", 1].published is None  # published figures are means over sets
    assert ("mean of 2 data sets", "LDA", 1) not in found and found["b", "LDA", 1].std is None
    lone = found["mean of 2 data sets", "SeMoBridge-T", 2]
    assert lone.ours is None and lone.published is not None and lone.published.value == 76.20


def test_a_mean_over_shots_needs_all_of_them() -> None:
    values = {k: [0.1 * i, 0.1 * i + 0.05] for i, k in enumerate((1, 2, 4, 8, 16), 1)}
    whole = few({("a", "SeMoBridge", k): v for k, v in values.items()})
    rows = {(r.set, r.method, r.shots): r for r in rows_of(study(whole))}
    row = rows["mean of 1 data set", "SeMoBridge", MEAN_SHOTS]
    assert row.ours == pytest.approx(0.325) and row.std == pytest.approx(stdev([0.3, 0.35]))
    assert row.published is not None and row.published.value == 75.404
    part = [r for r in whole if r["shots"] != 4]
    row = {(r.set, r.method, r.shots): r for r in rows_of(study(part))}[row.set, "SeMoBridge", MEAN_SHOTS]
    assert row.ours is None and row.published is not None


def test_files_hold_ours_beside_the_published(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    records = few({("pets & more", "SeMoBridge-T", 1): [0.5, 0.75], ("pets & more", "LDA", 1): [0.25, 0.25]})
    one = study(records)
    rows = output.write(tmp_path, one)
    with open(tmp_path / "reproduce.csv", encoding="utf-8") as file:
        lines = {(r["set"], r["method"], r["shots"]): r for r in csv.DictReader(file)}
    line = lines["mean of 1 data set", "SeMoBridge-T", "1"]
    assert (line["ours"], line["published"]) == ("62.5", "74.01") and "2509.26036" in line["source"]
    assert lines["mean of 1 data set", "LDA", "1"]["published"] == ""
    text = output.table_text(one, rows)
    assert (
        "| SeMoBridge-T | 1 | accuracy | 62.50 ± 17.68 | 74.01 | arXiv 2509.26036, mean of 11 data sets |"
        in text
    )
    assert "| LDA | 1 | accuracy | 25.00 ± 0.00 | – | – |" in text
    assert "| SeMoBridge-T | 16 | accuracy | – | 82.2 |" in text
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "pets &amp; more" in page and "a <model>" not in page and "bridge of the best" in page
    assert not re.search(r"(?:src|href)=[\"'](?!data:)", page)
    assert (tmp_path / "reproduce.png").read_bytes().startswith(b"\x89PNG")
    assert "## Known of the published programs" in (tmp_path / "reproduce.md").read_text(encoding="utf-8")
