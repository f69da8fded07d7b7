# Each target makes its own virtual environment and installs what it needs; nothing else is assumed but
# Python 3.10 or newer with venv, a C++20 compiler and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Processes that share the tests; a session of one process: `pytest tests`.
WORKERS ?= $(shell n=$$(nproc); echo $$(( n < 8 ? n : 8 )))
PYTEST := $(BIN)/python -m pytest tests -n $(WORKERS) --dist worksteal
# Containers often forbid Python to keep compiled modules: each worker and child would compile the tree again.
export PYTHONDONTWRITEBYTECODE :=
SOURCES := pyproject.toml setup.py CMakeLists.txt $(shell find cmake csrc python -type f 2>/dev/null)

.PHONY: demo test test-all test-ci sanitize fuzz bench docs wheel gpu-check lint clean

demo: $(VENV)/.demo  ## few shots, retrieval and speed on real drawings: tables and demo.png
	$(BIN)/semobridge-ext demo --out demo.png

test: $(VENV)/.test  ## what a change is likely to break
	$(PYTEST) -m "not slow"

test-all: test  ## and mutations, sanitizers, every GPU architecture, wheels, the long studies
	$(PYTEST) -m slow

test-ci: test  ## test-all without the campaigns: what continuous integration has time for
	$(PYTEST) -m "slow and not campaign"

sanitize: $(VENV)/.test  ## random calls under sanitizers, for minutes: FUZZ_SECONDS, FUZZ_SEED
	FUZZ_SECONDS=$${FUZZ_SECONDS:-120} $(BIN)/python -m pytest -s tests/sanitizers

fuzz: $(VENV)/.test  ## guided fuzzing of loaders (atheris) and kernels (clang): FUZZ_SECONDS each, FUZZ_SEED
	$(BIN)/python -m tests.fuzz.guided.run

bench: $(VENV)/.test  ## the benchmarks and their table; run on a quiet machine
	mkdir -p bench/results
	$(BIN)/python -m pytest bench --benchmark-json=bench/results/bench.json
	$(BIN)/python bench/report.py bench/results/bench.json --out bench/results/bench.md

docs: $(VENV)/.test  ## the documentation as a site, build/docs; warnings are errors, code blocks run
	$(BIN)/python -m pytest -q tests/packaging/test_documentation.py -m "not slow"
	$(BIN)/python -m sphinx -b html -W --keep-going -q docs build/docs

wheel: $(VENV)/.test  ## dist/*.whl for glibc 2.28 or newer, tried in an environment without a compiler
	$(BIN)/python .ci/wheel.py

gpu-check:  ## with a GPU, nvcc and PyTorch: OUT=folder, STAGE=build|tests|sanitizer|bench (all), SECONDS=540 each
	$(PYTHON) bench/gpu/check.py --out "$(OUT)" --stage "$(STAGE)" --seconds "$(SECONDS)"

lint: $(VENV)/.test  ## formatting, style, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	git ls-files csrc python tests | grep -E '\.(cpp|h|cu|cuh)$$' | xargs $(BIN)/clang-format --dry-run -Werror

clean:
	rm -rf $(VENV) build dist *.egg-info

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(SOURCES) | $(BIN)/python
	$(PIP) install --quiet ".[plots]"
	touch $@

# Editable, so that the tests see the tree they came with.
$(VENV)/.test: $(SOURCES) | $(BIN)/python
	$(PIP) install --quiet --editable ".[plots,search,test,docs]"
	touch $@
