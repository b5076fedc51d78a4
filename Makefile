# Every target sets up what it needs in .venv. A fresh machine needs Python, a C++ compiler and a package index.
#
#   make demo ARGS="--full"        make test ARGS="-k container"        make setup PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TOOLS := $(VENV)/.tools-installed
INSTALLED := $(VENV)/.bitbranch-installed
PIP := $(BIN)/python -m pip --disable-pip-version-check
NATIVE := CMakeLists.txt $(filter-out native/tests/%,$(wildcard native/*.* native/*/*.*))

.PHONY: setup demo test test-long test-arm bench lint format clean

setup: $(INSTALLED)

# What builds the core lives in the environment, so that the build folder stays valid between builds.
$(TOOLS): constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade pip
	$(PIP) install --quiet --constraint constraints.txt "scikit-build-core>=0.11" "nanobind>=2.4" cmake ninja torch
	@touch $@

# Editable: Python files are used where they lie, and a change in the native ones builds and installs again.
$(INSTALLED): $(TOOLS) pyproject.toml $(NATIVE)
	@for cxx in "$${CXX:-c++}" g++ clang++; do command -v "$$cxx" > /dev/null && exit 0; done; \
		echo "bitbranch needs a C++17 compiler: apt install g++ (or gcc-c++, or clang), or set CXX=" >&2; exit 1
	$(PIP) install --quiet --constraint constraints.txt --no-build-isolation --editable ".[train,bench,dev]"
	@touch $@

demo: setup
	$(BIN)/bitbranch demo --out build/demo $(ARGS)

# One thread for torch in each worker: two teams of threads on the same cores wait for each other.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

test-long: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile -m "long or not long" $(ARGS)

# On an emulated processor; needs a cross compiler and qemu-user, and says so.
test-arm: $(TOOLS)
	$(BIN)/python tools/test_arm.py $(ARGS)

bench: setup
	@set -e; for script in benchmarks/[!_]*.py; do echo "== $$script"; $(BIN)/python "$$script" $(ARGS); done

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
