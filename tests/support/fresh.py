"""Programs that need an interpreter of their own, many for the price of one import of PyTorch."""

from __future__ import annotations

import atexit
import functools
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.support.source_tree import environment

# Forks a child for every line of its input, where the module is loaded, no thread has been started, and
# semobridge_ext is still unknown.
_SERVER = """
import atexit, gc, importlib, json, os, sys, tempfile, threading, traceback, types
importlib.import_module(sys.argv[1])
assert "semobridge_ext" not in sys.modules and threading.active_count() == 1
answers = os.fdopen(os.dup(1), "w")  # what a program prints is not to stand among them
gc.freeze()  # a child's collection would copy every page that it visits
for line in sys.stdin:
    code, name, arguments, words, place = json.loads(line)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.chdir(place)
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                os.environ.clear()
                os.environ.update(words)
                sys.argv = [name, *arguments]
                main = sys.modules["__main__"] = types.ModuleType("__main__")
                main.__file__ = name
                exec(compile(code, name, "exec"), main.__dict__)
                status = 0
            except SystemExit as ended:
                if isinstance(ended.code, str):
                    print(ended.code, file=sys.stderr)
                status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
            except BaseException:
                traceback.print_exc()
            finally:
                threading._shutdown()
                atexit._run_exitfuncs()
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode(errors="replace"))
    print(json.dumps([status, *texts]), file=answers, flush=True)
"""


class Program(NamedTuple):
    code: str
    words: Mapping[str, str] = {}  # of its environment, read when semobridge_ext is imported
    arguments: Sequence[str] = ()


class FreshProcesses:
    """Runs programs where `module` is loaded; starts with the first of them."""

    def __init__(self, module: str, *options: str) -> None:
        self._command = [sys.executable, *options, "-c", _SERVER, module]
        self._server: subprocess.Popen[str] | None = None

    def run(
        self, program: Program, *, name: str = "<program>", cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        if self._server is None:
            self._server = subprocess.Popen(
                self._command, env=environment(), text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        assert self._server.stdin is not None and self._server.stdout is not None
        words, place = environment(**program.words), str(cwd or Path.cwd())
        line = json.dumps([program.code, name, program.arguments, words, place])
        print(line, file=self._server.stdin, flush=True)
        answer = self._server.stdout.readline()
        if not answer:
            ended, self._server = self._server, None
            raise AssertionError(f"{name}: the server ended with {ended.communicate() and ended.returncode}")
        return subprocess.CompletedProcess(name, *json.loads(answer))

    def close(self) -> None:
        if self._server is not None:
            self._server.communicate()
            self._server = None


@functools.cache
def fresh_processes(module: str, *options: str) -> FreshProcesses:
    """One for all tests of this process that want the same; it ends with the process."""
    found = FreshProcesses(module, *options)
    atexit.register(found.close)
    return found


def run_fresh(programs: Sequence[Program]) -> list[subprocess.CompletedProcess[str]]:
    """Each program where semobridge_ext has not been imported; warnings are errors."""
    return [fresh_processes("torch", "-W", "error").run(program) for program in programs]


def run_script(
    path: Path, *arguments: object, loaded: str = "open_clip", **words: str
) -> subprocess.CompletedProcess[str]:
    """`python path arguments`, where `loaded` is loaded already."""
    program = Program(path.read_text(encoding="utf-8"), words, [str(a) for a in arguments])
    return fresh_processes(loaded).run(program, name=str(path))
