"""Programs that need an interpreter of their own, many for the price of one import of PyTorch."""

from __future__ import annotations

import atexit
import functools
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from tests.support.source_tree import environment

# Forks a child for every line of its input that holds a program, where the module is loaded, no thread has
# been started, and semobridge_ext is still unknown. A program with two pipes is not waited for; its process
# number is a line of its own, later, which asks for its end.
_SERVER = """
import atexit, gc, importlib, json, os, sys, tempfile, threading, traceback, types
importlib.import_module(sys.argv[1])
assert "semobridge_ext" not in sys.modules and threading.active_count() == 1
answers = os.fdopen(os.dup(1), "w")  # what a program prints is not to stand among them
gc.freeze()  # a child's collection would copy every page that it visits


def child(code, name, arguments, words, place, streams):
    status = 1
    try:
        os.chdir(place)
        for number, stream in enumerate(streams()):
            os.dup2(stream, number)
        sys.stdin = open(0, closefd=False)  # without what the other has read ahead
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


def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def answer(line):
    if isinstance(line, int):
        return ended(line)
    *program, pipes = line
    if pipes:
        to, back = pipes
        # In the order in which the other side opens them.
        streams = lambda: (os.open(to, os.O_RDONLY), os.open(back, os.O_WRONLY), 2)
        return os.fork() or child(*program, streams)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        streams = lambda: (os.open(os.devnull, os.O_RDONLY), out.fileno(), err.fileno())
        status, texts = ended(os.fork() or child(*program, streams)), []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode(errors="replace"))
    return status, *texts


for line in sys.stdin:
    print(json.dumps(answer(json.loads(line))), file=answers, flush=True)
"""


class Program(NamedTuple):
    code: str
    words: Mapping[str, str] = {}  # of its environment, read when semobridge_ext is imported
    arguments: Sequence[str] = ()


def command_line(*words: object) -> Program:
    """`semobridge-ext words`, on one thread."""
    code = (
        "import sys, torch\nfrom semobridge_ext import cli\n"
        "torch.set_num_threads(1)\nsys.exit(cli.main(sys.argv[1:]))\n"
    )
    return Program(code, {}, [str(word) for word in words])


@dataclass
class Started:
    """A program in the midst of its run; what it prints is read from `stdout`."""

    pid: int
    stdin: TextIO
    stdout: TextIO
    _wait: Callable[[], int]
    _status: int | None = None

    def end(self, kill: bool = False) -> int:
        """Its exit status, once its input has ended; minus the signal's number where one ended it."""
        if self._status is None:
            if kill:
                os.kill(self.pid, signal.SIGKILL)
            self.stdin.close()
            self._status = self._wait()
            self.stdout.close()
        return self._status

    def killed_when(self, ready: Callable[[], bool], seconds: float = 120.0) -> int:
        """Kills it once `ready` says so; its status is another one where it printed or ended before."""
        until = time.monotonic() + seconds
        while not ready() and time.monotonic() < until:
            if select.select([self.stdout], [], [], 0.005)[0]:
                break
        return self.end(kill=True)


class FreshProcesses:
    """Runs programs where `module` is loaded; starts with the first of them."""

    def __init__(self, module: str, *options: str) -> None:
        self._command = [sys.executable, *options, "-c", _SERVER, module]
        self._server: subprocess.Popen[str] | None = None

    def _ask(self, line: object, name: str = "a program") -> Any:
        if self._server is None:
            self._server = subprocess.Popen(
                self._command, env=environment(), text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        assert self._server.stdin is not None and self._server.stdout is not None
        print(json.dumps(line), file=self._server.stdin, flush=True)
        answer = self._server.stdout.readline()
        if not answer:
            ended, self._server = self._server, None
            raise AssertionError(f"{name}: the server ended with {ended.communicate() and ended.returncode}")
        return json.loads(answer)

    def run(
        self, program: Program, *, name: str = "<program>", cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        words, place = environment(**program.words), str(cwd or Path.cwd())
        line = [program.code, name, program.arguments, words, place, None]
        return subprocess.CompletedProcess(name, *self._ask(line, name))

    def start(self, program: Program, folder: Path) -> Started:
        """A program that goes on beside the test; its pipes lie in `folder`, which is new."""
        folder.mkdir()
        pipes = [str(folder / "stdin"), str(folder / "stdout")]
        for pipe in pipes:
            os.mkfifo(pipe)
        line = [program.code, "<program>", program.arguments, environment(**program.words), str(Path.cwd())]
        pid = self._ask([*line, pipes])
        return Started(pid, open(pipes[0], "w"), open(pipes[1]), lambda: self._ask(pid))

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


def start_fresh(program: Program, folder: Path) -> Started:
    """As `run_fresh`, beside the test."""
    return fresh_processes("torch", "-W", "error").start(program, folder)


def run_fresh(programs: Sequence[Program]) -> list[subprocess.CompletedProcess[str]]:
    """Each program where semobridge_ext has not been imported; warnings are errors."""
    return [fresh_processes("torch", "-W", "error").run(program) for program in programs]


def run_script(
    path: Path, *arguments: object, loaded: str = "open_clip", **words: str
) -> subprocess.CompletedProcess[str]:
    """`python path arguments`, where `loaded` is loaded already."""
    program = Program(path.read_text(encoding="utf-8"), words, [str(a) for a in arguments])
    return fresh_processes(loaded).run(program, name=str(path))
