"""A warm process that forks one run after the other, each with its own fault; see tests/faults/shim.c.

Started with the shim preloaded. One request a line in, as `Runs.ask_all` makes it; out, a list of what
`Answer` holds.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

from tests.faults import namespaces

ACTIONS = {"count": 0, "fail": 1, "short": 2, "kill": 3, "half and kill": 4, "stop": 5}


def arm(home: Path, fault: dict[str, Any]) -> ctypes.CDLL:
    shim = ctypes.CDLL(None)
    shim.faults_trace.restype = ctypes.c_char_p
    shim.faults_fired.restype = ctypes.c_long
    shim.faults_arm(
        str(home / "out").encode(), fault["kinds"].encode(), ctypes.c_long(fault["n"]),
        ACTIONS[fault["action"]], fault["error"], int(fault["sticky"]),
    )  # fmt: skip
    return shim


def drop_rights() -> None:
    """Root obeys the modes of files from here on."""
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None).capset(header, none):
        raise OSError("capset")


def child(request: dict[str, Any], report: int) -> None:
    """One run: how it ended goes to `report`, what it printed to the file of its output."""
    from tests.faults.jobs import JOBS

    home, job = Path(request["home"]), JOBS[request["job"]]
    signal.alarm(60)
    if request["limit"]:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["limit"], request["limit"]))
    if request["plain_user"]:
        drop_rights()
    run = {"run": job.run, "prepare": job.prepare, "older": job.older, "other": job.other}[request["what"]]
    shim = arm(home, request["fault"])
    ended: list[tuple[int, str]] = []

    def once() -> None:
        try:
            assert run is not None
            ended.append((run(home) or 0, ""))
        except Exception as raised:
            ended.append((0, f"{type(raised).__name__}: {raised}"))
            traceback.print_exc()

    threads = [threading.Thread(target=once) for _ in range(request["threads"] - 1)]
    for thread in threads:
        thread.start()
    once()
    for thread in threads:
        thread.join()
    shim.faults_disarm()
    status, error = max(ended)
    rights = ended.count((0, ""))
    found = {
        "status": status,
        "error": error,
        "rights": rights,
        "fired": shim.faults_fired(),
        "pid": os.getpid(),
    }
    os.write(report, json.dumps(found | {"trace": shim.faults_trace().decode()}).encode())


class Run:
    """A forked run, from its start to its report."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.printed = tempfile.TemporaryFile()  # noqa: SIM115 - closed by end
        self.pipe, write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.dup2(self.printed.fileno(), 1)
                os.dup2(self.printed.fileno(), 2)
                os.close(self.pipe)
                if request["apart"]:
                    namespaces.enter()
                child(request, write)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(0)
        os.close(write)

    def wait_for_stop(self) -> None:
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            raise RuntimeError("the run ended before it stopped")

    def end(self) -> dict[str, Any]:
        with os.fdopen(self.pipe, "rb") as pipe:
            report = json.loads(pipe.read() or b"{}")
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self.printed.seek(0)
        text = self.printed.read().decode(errors="replace")
        self.printed.close()
        return {**report, "code": code, "printed": text}


def main() -> None:
    import torch

    torch.set_num_threads(1)  # the children are forked: OpenMP's threads would not come along
    from semobridge_ext.data import load_picto_clip
    from tests.faults import jobs

    load_picto_clip()
    jobs.problem()
    warnings.simplefilter("error")
    # What a run writes of its seconds must not differ from one run to the next.
    time.perf_counter = itertools.count(0.0, 1.0).__next__
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        first, answers = Run(request), []
        if request["fault"]["action"] == "stop":
            first.wait_for_stop()
            time.sleep(request["stopped"])
            beside = {**request, "what": request["beside_what"], "fault": {**request["fault"], "n": 0}}
            others = [Run(beside) for _ in range(request["beside"])]
            answers += [other.end() for other in others]
            os.kill(first.pid, signal.SIGCONT)
        else:
            beside = {**request, "what": request["beside_what"]}
            others = [Run(beside) for _ in range(request["beside"])]
            answers += [other.end() for other in others]
        print(json.dumps([first.end(), *answers]), flush=True)


if __name__ == "__main__":
    main()
