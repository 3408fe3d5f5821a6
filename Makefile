# Everything lands in .venv inside this clone; nothing outside it is changed.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.ready
# Which build of torch: cpu, or cuda for an index that has no CPU build (3.7 GB more).
TORCH ?= cpu
LOCKS := requirements.lock requirements-$(TORCH).lock
export PIP_CACHE_DIR ?= $(CURDIR)/.venv/pip-cache
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# More arguments for pip, such as an index that has the CPU builds of torch.
PIP_ARGS ?=

.PHONY: setup demo gramine test test-dax test-package lint bench soak lock sbom clean

setup: $(STAMP)

$(STAMP): pyproject.toml setup.py $(LOCKS) native/persist.c native/lists.c native/build_persist.py
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo 'setup: Python 3.11, 3.12 or 3.13 is needed; install one, or name it: make PYTHON=/path/to/python3.11 setup' >&2; exit 1; }
	@command -v cc >/dev/null || \
	  { echo 'setup: a C compiler is needed for the persistent-memory instructions; install gcc (Debian: apt install gcc python3-dev)' >&2; exit 1; }
	@$(PYTHON) -m venv .venv || \
	  { echo 'setup: could not make .venv; install the venv module (Debian: apt install python3-venv) and run make setup again' >&2; exit 1; }
	@$(BIN)/pip install -q --no-deps --require-hashes --only-binary :all: $(PIP_ARGS) $(LOCKS:%=-r %) || \
	  { echo 'setup: installing packages failed (see above); check that the package index can be reached.' >&2; \
	    echo 'setup: if it has no CPU build of torch, add one that has, from the page "Get started" of PyTorch (pip, CPU):' >&2; \
	    echo "setup:   make setup PIP_ARGS='--extra-index-url ADDRESS'    or, 3.7 GB more:    make setup TORCH=cuda" >&2; exit 1; }
	@$(BIN)/pip install -q --no-deps --no-build-isolation -e . || \
	  { echo 'setup: building the package failed (see above); the headers of Python are needed (Debian: apt install python3-dev)' >&2; exit 1; }
	@touch $(STAMP)

demo: setup
	@$(BIN)/python demo/demo.py

# JOB, DATA and REGION are folders, BROKER a URL, PIN the hash of its key: docs/tee.md.
gramine: setup
	@$(BIN)/python tools/gramine.py "$(JOB)" "$(DATA)" "$(REGION)" "$(BROKER)" "$(PIN)" $(THREADS) $(ENCLAVE_SIZE)

test: setup
	@$(BIN)/python -m pytest -n auto --dist worksteal

# Builds the source distribution and the wheel, installs each elsewhere and trains with it.
test-package: setup
	@$(BIN)/python tests/package/check.py

lint: setup
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports
	@$(BIN)/python tools/trusted_core.py

# Real DAX in an emulated machine; says what to install where QEMU is absent.
test-dax: setup
	@$(BIN)/python tests/dax/run.py

# Every measurement in its short form, on MNIST: build/bench/report.html.
bench: setup
	@rm -rf build/bench
	@$(BIN)/python -m plinius_benchmarks

# A thousand kills, or KILLS=5000, or SECONDS=3600; then the long form of the proofs.
soak: setup
	@$(BIN)/python tests/soak/soak.py $(if $(KILLS),--kills $(KILLS)) $(if $(SECONDS),--seconds $(SECONDS))
	@$(BIN)/python -m pytest -n auto --dist worksteal tests/crash tests/resume tests/attacks --soak

# After a change of pyproject.toml or constraints.txt; UPGRADE=1 takes newer versions of the rest.
lock: setup
	@$(BIN)/python tools/lock.py $(if $(UPGRADE),--upgrade)

sbom: setup
	@$(BIN)/python tools/sbom.py

clean:
	rm -rf .venv build demo/work examples/work tests/dax/work
