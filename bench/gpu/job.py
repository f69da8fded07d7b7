"""What the stages of check.py share: a step's result, and programs under a limit, their output kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PRODUCTS = ROOT / "build" / "gpu-check"  # what is built, compiled and cached; reports go to OUT
PYTHON = sys.executable
LEAST = 1.0  # seconds that a program gets, however little is left


class Step(NamedTuple):
    """One line of the report."""

    name: str
    state: str  # passed, failed, stopped (at its limit) or skipped
    told: str
    found: Any = None


class Done(NamedTuple):
    status: int
    stopped: bool  # killed at its limit
    text: str  # stdout and stderr together

    @property
    def last_line(self) -> str:
        lines = [line for line in self.text.splitlines() if line.strip()]
        return lines[-1].strip() if lines else "no output"

    def state(self) -> str:
        return "stopped" if self.stopped else "failed" if self.status else "passed"


def environment(**words: str) -> dict[str, str]:
    """Of a child: this tree first, then the caller's PYTHONPATH; nothing is written into the sources."""
    path = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    tools = [os.environ.get("PATH", os.defpath), str(Path(PYTHON).parent)]  # cmake and ninja as pip puts them
    kept = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "SEMOBRIDGE_BACKEND")}
    own = {
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "PATH": os.pathsep.join(tools),
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "TRITON_CACHE_DIR": str(PRODUCTS / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(PRODUCTS / "inductor"),
        # What a user gets who has measured nothing.
        "SEMOBRIDGE_THRESHOLDS": str(PRODUCTS / "none.json"),
    }
    return kept | own | words


class Job:
    """One stage: its folder, its log and its time.

    Args:
        stage: its name; the log is ``gpu_<stage>.log``.
        out: folder of the reports.
        seconds: for all its steps together.
    """

    def __init__(self, stage: str, out: Path, seconds: float) -> None:
        self.out, self.log = out, out / f"gpu_{stage}.log"
        self._end = time.monotonic() + seconds
        self.log.write_text("", encoding="utf-8")

    @property
    def left(self) -> float:
        """Seconds, never negative."""
        return max(self._end - time.monotonic(), 0.0)

    def run(self, *words: object, limit: float | None = None, **words_of_environment: str) -> Done:
        """A program in the source tree: its output is shown and logged as it comes, its children end with it.

        Args:
            words: the command.
            limit: seconds after which it and its children are killed; the stage's own end comes first.
        """
        seconds = max(min(self.left, self.left if limit is None else limit), LEAST)
        command, stopped, lines = [str(w) for w in words], threading.Event(), []
        # A group of its own, to be killed whole; not a session, which would outlive this process.
        with (
            self.log.open("a", encoding="utf-8") as log,
            subprocess.Popen(
                command, cwd=ROOT, env=environment(**words_of_environment), stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, text=True, errors="replace", preexec_fn=os.setpgrp,
            ) as process,
        ):  # fmt: skip

            def kill() -> None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)

            def stop() -> None:
                stopped.set()
                kill()

            timer = threading.Timer(seconds, stop)
            timer.start()
            try:
                assert process.stdout is not None
                log.write(f"$ {' '.join(command)}\n")
                for line in process.stdout:
                    lines.append(line)
                    for sink in (sys.stdout, log):
                        sink.write(line)
                        sink.flush()
                process.wait()
            finally:
                timer.cancel()
                kill()
            if stopped.is_set():
                log.write(f"stopped after {seconds:.0f} s\n")
        return Done(process.returncode, stopped.is_set(), "".join(lines))
