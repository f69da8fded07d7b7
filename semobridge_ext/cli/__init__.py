"""The `semobridge-ext` command. One file per sub-command, each with `add_parser` and `run`."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from semobridge_ext._version import __version__
from semobridge_ext.cli.arguments import input_first
from semobridge_ext.cli.commands import (
    calibrate,
    demo,
    discover,
    export,
    extract,
    fewshot,
    info,
    invert,
    mapping,
    report,
    reproduce,
    retrieve,
    search,
    serve,
)
from semobridge_ext.cli.commands import (
    models as models_table,
)

COMMANDS = {
    "calibrate": calibrate,
    "demo": demo,
    "discover": discover,
    "export": export,
    "extract": extract,
    "fewshot": fewshot,
    "info": info,
    "invert": invert,
    "map": mapping,
    "models": models_table,
    "report": report,
    "reproduce": reproduce,
    "retrieve": retrieve,
    "search": search,
    "serve": serve,
}
INTERRUPTED = 130  # 128 + SIGINT, what shells report

_EPILOG = """\
start here:
  semobridge-ext info               what this installation can do, and why something is absent
  semobridge-ext demo               what it is for, on real images: figures and a picture, offline
  semobridge-ext demo --help        what the figures mean
  semobridge-ext invert --help      textual and visual inversion of a file of features, resumable
  semobridge-ext export --help      a gallery for FAISS, cuVS, Lance or Milvus
  semobridge-ext extract --help     your images in; then map, search, retrieve, report
  semobridge-ext serve --help       a page on this machine that searches them
  semobridge-ext discover --help    known and new classes among unlabelled images
  semobridge-ext models             which methods work on which models, and why others refuse
  semobridge-ext fewshot            every few-shot method on every embedded set: tables and a picture
  semobridge-ext reproduce --help   a published protocol from images to its table, beside the published one

Errors are one line and exit code 2; add --debug to see where they come from.
"""


class UsageError(Exception):
    """What the user typed cannot be run; the text says what to type."""


class Parser(argparse.ArgumentParser):
    """Raises instead of printing its usage and leaving the process."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """`--dataset NAME` of a command that takes INPUT is its first word, wherever it stands."""
        if args is not None and getattr(self, "dataset_is_input", False):
            args = input_first(args)
        return super().parse_known_args(args, namespace)


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="semobridge-ext",
        description="Fast kernels for the CLIP intra-modal family: few-shot, bridging, retrieval.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"semobridge-ext {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="<sub-command>", title="commands")
    for command in COMMANDS.values():
        command.add_parser(subparsers)
    for every in (parser, *subparsers.choices.values()):
        every.add_argument(
            "--debug",
            action="store_true",
            default=argparse.SUPPRESS,
            help="show the traceback of an error",
        )
    return parser


_WORDS = ("text", "template", "prompt")  # what a person writes, whatever it begins with


def _expand_home(args: argparse.Namespace) -> None:
    """Resolves ``~/`` in every path; a shell leaves it in ``--out=~/shards``."""

    def expanded(value: Any) -> Any:
        if isinstance(value, list):
            return [expanded(item) for item in value]
        if isinstance(value, Path):
            return value.expanduser()
        return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~/") else value

    for name, value in vars(args).items():
        if name not in _WORDS:
            setattr(args, name, expanded(value))


def _check_command(argv: Sequence[str]) -> str | None:
    """The command word, if there is one; an unknown word is answered with its near match."""
    word = next((a for a in argv if not a.startswith("-")), None)
    if word is None or word in COMMANDS:
        return word
    near = difflib.get_close_matches(word, COMMANDS, n=1, cutoff=0.4)
    hint = f"did you mean 'semobridge-ext {near[0]}'?" if near else f"try one of {', '.join(COMMANDS)}"
    raise UsageError(f"unknown command '{word}'; {hint}")


def _print_anything() -> None:
    """Where stdout lacks a character its escape is written, as on stderr: no command fails at its result."""
    if getattr(sys.stdout, "errors", None) == "strict" and hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    expected = (UsageError, ValueError, TypeError, OSError, RuntimeError, ImportError)
    if text and isinstance(error, expected):
        return text
    return f"unexpected {type(error).__name__}: {text}; run again with --debug to see where"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code: 0 done, 2 error, 130 interrupted."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    name = "semobridge-ext"
    _print_anything()
    try:
        command = _check_command(argv)
        name = f"{name} {command}" if command else name
        parser = build_parser()
        args = parser.parse_args(argv)
        if args.command is None:
            parser.print_help()
            return 0
        _expand_home(args)
        return COMMANDS[args.command].run(args)
    except SystemExit as leaving:  # --help and --version
        return leaving.code if isinstance(leaving.code, int) else 0
    except KeyboardInterrupt:
        print(f"\n{name}: interrupted; files already finished are whole", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has left (`| head`). Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            traceback.print_exc()
        # The library names its function first, which often is the command's own name.
        text = _one_line(error).removeprefix(f"{name.rpartition(' ')[2]}: ")
        print(f"{name}: {text}", file=sys.stderr)
        return 2
