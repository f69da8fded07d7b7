"""The watched modules' own tests, in a process without the plain emulation, whose state disturbs them."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.cuda_emulation.watched import ALONE
from tests.support.source_tree import ROOT, environment, run


def test_in_a_process_of_its_own():
    files = [Path(__file__).with_name(name) for name in ("test_races.py", "test_traffic.py")]
    words = ("-q", "-n", "0", "-p", "no:cacheprovider", "-m", "not slow")
    done = run(sys.executable, "-m", "pytest", *words, *files, env=environment(**{ALONE: "1"}), cwd=ROOT)
    print(done.stdout[-4000:])
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout
