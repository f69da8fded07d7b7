"""`semobridge-ext models`: the table is what the sweep finds, and the sweep notices what is wrong."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
import torch

from semobridge_ext import cli
from semobridge_ext.cli.sweep import cells, open_clip_models, plain, table
from tests.support.source_tree import ROOT

open_clip = pytest.importorskip("open_clip")
pytest.importorskip("transformers")
pytest.importorskip("timm")

PAGE = ROOT / "docs/guides/models.md"
# What must hold of one model of each kind, whatever the page says: bridge, IsoCLIP, class texts.
KNOWN = {
    "ViT-B-16-SigLIP2": ("works", "refused", "works"),
    "ViT-bigG-14-CLIPA": ("works", "works", "works"),
    "ViT-bigG-14-worldwide": ("works", "works", "works"),
    "coca_base": ("works", "works", "works"),
    "nllb-clip-base": ("works", "works", "works"),
    "xlm-roberta-base-ViT-B-32": ("refused", "refused", "t_c alone"),
    "transformers AlignModel": ("works", "refused", "works"),
    "transformers GroupViTModel": ("refused", "refused", "t_c alone"),
    "transformers OwlViTModel": ("refused",) * 3,
    "timm VisionTransformer": ("refused",) * 3,
}


def states(page: str) -> dict[str, dict[str, str]]:
    """Model, method, state of a Markdown table."""
    lines = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    head = lines[0][1:]
    return {
        name: {method: cell.partition(" (")[0] for method, cell in zip(head, found, strict=True)}
        for models, *found in lines[1:]
        for name in models.split(", ")
    }


def test_a_model_of_each_kind() -> None:
    before = torch.random.get_rng_state(), torch.get_num_threads()
    rows = table.sweep(list(KNOWN))
    assert torch.equal(torch.random.get_rng_state(), before[0]) and torch.get_num_threads() == before[1]
    found = states(table.as_markdown(rows))
    for name, want in KNOWN.items():
        assert tuple(found[name].values())[:3] == want, name
        assert "wrong" not in found[name].values(), [row for row in rows if name in row.models]
    written = states(PAGE.read_text(encoding="utf-8"))
    assert all(found[name] == written[name] for name in KNOWN)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_the_page_is_what_the_sweep_finds(part: int) -> None:
    written = states(PAGE.read_text(encoding="utf-8"))
    parts = table.groups(table.names())
    names = {name for models in parts for name in models}
    assert len(names & set(written)) >= 0.9 * len(written), "write the table anew"
    for row in table.sweep([name for models in parts[part::4] for name in models]):
        found = {method: cell.state for method, cell in row.cells.items()}
        assert "wrong" not in found.values(), row
        for name in row.models:
            if "absent" not in found.values():
                assert found == written.get(name, found), name


def test_a_library_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise ImportError("OpenAI's clip is not installed; pip install openai-clip")

    monkeypatch.setitem(table.other_models.MODELS, "OpenAI's clip", missing)
    (row,) = table.sweep(["OpenAI's clip"])
    assert set(row.cells.values()) == {cells.Cell("absent", "OpenAI's clip is not installed")}


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    chosen = ["models", "--model", "vit-l-14-worldwide", "--model", "transformers OwlViTModel"]
    assert cli.main(chosen) == 0
    out = capsys.readouterr().out
    assert "bridge" in out.splitlines()[0] and "ViT-L-14-worldwide" in out and "of 2 models work" in out
    assert "[1] OwlViTModel, a detector" in out
    assert cli.main([*chosen, "--csv"]) == 0
    first, second = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (first["model"], first["OTI"], second["bridge"]) == ("ViT-L-14-worldwide", "works", "refused")
    assert second["bridge: why"].startswith("OwlViTModel, a detector")
    page = tmp_path / "page.md"
    page.write_text(f"before\n{table.MARKS[0]}\nold\n{table.MARKS[1]}\nafter\n")
    assert cli.main([*chosen, "--docs", str(page)]) == 0
    written = page.read_text()
    assert written.startswith("before\n") and written.endswith("\nafter\n") and "old" not in written
    assert set(states(written)) == {"ViT-L-14-worldwide", "transformers OwlViTModel"}
    page.write_text("no marks")
    assert cli.main([*chosen, "--docs", str(page)]) == 2
    assert "must be a page with" in capsys.readouterr().err
    assert cli.main(["models", "--model", "ViT-B-99x"]) == 2


def test_models_that_shrink_to_one_are_built_once() -> None:
    parts = table.groups(["ViT-B-32", "ViT-L-14", "ViT-B-32-quickgelu", "PE-Core-B-16", "PE-Core-L-14-336"])
    assert parts == [("ViT-B-32", "ViT-L-14"), ("ViT-B-32-quickgelu",), ("PE-Core-B-16", "PE-Core-L-14-336")]


def test_a_wrong_result_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracles that are off by a bias, a template or a step must not agree."""
    small = table.small("ViT-B-16-SigLIP2")
    monkeypatch.setattr(plain, "end_of", _without_bias(plain.end_of))
    assert cells.check(small, "bridge").state == "wrong"
    monkeypatch.undo()
    monkeypatch.setattr(cells, "class_text_features", _other_template(cells.class_text_features))
    assert cells.check(small, "class texts").state == "wrong"
    monkeypatch.undo()
    for method, name in (("OTI", "oti"), ("OVI", "ovi")):
        monkeypatch.setattr(cells, name, _other_rate(getattr(cells, name)))
        assert cells.check(small, method).state == "wrong"
    monkeypatch.setattr(cells, "oti", lambda *_, **__: [][0])
    assert cells.check(small, "OTI") == cells.Cell("wrong", "IndexError: list index out of range")


def _without_bias(end_of):
    return lambda model, side: end_of(model, side) * torch.tensor([[1.0]] * 48 + [[0.0]])


def _other_template(features):
    return lambda model, names, templates, **options: features(model, names, templates[:1], **options)


def _other_rate(invert):
    return lambda *given, **options: invert(*given, **options, lr=1e-2)


def test_trunks_are_whole_again_after_a_build() -> None:
    from open_clip import timm_model

    kept = timm_model.timm
    open_clip_models.build(open_clip_models.small_config("ViT-B-16-SigLIP2"))
    assert timm_model.timm is kept
