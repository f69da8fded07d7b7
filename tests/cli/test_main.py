"""The dispatcher: exit codes, one-line errors, help that teaches."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest

import semobridge_ext as sb
from semobridge_ext import cli
from semobridge_ext.cli.commands import demo, info


def run(capsys, *argv: str) -> tuple[int, str, str]:
    code = cli.main(argv)
    out, err = capsys.readouterr()
    return code, out, err


def assert_one_line(err: str, *parts: str) -> None:
    assert err.endswith("\n") and err.count("\n") == 1, err
    assert err.startswith("semobridge-ext") and "Traceback" not in err
    for part in parts:
        assert part in err


def test_version(capsys):
    code, out, err = run(capsys, "--version")
    assert (code, out, err) == (0, f"semobridge-ext {sb.__version__}\n", "")


def test_no_command_prints_the_help(capsys):
    code, out, _ = run(capsys)
    assert code == 0
    assert all(f"    {name} " in out for name in cli.COMMANDS) and "start here" in out


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (
            "demo",
            [
                "--set",
                "--json",
                "examples:",
                "norm(f W+) W",
                "standard deviation",
                "control",
                "noise",
                "held-out",
            ],
        ),
        ("info", ["--json", "examples:", "SEMOBRIDGE_ISA", "openmp"]),
        ("extract", ["INPUT", "--device", "examples:", "corrupt.tsv", "clip-retrieval", "WebDataset"]),
        ("map", ["--mapping", "examples:", "bridge", "isoclip", "pca", "safetensors"]),
        ("search", ["--text", "--image", "examples:", "contact sheet", "modality gap"]),
        ("retrieve", ["--recall-at", "examples:", "mAP@R", "R-Precision", "left out"]),
        ("reproduce", ["--datasets", "examples:", "dash", "--download", "CoOp", "goes on"]),
        ("report", ["--shots", "examples:", "zero-shot", "spectra", "CSV"]),
    ],
)
def test_help_teaches(capsys, command, words):
    code, out, err = run(capsys, command, "--help")
    assert code == 0 and err == ""
    for word in words:
        assert word in out


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("dmeo", "'semobridge-ext demo'"),
        ("infos", "'semobridge-ext info'"),
        ("xyz", f"try one of {', '.join(cli.COMMANDS)}"),
    ],
)
def test_unknown_command(capsys, word, hint):
    code, out, err = run(capsys, word)
    assert code == 2 and out == ""
    assert_one_line(err, f"unknown command '{word}'", hint)


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["info", "--jsn"], "--jsn"),
        (["demo", "--shots", "0"], "got '0'"),
        (["demo", "--shots", "two"], "got 'two'"),
        (["demo", "--seeds", "-1"], "got '-1'"),
        (["demo", "--bogus"], "--bogus"),
    ],
)
def test_bad_arguments(capsys, argv, part):
    code, out, err = run(capsys, *argv)
    assert code == 2 and out == ""
    assert_one_line(err, part, "--help")


@pytest.mark.parametrize(
    ("error", "part"),
    [
        (ValueError("two\nlines"), "two lines"),
        (OSError("disk full"), "disk full"),
        (KeyError("x"), "unexpected KeyError"),
        (RuntimeError(), "unexpected RuntimeError"),
    ],
)
def test_errors_of_a_command(capsys, monkeypatch, error, part):
    def fail(args):
        raise error

    monkeypatch.setattr(info, "run", fail)
    code, _, err = run(capsys, "info")
    assert code == 2
    assert_one_line(err, part)
    code, _, err = run(capsys, "info", "--debug")
    assert code == 2 and "Traceback" in err and "in fail" in err
    assert run(capsys, "--debug", "info")[2].count("Traceback") == 1


def test_interrupt(capsys, monkeypatch):
    def interrupt(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run", interrupt)
    code, out, err = run(capsys, "demo")
    assert code == 130 and out == ""
    assert err.strip() == "semobridge-ext demo: interrupted; files already finished are whole"


def test_a_reader_that_leaves_early_is_no_error():
    """`semobridge-ext info | head -0`, in a process of its own, as the pipe belongs to the process."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "semobridge_ext.cli", "info"],
            stdout=closed, stderr=subprocess.PIPE, text=True, timeout=120, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_a_stdout_that_lacks_a_character_gets_its_escape(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(info, "run", lambda args: print("caf\xe9 \u2605 \udcff") or 0)
    assert cli.main(["info"]) == 0
    out.flush()
    assert out.buffer.getvalue() == b"caf\xe9 \\u2605 \\udcff\n"
