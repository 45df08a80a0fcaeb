# Every target that needs the environment makes it first; `make` alone says what there is.
#
#   PYTHON=/path/to/python3 make install    another interpreter, 3.11 or newer

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/installed
PYTEST_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help install boot demo test interop registers interop-xen soak lint bench clean

help: ## say what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

install: $(STAMP) ## make the environment in .venv (once; again when its inputs change)

boot: $(STAMP) ## show a guest at work: its lease, a name, a ping, a file fetched, a page served
	@$(BIN)/vring tour

demo: $(STAMP) ## step one frame through the rings of a sending guest
	@$(BIN)/vring demo tx

test: $(STAMP) ## run all tests, on all cores (PYTEST_ARGS for more options)
	@$(BIN)/python -m pytest -n auto $(PYTEST_ARGS)

interop: $(STAMP) ## with DPDK and with Linux in QEMU, over vhost-user, QEMU's sockets and a VDE switch (four minutes)
	@$(BIN)/python -m pytest tests/interop/vhost_*.py tests/interop/qemu_*.py $(PYTEST_ARGS)

registers: $(STAMP) ## record anew what Linux's driver does to the registers, into fixtures/registers (under a minute)
	@$(BIN)/python -m tests.witness.record_registers

interop-xen: $(STAMP) ## both ends of a Xen card with Linux's, on a real Xen under QEMU's emulation (two minutes)
	@$(BIN)/python -m pytest tests/interop_xen/real_xen.py $(PYTEST_ARGS)

soak: $(STAMP) ## mixed load and mutated frames for SOAK_SECONDS (600): nothing may break, leak or grow
	@$(BIN)/python -m tests.soak

lint: $(STAMP) ## ruff and mypy --strict
	@$(BIN)/ruff check .
	@$(BIN)/mypy --strict -p hw -p guest -p vring

bench: $(STAMP) ## measure, each figure beside a yardstick of the same run
	@$(BIN)/python -m bench

clean: ## remove the environment and everything built
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@rm -f guest/_native.c guest/_native.*.so hw/_native.c hw/_native.*.so
	@find bench docs fixtures guest hw tests vring -name __pycache__ -type d -prune -exec rm -rf {} +

# pip's own output is kept back unless it fails; the compiler is not needed, see setup.py.
$(STAMP): pyproject.toml setup.py guest/_native_build.py hw/_native_build.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "vring needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>/dev/null || echo not there)." >&2; \
	  echo "Say which to use: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make environments: its venv module is not whole." >&2; \
	  echo "On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@echo "making the environment in $(VENV) with $$($(PYTHON) --version) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[dev]'
	@$(BIN)/python -c 'import importlib.util as u; \
	  print("environment ready,", "with" if u.find_spec("guest._native") else "without", "the C extension")'
	@touch $@
