"""What is shipped and how it builds: sdist, wheel, no torch at build, readable failures."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import semobridge_ext as sb
from tests.support.source_tree import ROOT, environment, generator, need, need_source, run

pytestmark = pytest.mark.slow

JUNK = shutil.ignore_patterns(
    ".git", ".venv*", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis", ".benchmarks"
)


def need_module(name: str) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed; needed to build without isolation (pip install {name})")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, so that nothing is written beside the checkout; build leftovers stay behind."""
    need_source()
    copy = tmp_path_factory.mktemp("source") / "semobridge-ext"
    shutil.copytree(ROOT, copy, ignore=JUNK)
    return copy


@pytest.fixture(scope="module")
def sdist(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    need_module("build")
    need_module("setuptools")
    out = tmp_path_factory.mktemp("dist")
    done = run(
        sys.executable, "-m", "build", "--sdist", "--no-isolation", "--skip-dependency-check",
        "--outdir", out, cwd=source,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.tar.gz"))


@pytest.fixture
def no_torch(tmp_path: Path) -> dict[str, str]:
    """An environment in which `import torch` is an error."""
    (tmp_path / "blocked" / "torch").mkdir(parents=True)
    (tmp_path / "blocked" / "torch" / "__init__.py").write_text(
        "raise ImportError('torch imported at build')\n"
    )
    return os.environ | {"PYTHONPATH": str(tmp_path / "blocked")}


def without(*tools: str) -> dict[str, str]:
    """The environment with a PATH that lacks these tools but keeps what stands beside them."""
    kept = []
    for folder in os.environ["PATH"].split(os.pathsep):
        if not any((Path(folder) / tool).exists() for tool in tools):
            kept.append(folder)
    drop = ("CUDACXX", "CUDA_PATH", "CUDA_HOME", "CUDAToolkit_ROOT", "CXX", "SEMOBRIDGE_CUDA")
    return {k: v for k, v in os.environ.items() if k not in drop} | {"PATH": os.pathsep.join(kept)}


def test_sdist_holds_what_a_build_and_its_tests_need(sdist: Path):
    with tarfile.open(sdist) as archive:
        names = {n.partition("/")[2] for n in archive.getnames()}
    wanted = {"CMakeLists.txt", "pyproject.toml", "setup.py", "README.md", "LICENSE", "NOTICE", "Makefile"}
    wanted |= {"CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "SECURITY.md", ".pre-commit-config.yaml"}
    for folder in ("cmake", "csrc", "python", "semobridge_ext", "tests", "bench", "docs", "examples"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".so":
                wanted.add(str(path.relative_to(ROOT)))
    assert len(wanted) > 40
    assert not wanted - names, f"the sdist lacks {sorted(wanted - names)}"
    junk = [n for n in names if re.search(r"\.so$|\.pyc$|__pycache__|^\.git|^build/|\.egg-info/.*\.so", n)]
    assert not junk, f"the sdist carries {junk}"


def test_build_description_does_not_mention_torch(source: Path):
    pattern = re.compile(r"import torch|find_package\(Torch|<torch/|<ATen/|<c10/|torch\.utils\.cpp_extension")
    files = [source / "setup.py", source / "CMakeLists.txt"]
    files += [
        p for d in ("csrc", "python") for p in (source / d).rglob("*") if p.suffix != ".pyi" and p.is_file()
    ]
    assert len(files) > 15
    for path in files:
        assert not pattern.search(path.read_text()), path
    requires = re.search(
        r"\[build-system\]\s*requires = \[(.*?)\]", (source / "pyproject.toml").read_text(), re.DOTALL
    )
    assert requires and "pybind11" in requires[1] and "torch" not in requires[1]


def test_wheel_from_sdist_without_torch(sdist: Path, no_torch: dict[str, str], tmp_path: Path):
    """As `make wheel` builds it: for an older glibc than this machine's, which auditwheel confirms."""
    for module in ("pybind11", "setuptools", "build", "ziglang", "auditwheel"):
        need_module(module)
    need("cmake", "build the wheel")
    need("ninja", "build the wheel")
    with tarfile.open(sdist) as archive:
        # Python 3.10 and 3.11 have the filter from some patch on; the archive is our own.
        archive.extractall(tmp_path, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    tree = next(p for p in tmp_path.iterdir() if (p / "setup.py").is_file())
    command = (sys.executable, "-m", "build", "--wheel", "--no-isolation", "--skip-dependency-check")
    words = {"SEMOBRIDGE_CUDA": "off", "SEMOBRIDGE_GLIBC": "2.28"}
    done = run(*command, "--outdir", tmp_path / "wheel", cwd=tree, env=no_torch | words)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "torch imported" not in done.stdout + done.stderr

    built = next((tmp_path / "wheel").glob("*.whl"))
    told = run(sys.executable, "-m", "auditwheel", "show", built).stdout
    tag = re.search(r"consistent\s+with\s+the\s+following\s+platform\s+tag:\s+\"manylinux_2_(\d+)_", told)
    assert tag is not None and int(tag[1]) <= 28, told
    installed = tmp_path / "installed"
    with zipfile.ZipFile(built) as wheel:
        names = wheel.namelist()
        wheel.extractall(installed)
    assert any(re.fullmatch(r"semobridge_ext/_C\..*\.so", n) for n in names)
    assert {"semobridge_ext/_C.pyi", "semobridge_ext/py.typed"} <= set(names)
    page = {str(p.relative_to(ROOT)) for p in (ROOT / "semobridge_ext/cli/served").iterdir()}
    assert len(page) == 4 and page <= set(names), f"the wheel lacks {sorted(page - set(names))}"
    strays = [n for n in names if not re.match(r"semobridge_ext(-[\w.]+\.dist-info)?/", n)]
    assert not strays, f"the wheel installs beside its package: {strays}"
    python_files = {str(p.relative_to(ROOT)) for p in (ROOT / "semobridge_ext").rglob("*.py")}
    assert not python_files - set(names), f"the wheel lacks {sorted(python_files - set(names))}"

    # The tests against the installed package, nowhere near the source tree.
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copytree(ROOT / "tests", elsewhere / "tests", ignore=JUNK)
    chosen = ("tests/runtime/test_backend.py", "tests/ops/project_normalize/test_errors.py")
    done = run(
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen, cwd=elsewhere,
        env=environment(PYTHONPATH=str(installed)),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    program = "import semobridge_ext as sb; print(sb.__file__); print(sb.build_info()['isa_available'])"
    told = run(
        sys.executable, "-c", program, cwd=elsewhere, env=environment(PYTHONPATH=str(installed))
    ).stdout
    assert str(installed) in told
    assert told.splitlines()[-1] == str(sb.build_info()["isa_available"]), "the wheel misses instruction sets"


# -- failures that explain themselves ----------------------------------------------------------------


def cmake(source: Path, build: Path, *options: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    program = need("cmake", "configure a build")
    return run(program, "-S", source, "-B", build, *generator(), "-DSEMOBRIDGE_PYTHON=OFF", *options, env=env)


def flat(done: subprocess.CompletedProcess[str]) -> str:
    """CMake breaks its messages into lines."""
    return " ".join((done.stdout + done.stderr).split())


def test_missing_compiler(source: Path):
    need_module("pybind11")
    need_module("setuptools")
    done = run(
        sys.executable, "setup.py", "build_ext", cwd=source, env=os.environ | {"CXX": "no-such-compiler"}
    )
    assert done.returncode != 0
    assert re.search(
        r"C\+\+20 compiler is needed and 'no-such-compiler' was not found; install g\+\+", flat(done)
    )
    assert "Traceback" not in done.stderr


CLANG_15 = {"": 1, "_major": 15, "_minor": 0, "_patchlevel": 0}  # macros by which CMake knows it


@pytest.mark.parametrize("claims,told", [("9", r"needs g\+\+ 11 or newer .*found g\+\+ 9\.")])
def test_compiler_too_old(source: Path, tmp_path: Path, claims: str, told: str):
    real = need("g++", "pose as an old compiler")
    old = tmp_path / "g++-old"
    old.write_text(f'#!/bin/sh\nexec {real} -Wno-builtin-macro-redefined -D__GNUC__={claims} "$@"\n')
    old.chmod(0o755)
    done = cmake(source, tmp_path / "build", "-DSEMOBRIDGE_CUDA=off", env=os.environ | {"CXX": str(old)})
    assert done.returncode != 0
    assert re.search(told, flat(done)), flat(done)
    assert "set CXX=g++-12" in flat(done)


def test_clang_builds_no_module(source: Path, tmp_path: Path):
    """It calls an OpenMP runtime that PyTorch does not load: the module would compile and never import."""
    real = need("g++", "pose as clang")
    posing = tmp_path / "clang-15"
    macros = " ".join(f"-D__clang{part}__={value}" for part, value in CLANG_15.items())
    posing.write_text(f'#!/bin/sh\nexec {real} {macros} "$@"\n')
    posing.chmod(0o755)
    words = os.environ | {"CXX": str(posing)}
    done = cmake(source, tmp_path / "core", "-DSEMOBRIDGE_CUDA=off", env=words)
    assert done.returncode == 0 and "identification is Clang 15.0.0" in flat(done), flat(done)
    done = cmake(source, tmp_path / "module", "-DSEMOBRIDGE_CUDA=off", "-DSEMOBRIDGE_PYTHON=ON", env=words)
    assert done.returncode != 0
    assert "The Python module needs g++ 11 or newer, found clang at" in flat(done), flat(done)
    assert "set CXX=g++" in flat(done)


def test_cuda_on_without_nvcc(source: Path, tmp_path: Path):
    env = without("nvcc")
    if not shutil.which("c++", path=env["PATH"]):
        pytest.skip("nvcc stands in the compiler's own folder; it cannot be hidden alone")
    on = cmake(source, tmp_path / "on", "-DSEMOBRIDGE_CUDA=on", env=env)
    assert on.returncode != 0
    assert "SEMOBRIDGE_CUDA=on but no nvcc was found. Install the CUDA toolkit" in flat(on)
    auto = cmake(source, tmp_path / "auto", env=env)
    assert auto.returncode == 0, flat(auto)


def test_cuda_switch_with_another_word(source: Path, tmp_path: Path):
    done = cmake(source, tmp_path / "build", "-DSEMOBRIDGE_CUDA=yes", env=dict(os.environ))
    assert done.returncode != 0
    assert "SEMOBRIDGE_CUDA must be auto, on or off, got 'yes'" in flat(done)
