"""Programs that need an interpreter of their own, many for the price of one import of PyTorch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple

from tests.support.source_tree import environment, run

# Forks where PyTorch is loaded, no thread has been started, and semobridge_ext is still unknown.
_SERVER = """
import json, os, sys, tempfile, traceback
import torch
assert "semobridge_ext" not in sys.modules
results = []
for code, words in json.loads(sys.argv[1]):
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                os.environ.update(words)
                exec(compile(code, "<program>", "exec"), {"__name__": "__main__"})
                status = 0
            except SystemExit as ended:
                status = ended.code or 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode())
        results.append([status, *texts])
print(json.dumps(results))
"""


class Program(NamedTuple):
    code: str
    words: dict[str, str]  # of its environment, read when semobridge_ext is imported


def run_fresh(programs: Sequence[Program]) -> list[subprocess.CompletedProcess[str]]:
    """Each program where semobridge_ext has not been imported; warnings are errors."""
    done = run(sys.executable, "-W", "error", "-c", _SERVER, json.dumps(programs), env=environment())
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    return [
        subprocess.CompletedProcess(program.code, *result)
        for program, result in zip(programs, found, strict=True)
    ]
