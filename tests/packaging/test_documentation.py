"""README, docs/ and what stands beside them: snippets run, paths exist, every public name is on a page."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest

import semobridge_ext as sb
from semobridge_ext.cli import build_parser
from tests.support.fresh import Program, fresh_processes
from tests.support.source_tree import ROOT, environment, run

if not (ROOT / "README.md").is_file():
    pytest.skip("the tests run outside the source tree; needed: README.md and docs/", allow_module_level=True)

DOCS = ROOT / "docs"
PAGES = sorted(
    [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "bench").glob("*.md"), ROOT / "bench/picto/README.md"]
)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def fenced(path: Path, language: str) -> list[str]:
    text = path.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


# -- code blocks -------------------------------------------------------------------------------------


WITH_PYTHON = [path for path in PAGES if fenced(path, "python")]


def test_readme_begins_with_a_snippet_that_asserts():
    first = fenced(ROOT / "README.md", "python")[0]
    assert "import semobridge_ext as sb" in first and "assert " in first


@pytest.mark.parametrize("path", WITH_PYTHON, ids=name_of)
def test_python_blocks_run(path: Path, tmp_path: Path):
    """The blocks of a page, one after another, as one program."""
    script = tmp_path / "snippets.py"
    code = "\n".join(fenced(path, "python"))
    script.write_text(code, encoding="utf-8")  # for the lines of an error
    # open_clip takes four seconds of processor to load: once, not for each page.
    done = fresh_processes("open_clip").run(Program(code), name=str(script), cwd=tmp_path)
    assert done.returncode == 0, f"{name_of(path)}: {done.stderr}"


def _commands() -> list[tuple[str, str]]:
    found = []
    for path in PAGES:
        for block in fenced(path, "sh"):
            lines = (line.split(" # ")[0].strip() for line in block.splitlines())
            found += [(name_of(path), line) for line in lines if line and not line.startswith("#")]
    return found


def test_shell_blocks_name_commands_that_exist():
    """The parser accepts sub-commands and options, the Makefile has the targets, files are there."""
    commands = _commands()
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    parser = build_parser()
    seen = set()
    for page, line in commands:
        for part in line.split(" && "):
            words = shlex.split(part)
            seen.add(words[0])
            if words[0] == "semobridge-ext":
                parser.parse_args(words[1:])  # raises UsageError
            elif words[0] == "make":
                assert words[1] in targets, f"{page}: no target {words[1]}"
            elif words[:1] == ["python"]:
                files = [w for w in words[1:] if re.match(r"(tests|bench)/", w)]
                assert files, f"{page}: {part} runs nothing of this repository"
                for file in files:
                    assert (ROOT / file).exists(), f"{page}: {file} is not there"
    assert {"semobridge-ext", "make", "python"} <= seen


def test_code_blocks_have_a_language():
    """A fenced block without a language would be neither run nor checked."""
    for path in PAGES:
        languages = re.findall(r"^```(\S*)", path.read_text(encoding="utf-8"), re.MULTILINE)[::2]
        wrong = [x for x in languages if x not in ("python", "sh", "text") and not x.startswith("{")]
        assert not wrong, f"{name_of(path)}: blocks of {wrong}"


# -- paths and names ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_paths_in_backticks_exist(path: Path):
    """`csrc/topk/cuda.cu` and its kind; `<op>` and `*` stand for something."""
    text = path.read_text(encoding="utf-8")
    pattern = r"`((?:semobridge_ext|csrc|python|tests|bench|docs|examples)/[\w./*<>{}-]*[\w/>}*])`"
    missing = []
    for found in re.findall(pattern, text):
        if "*" in found:
            there = any(ROOT.glob(found))
        else:
            there = re.search(r"[<{]", found) or (ROOT / found).exists()
        if not there:
            missing.append(found)
    assert not missing, f"{name_of(path)} names {missing}"


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_relative_links_lead_somewhere(path: Path):
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target) or target.startswith("#"):
            continue
        file = (path.parent / target.partition("#")[0]).resolve()
        assert file.exists(), f"{name_of(path)} links to {target}"


def _reference_names() -> set[str]:
    found: set[str] = set()
    for path in (DOCS / "api").glob("*.md"):
        text = path.read_text()
        found |= set(re.findall(r"^\.\. auto(?!module)\w+:: semobridge_ext\.([\w.]+)", text, re.MULTILINE))
        for door in re.findall(
            r"^\.\. automodule:: semobridge_ext\.([\w.]+)\n   :members:$", text, re.MULTILINE
        ):
            left_out = re.search(r"^   :exclude-members: (.+)$", text, re.MULTILINE)
            names = set(_resolve(door).__all__) - set(left_out[1].split(", ") if left_out else ())
            found |= {f"{door}.{name}" for name in names}
    return found


def test_every_public_name_is_in_the_reference():
    """Under its own door, or under the package's where it is the same thing."""
    documented = {id(_resolve(name)): name for name in _reference_names()}
    doors = {
        name: importlib.import_module(f"semobridge_ext.{name}")
        for name in ("ops", "reference", "clip", "data", "ray", "sklearn")
    }
    missing = []
    for prefix, door in [("", sb), *((f"{name}.", door) for name, door in doors.items())]:
        for name in door.__all__:
            thing = getattr(door, name)
            if callable(thing) and id(thing) not in documented:
                missing.append(prefix + name)
    assert not missing, f"docs/api lacks {missing}"


