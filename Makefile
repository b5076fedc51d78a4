# Every target sets up what it needs in .venv. A fresh machine needs Python, a C++ compiler and a package index.
#
#   make demo ARGS="--full"        make test ARGS="-k container"        make setup PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TOOLS := $(VENV)/.tools-installed
INSTALLED := $(VENV)/.bitbranch-installed
PEERS := $(VENV)/.peers-installed
PIP := $(BIN)/python -m pip --disable-pip-version-check
NATIVE := CMakeLists.txt $(filter-out native/tests/%,$(wildcard native/*.* native/*/*.*))

.PHONY: setup demo test test-long test-arm bench bench-full lint format clean fuzz sanitize sanitize-short

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

# The quick ones; bench-full measures every figure beside all other engines, goes on where it was interrupted, and
# prints the table. About 17 minutes.
bench: setup
	$(BIN)/python benchmarks/conv_layer.py $(ARGS)
	$(BIN)/python benchmarks/footprint.py

bench-full: $(PEERS)
	$(BIN)/python benchmarks/full.py $(ARGS)

$(PEERS): $(INSTALLED)
	$(PIP) install --quiet --constraint constraints.txt --no-build-isolation --editable ".[peers]"
	@touch $@

# Random programs and networks on every executor; ARGS="--seconds 600 --seed 1".
fuzz: setup
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz.py --count 10000 $(ARGS)

# The engine's tests on cores that check memory, undefined behaviour and races as they run.
ENGINE_TESTS := tests/test_engine.py tests/test_first_layer.py tests/test_dot.py tests/test_winograd.py tests/test_callers.py tests/test_inputs.py
sanitize: setup
	tools/sanitize.sh address $(VENV) $(ENGINE_TESTS) tests/test_program.py tests/test_decompose.py $(ARGS)
	tools/sanitize.sh thread $(VENV) $(ENGINE_TESTS) $(ARGS)

sanitize-short: setup
	BITBRANCH_MOST_EXAMPLES=5 tools/sanitize.sh address $(VENV) $(ENGINE_TESTS) -k "not processes and not torch" $(ARGS)
	BITBRANCH_MOST_EXAMPLES=5 tools/sanitize.sh thread $(VENV) tests/test_callers.py -k "four_callers or forked" $(ARGS)

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
