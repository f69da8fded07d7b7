"""Scripts in processes of their own that find PyTorch and open_clip loaded: seconds less for each."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.support.source_tree import environment

# Forks a child for every line of its input, while nothing has been computed and semobridge_ext is unknown.
_SERVER = """
import atexit, json, os, sys, tempfile, threading, traceback, types
import open_clip
assert "semobridge_ext" not in sys.modules and threading.active_count() == 1
answers = os.fdopen(os.dup(1), "w")  # what a script prints is not to stand among them
for line in sys.stdin:
    script, place = json.loads(line)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.chdir(place)
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                sys.argv, sys.path[0] = [script], os.path.dirname(script)
                main = sys.modules["__main__"] = types.ModuleType("__main__")
                main.__file__ = script
                exec(compile(open(script, encoding="utf-8").read(), script, "exec"), main.__dict__)
                status = 0
            except SystemExit as ended:
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


class WarmProcess:
    """One per test process; `run` takes a script as `python SCRIPT` would, in the folder `cwd`."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[str] | None = None

    def run(self, script: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
        if self._server is None:
            self._server = subprocess.Popen(
                [sys.executable, "-c", _SERVER], env=environment(), text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )  # fmt: skip
        assert self._server.stdin is not None and self._server.stdout is not None
        print(json.dumps([str(script), str(cwd)]), file=self._server.stdin, flush=True)
        answer = self._server.stdout.readline()
        assert answer, f"{script.name}: the server ended with {self._server.wait()}"
        return subprocess.CompletedProcess(str(script), *json.loads(answer))

    def close(self) -> None:
        if self._server is not None:
            self._server.communicate()
            self._server = None