def _resolve(name: str):
    thing = sb
    for part in name.split("."):
        thing = getattr(thing, part, None) or importlib.import_module(f"semobridge_ext.{part}")
    return thing


# -- hop chains --------------------------------------------------------------------------------------

_HOP = re.compile(r"^(→ )?(\S+)\s{2,}((?:semobridge_ext|csrc|python)/\S+)")


def _chains() -> list[tuple[str, list[tuple[str, str]]]]:
    """Each chain of docs/design.md: its first line's words, then (name, file) of each hop."""
    text = (DOCS / "design.md").read_text(encoding="utf-8")
    section = text.partition("## Hop chains")[2].partition("\n## ")[0]
    chains = []
    for title, block in re.findall(
        r"^\*\*(.+?)\*\*.*?\n```text\n(.*?)^```", section, re.DOTALL | re.MULTILINE
    ):
        hops = [(m[2], m[3]) for line in block.splitlines() if (m := _HOP.match(line))]
        assert len(hops) == len(block.splitlines()), f"{title}: a line is no hop"
        chains.append((title, hops))
    return chains


def test_hop_chains_are_those_of_the_code():
    """Every file of a chain exists and holds the name; CPU takes at most four hops, CUDA and Triton five."""
    chains = _chains()
    assert len(chains) >= 15
    for title, hops in chains:
        most = 5 if re.search(r"CUDA|Triton", title) else 4
        assert 1 <= len(hops) - 1 <= most, f"{title}: {len(hops) - 1} hops"
        for name, file in hops:
            path = ROOT / file
            assert path.is_file(), f"{title}: {file} is not there"
            word = re.split(r"[.:]+", name.removesuffix("()"))[-1]
            assert re.search(rf"\b{re.escape(word)}\b", path.read_text(encoding="utf-8")), (
                f"{title}: {file} lacks {word}"
            )


def test_every_bench_and_study_is_listed():
    text = (ROOT / "bench" / "README.md").read_text(encoding="utf-8")
    assert "`ops/bench_<op>.py`" in text and "`engines/bench_<engine>.py`" in text  # all of them, by rule
    found = [p for folder in ("gpu", "studies") for p in (ROOT / "bench" / folder).glob("*.py")]
    missing = [name_of(p) for p in found if f"`{p.relative_to(ROOT / 'bench')}`" not in text]
    assert len(found) > 10 and not missing, f"bench/README.md lacks {missing}"


# -- what stands beside the README -------------------------------------------------------------------


def test_citation_and_changelog_are_of_this_version():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {sb.__version__}\n" in citation and "\nlicense: Apache-2.0\n" in citation
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## {re.escape(sb.__version__)}\b", changelog, re.MULTILINE)
    assert changelog.index("## Unreleased") < changelog.index(f"## {sb.__version__}")


def test_every_paper_of_the_sources_is_cited():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    sources = [*(ROOT / "semobridge_ext").rglob("*.py"), *(ROOT / "csrc").rglob("*.h")]
    found = {
        n for path in sources for n in re.findall(r"arXiv (\d{4}\.\d{5})", path.read_text(encoding="utf-8"))
    }
    assert len(found) >= 5
    assert not {n for n in found if n not in citation}


def test_pre_commit_runs_what_lint_runs():
    lint = (ROOT / "Makefile").read_text().partition("\nlint:")[2].partition("\n\n")[0]
    commands = set(re.findall(r"\$\(BIN\)/((?:ruff|mypy|clang-format)[^\n|]*)", lint))
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    entries = set(re.findall(r"entry: \.venv/bin/(.*)", hooks))
    assert commands and {c.strip() for c in commands} == entries


# -- the site ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_site_builds_and_reads_offline(tmp_path: Path):
    if importlib.util.find_spec("sphinx") is None or importlib.util.find_spec("furo") is None:
        pytest.skip("sphinx and furo are not installed; needed to build the site (pip install '.[docs]')")
    site = tmp_path / "site"
    done = run(
        sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q", "-d", tmp_path / "doctrees",
        DOCS, site, env=environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    pages = list(site.rglob("*.html"))
    assert len(pages) > 25
    for page in pages:
        loaded = re.findall(
            r'<(?:script|link|img)[^>]+(?:src|href)="(https?:)?//[^"]+"', page.read_text("utf-8")
        )
        assert not loaded, f"{page.name} loads from elsewhere"
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(\s*['\"]?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet.name
