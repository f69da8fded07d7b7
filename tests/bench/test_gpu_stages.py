"""`make gpu-check` whole, with programs that stand in for the compiler, the kernels and the tests."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.support import cuda_stand_in
from tests.support.scripts import BENCH, load_script
from tests.support.source_tree import ROOT, need, need_source, run

# In place of Python: by the program that it is to run.
PYTHON = """#!/bin/sh
for word in "$@"; do
  case "$word" in
    --junitxml=*) junit="${word#--junitxml=}" ;;
    tests/*) file="$word" ;;
  esac
done
case "$*" in
  *kernels.py*) echo "adamw: right"; echo "blend: right"; echo '{"adamw/float32": 2.5e-7}' ;;
  *interpret.py*) test "$CHECK_DEVICE" = cuda && echo '{"worst": {"topk scores/float32": 1e-7}}' ;;
  *measure.py*) rows='{"state": "timed"}, {"state": "refused"}, {"state": "timed"}'
    echo "{\\"rows\\": [$rows]}" > "$3/gpu_bench.json" ;;
  *pytest*) suite="<testsuite name=\\"$file\\" "'tests="3" errors="0" failures="0" skipped="1">'
    case='<testcase name="a"><skipped message="no CUDA kernels"/></testcase>'
    echo "<testsuites>$suite$case</testsuite></testsuites>" > "$junit"
    echo "2 passed, 1 skipped" ;;
  *) echo "kernels built with CUDA 13" ;;
esac
"""
SANITIZER = "#!/bin/sh\necho 'adamw: right'\necho '========= ERROR SUMMARY: 0 errors'\n"
TOOL = "#!/bin/sh\necho done with it\n"


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The script, its products in a folder of the test."""
    need_source()
    monkeypatch.syspath_prepend(str(BENCH / "gpu"))
    script = load_script("gpu/check")
    for module in ("job", "stages"):
        monkeypatch.setattr(sys.modules[module], "PRODUCTS", tmp_path / "products")
    (tmp_path / "products").mkdir()
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    return script


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str, str], Path]:
    """Writes a program that is found before all others."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def write(name: str, text: str) -> Path:
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
        return folder / name

    return write


@pytest.fixture
def stand_ins(check: ModuleType, program: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch):
    """A GPU, a compiler and programs that all do well."""
    cuda_stand_in.install(monkeypatch)
    monkeypatch.delenv("SEMOBRIDGE_CUDA_ARCHITECTURES", raising=False)
    for tool in ("nvcc", "cmake", "ninja", "nvidia-smi"):
        program(tool, TOOL)
    program("compute-sanitizer", SANITIZER)
    monkeypatch.setattr(sys.modules["job"], "PYTHON", str(program("python-stand-in", PYTHON)))
    return program


def recorded(out: Path) -> dict[str, list[dict]]:
    stages = json.loads((out / "gpu_check.json").read_text())["stages"]
    return {name: stage["steps"] for name, stage in stages.items()}


def states(out: Path) -> dict[str, str]:
    return {f"{name}: {s['name']}": s["state"] for name, steps in recorded(out).items() for s in steps}


# -- arguments ---------------------------------------------------------------------------------------

BAD = {
    "no OUT": ([], r"OUT must name a folder for the reports, got nothing; make gpu-check OUT=folder"),
    "blank OUT": (["--out", " "], r"OUT must name a folder"),
    "below a file": (["--out", "/etc/passwd/x"], r"OUT must be a folder that can be written, got /etc/pas"),
    "a file": (["--out", "/etc/passwd"], r"OUT must be a folder that can be written"),
    "no such stage": (["--out", "{}", "--stage", "kernels"],
                      r"STAGE must be one of build, tests, sanitizer, bench, got 'kernels'; leave it out"),
    "two stages": (["--out", "{}", "--stage", "build tests"], r"STAGE must be one of"),
    "no number": (["--out", "{}", "--seconds", "soon"], r"SECONDS must be a number above 0, got 'soon'; l"),
    "no time": (["--out", "{}", "--seconds", "0"], r"SECONDS must be a number above 0"),
    "endless": (["--out", "{}", "--seconds", "inf"], r"SECONDS must be a number above 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_wrong_arguments(check: ModuleType, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words, message = BAD[name]
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as stop:
        check.main([w.replace("{}", str(out)) for w in words])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert re.match(f"gpu_check: {message}", error)
    assert not out.exists()


def test_a_folder_that_cannot_be_written(
    check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_bytes", refused)
    with pytest.raises(SystemExit):
        check.main(["--out", str(tmp_path)])
    assert f"got {tmp_path} (Permission denied); name another one" in capsys.readouterr().err


def test_make_hands_its_words_on(tmp_path: Path):
    need("make", "run a target")
    for words, said in (
        ([], "OUT must name a folder"),
        ([f"OUT={tmp_path}", "STAGE=all"], "STAGE must be one of"),
        ([f"OUT={tmp_path}", "SECONDS=-1"], "SECONDS must be a number"),
    ):
        env = {k: v for k, v in os.environ.items() if k not in ("OUT", "STAGE", "SECONDS")}
        done = run("make", "-s", "gpu-check", f"PYTHON={sys.executable}", *words, cwd=ROOT, env=env)
        assert done.returncode == 2 and done.stderr.startswith(f"gpu_check: {said}"), done.stderr
    assert os.listdir(tmp_path) == []


# -- whole runs --------------------------------------------------------------------------------------


def test_all_stages(check: ModuleType, stand_ins, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    assert check.main(["--out", str(out)]) == 0
    assert set(states(out).values()) == {"passed"}
    steps = recorded(out)
    assert [s["name"] for s in steps["build"]] == ["configure", "compile", "import", "kernels"]
    assert steps["build"][0]["told"] == "for sm_90: done with it"
    assert [s["name"] for s in steps["sanitizer"]] == ["racecheck", "synccheck", "memcheck", "initcheck"]
    assert all(s["told"] == "1 cases, ERROR SUMMARY: 0 errors" for s in steps["sanitizer"])
    files = [s["name"] for s in steps["tests"][:-1]]
    assert "tests/gpu/test_public.py" in files and "tests/gpu/test_streams.py" in files
    assert (
        steps["tests"][0]["told"] == "2 passed, 1 skipped" and steps["tests"][-1]["name"] == "Triton kernels"
    )
    assert steps["bench"][0]["found"] == {"refused": 1, "timed": 2}
    record = json.loads((out / "gpu_check.json").read_text())["machine"]
    assert record["device"] == "Test GPU" and record["capability"] == "sm_90" and record["memory"] == "80 GiB"
    text = (out / "gpu_check.md").read_text()
    assert "| adamw/float32 | 2.5e-07 |" in text and "| Triton topk scores/float32 | 1.0e-07 |" in text
    assert os.uname().nodename not in text.split() and text in capsys.readouterr().out
    suites = ET.parse(out / "gpu_tests.xml").getroot().findall("testsuite")
    assert [s.get("name") for s in suites] == files
    # What a machine may send back: few files, plainly named.
    assert len(os.listdir(out)) == 8
    assert "$ " in (out / "gpu_build.log").read_text()


def test_a_stage_that_fails_does_not_hide_the_others(check: ModuleType, stand_ins, tmp_path: Path):
    stand_ins("cmake", "#!/bin/sh\necho 'ninja: build stopped: 1 | 2'\ntest \"$1\" != --build\n")
    stand_ins("compute-sanitizer", SANITIZER.replace("0 errors", "3 errors") + "exit 1\n")
    assert check.main(["--out", str(tmp_path)]) == 1
    found = states(tmp_path)
    assert found["build: compile"] == "failed" and "build: kernels" not in found
    assert found["sanitizer: memcheck"] == "failed" and found["bench: benches"] == "passed"
    text = (tmp_path / "gpu_check.md").read_text()
    assert "| failed | ninja: build stopped: 1 \\| 2 |" in text and "ERROR SUMMARY: 3 errors" in text


def test_a_configuration_that_fails_ends_the_build(check: ModuleType, stand_ins, tmp_path: Path):
    stand_ins("cmake", "#!/bin/sh\necho no compiler\nexit 1\n")
    assert check.main(["--out", str(tmp_path), "--stage", "build"]) == 1
    assert states(tmp_path) == {"build: configure": "failed"}


def test_a_wrong_kernel_is_told_with_what_was_right(check: ModuleType, stand_ins, tmp_path: Path):
    wrong = "echo 'AssertionError: kernel/float32 blend: worst at (3, 4)'; exit 1 ;;"
    stand_ins("python-stand-in", re.sub(r"echo '\{\"adamw.*?;;", wrong, PYTHON))
    assert check.main(["--out", str(tmp_path), "--stage", "build"]) == 1
    assert recorded(tmp_path)["build"][3]["told"].startswith(
        "2 cases right, then: AssertionError: kernel/float32"
    )


def test_a_stage_that_breaks_is_told(check: ModuleType, stand_ins, tmp_path: Path, monkeypatch):
    def broken(_: object):
        yield check.Step("first", "passed", "")
        raise KeyError("second")

    monkeypatch.setitem(check.STAGES, "build", broken)
    assert check.main(["--out", str(tmp_path), "--stage", "build"]) == 1
    assert recorded(tmp_path)["build"][1]["told"] == "KeyError: 'second'"


def test_later_calls_keep_what_earlier_ones_found(check: ModuleType, stand_ins, tmp_path: Path):
    for stage in ("sanitizer", "bench", "sanitizer"):
        assert check.main(["--out", str(tmp_path), "--stage", stage, "--seconds", "99.5"]) == 0
    assert list(recorded(tmp_path)) == ["sanitizer", "bench"] and len(recorded(tmp_path)["sanitizer"]) == 4
    for damaged in ("", "[]", '{"stages": 3}', '{"stages": {"bench": 1}}'):
        (tmp_path / "gpu_check.json").write_text(damaged)
        assert check.main(["--out", str(tmp_path), "--stage", "bench"]) == 0
        assert list(recorded(tmp_path)) == ["bench"]


def test_what_is_missing_is_named_at_once(check: ModuleType, stand_ins, tmp_path: Path, monkeypatch):
    stages = sys.modules["stages"]
    lacking = stages.lacking
    monkeypatch.setattr(
        stages, "lacking", lambda tools, modules: lacking([*tools, "no-tool"], [*modules, "no_m"])
    )
    monkeypatch.setattr(stages, "which", lambda tool: None if tool.endswith(("tool", "sanitizer")) else tool)
    assert check.main(["--out", str(tmp_path)]) == 1
    for name, steps in recorded(tmp_path).items():
        assert [s["state"] for s in steps] == ["failed"]
        assert steps[0]["told"].startswith(
            "needs compute-sanitizer" if name == "sanitizer" else "needs no-tool, no_m"
        )


def test_without_triton_the_rest_is_tested(check: ModuleType, stand_ins, tmp_path: Path, monkeypatch):
    stages = sys.modules["stages"]
    monkeypatch.setattr(stages, "lacking", lambda tools, modules: [m for m in modules if m == "triton"])
    assert check.main(["--out", str(tmp_path), "--stage", "tests"]) == 0
    assert recorded(tmp_path)["tests"][-1]["told"] == "Triton is not installed"


def test_without_a_gpu(check: ModuleType, stand_ins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It compiles where it is told what for, and says what it lacks."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert check.main(["--out", str(tmp_path), "--stage", "build"]) == 1
    told = recorded(tmp_path)["build"][0]["told"]
    assert told == "no GPU to build for; set SEMOBRIDGE_CUDA_ARCHITECTURES, as 90 for sm_90"
    monkeypatch.setenv("SEMOBRIDGE_CUDA_ARCHITECTURES", "80")
    assert check.main(["--out", str(tmp_path), "--stage", "build"]) == 0
    assert recorded(tmp_path)["build"][0]["told"].startswith("for sm_80")
    assert "device none" in (tmp_path / "gpu_check.md").read_text()


def test_without_torch_the_machine_is_still_told(check: ModuleType, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert check.machine()["torch"] == "none"


# -- files of tests ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "state", "told"),
    [
        ("echo '1 failed'; exit 1", "failed", "1 failed"),
        ("echo 'no tests ran'; exit 5", "skipped", "nothing ran: no tests ran"),
        ("echo begun; sleep 30", "stopped", "at its limit; the log says how far: begun"),
    ],
)
def test_a_file_that_does_not_do_well(
    check: ModuleType, stand_ins, tmp_path: Path, monkeypatch, script: str, state: str, told: str
):
    """Its suite is made up where pytest wrote none; the next file runs."""
    stages = sys.modules["stages"]
    python = PYTHON.replace("  *pytest*)", f"  *test_first.py*) {script} ;;\n  *pytest*)")
    stand_ins("python-stand-in", python)
    monkeypatch.setattr(
        stages, "gpu_files", lambda: [Path("tests/test_first.py"), Path("tests/test_second.py")]
    )
    monkeypatch.setattr(stages, "FILE_LIMIT", 1.0)
    assert check.main(["--out", str(tmp_path), "--stage", "tests"]) == (state != "skipped")
    first, second, _ = recorded(tmp_path)["tests"]
    assert (first["state"], first["told"], second["state"]) == (state, told, "passed")
    suites = ET.parse(tmp_path / "gpu_tests.xml").getroot().findall("testsuite")
    assert [s.get("name") for s in suites] == ["tests/test_first.py", "tests/test_second.py"]
    assert (error := suites[0].find("testcase/error")) is not None and told.split(": ")[-1] in error.get(
        "message", ""
    )


def test_a_file_whose_tests_were_all_skipped_is_not_passed(
    check: ModuleType, stand_ins, tmp_path: Path, monkeypatch
):
    stand_ins("python-stand-in", PYTHON.replace('skipped="1"', 'skipped="3"'))
    monkeypatch.setattr(sys.modules["stages"], "gpu_files", lambda: [Path("tests/test_first.py")])
    assert check.main(["--out", str(tmp_path), "--stage", "tests"]) == 0, "Triton's kernels passed"
    assert recorded(tmp_path)["tests"][0]["told"] == "nothing ran: no CUDA kernels"
    stand_ins(
        "python-stand-in",
        PYTHON.replace('skipped="1"', 'skipped="3"').replace("*interpret.py*)", "*interpret.py*) exit 1;"),
    )
    assert check.main(["--out", str(tmp_path), "--stage", "tests"]) == 1, "nothing passed"


def test_the_gpu_s_files_are_those_with_the_mark(check: ModuleType):
    found = {str(f) for f in sys.modules["stages"].gpu_files()}
    assert {f"tests/gpu/{f.name}" for f in (ROOT / "tests" / "gpu").glob("test_*.py")} <= found
    assert "tests/engines/tower_descent/test_choice.py" in found and len(found) < 12


@pytest.mark.slow
def test_the_gpu_s_files_need_torch_and_pytest_alone(check: ModuleType):
    """Collected, and the benches imported, without open_clip, hypothesis and tqdm."""
    program = (
        "import sys\n"
        "for name in ('open_clip', 'hypothesis', 'tqdm', 'pytest_benchmark'): sys.modules[name] = None\n"
        "import pytest, measure\n"
        "words = ['--collect-only', '-q', '-m', 'gpu', '-p', 'no:cacheprovider']\n"
        "sys.exit(pytest.main([*words, *sys.argv[1:]]))\n"
    )
    own = sys.modules["job"].environment(PYTHONPATH=os.pathsep.join((str(ROOT), str(BENCH / "gpu"))))
    off = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = run(sys.executable, "-c", program, *sys.modules["stages"].gpu_files(), cwd=ROOT, env=own | off)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.rsplit("/", 1)[0].split()[-1]) > 80


# -- programs under a limit --------------------------------------------------------------------------


def gone(pid: int) -> bool:
    """Whether the process ends within some seconds of its kill; its last state may be that of a zombie."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_a_program_and_its_children_end_at_the_limit(check: ModuleType, tmp_path: Path):
    job = check.Job("tests", tmp_path, 100.0)
    done = job.run("sh", "-c", "sleep 60 & echo $!; wait", limit=1.0)
    assert done.stopped and done.state() == "stopped" and gone(int(done.last_line))
    assert "stopped after 1 s" in job.log.read_text() and job.left < 99.5
    silent = job.run("true")
    assert silent.state() == "passed" and silent.last_line == "no output"


def test_the_stage_s_end_comes_before_a_program_s_limit(check: ModuleType, tmp_path: Path):
    job = check.Job("tests", tmp_path, 0.0)
    begin = time.monotonic()
    assert job.run("sleep", "60", limit=50).stopped and time.monotonic() - begin < 20


def test_children_see_the_tree_and_the_caller_s_path(check: ModuleType, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/somewhere/site")
    monkeypatch.setenv("SEMOBRIDGE_BACKEND", "eager")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    job = check.Job("tests", tmp_path, 100.0)
    told = job.run(
        "sh", "-c", "echo $PYTHONPATH-$SEMOBRIDGE_BACKEND-$TRITON_INTERPRET-$OWN", OWN="x"
    ).last_line
    assert told == f"{ROOT}{os.pathsep}/somewhere/site---x"


@pytest.mark.slow
def test_a_run_that_is_stopped_keeps_what_it_found(program: Callable[[str, str], Path], tmp_path: Path):
    """And takes its programs along."""
    need_source()
    pid = tmp_path / "pid"
    program(
        "compute-sanitizer",
        f"#!/bin/sh\ncase $2 in racecheck) echo clean;; *) echo $$ > {pid}; sleep 60;; esac\n",
    )
    out = tmp_path / "out"
    words = [sys.executable, BENCH / "gpu" / "check.py", "--out", out, "--stage", "sanitizer"]
    with subprocess.Popen([str(w) for w in words], cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        end = time.monotonic() + 120
        while not pid.is_file() and time.monotonic() < end:
            time.sleep(0.1)
        process.terminate()
        assert process.wait(timeout=30) == 143
    assert states(out) == {"sanitizer: racecheck": "passed"}
    assert gone(int(pid.read_text()))


# -- the tree ----------------------------------------------------------------------------------------


def test_the_tree_travels(check: ModuleType, tmp_path: Path):
    """A machine with a GPU gets a copy of at most 64 MiB; what is built in the tree does not count."""
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "object").write_bytes(b"x" * 100)
    (tmp_path / "module.so").write_bytes(b"x" * 100)
    (tmp_path / "source.cu").write_bytes(b"x" * 7)
    assert check.tree_bytes(tmp_path) == 7
    assert 1 << 20 < check.tree_bytes() < 48 << 20, "a bound that leaves room below 64 MiB"
