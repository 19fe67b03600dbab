# Everything here sets itself up: it needs python3 (3.11 or newer, with venv) and make, and nothing else.
#   make demo    install into .venv-demo, fit the shipped data, write demo/
#   make test    install into .venv, run the suite
#   make help    the rest

SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help demo test lint format bench check-long docs-figures clean

# The first of these that is new enough; `make PYTHON=/path/to/python3 test` chooses another.
CANDIDATES := python3 python3.13 python3.12 python3.11
ifndef PYTHON
PYTHON := $(shell for p in $(CANDIDATES); do if command -v $$p >/dev/null 2>&1 && \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then echo $$p; exit; fi; done)
endif
# What the user asked for; sub-makes below are given it, so that messages name it.
export GOAL ?= $(firstword $(MAKECMDGOALS))

VENV ?= .venv
DEMO_VENV ?= .venv-demo
PY := $(VENV)/bin/python
DEMO_PY := $(DEMO_VENV)/bin/python
# Processes that share the suite; a file of tests stays in one of them.
WORKERS ?= 2
PIP_FLAGS := --quiet --disable-pip-version-check
SOURCES := $(shell find src -name '*.py' -o -name '*.csv' 2>/dev/null)

# $(call venv,FOLDER): a fresh environment, or one clear sentence.
define venv
	@if [ -z "$(PYTHON)" ]; then \
	  echo "partialpool needs Python 3.11 or newer, and none of these is: $(CANDIDATES). Install one, or run: make PYTHON=/path/to/python3 $(GOAL)" >&2; exit 1; fi
	@if ! "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	  echo "$(PYTHON) is not Python 3.11 or newer. Run: make PYTHON=/path/to/python3 $(GOAL)" >&2; exit 1; fi
	@if ! "$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null; then \
	  echo "$(PYTHON) cannot make virtual environments: install its venv package (on Debian and Ubuntu: apt install python3-venv)." >&2; exit 1; fi
	@echo "Setting up $(1) (once; a minute or two)"
	@"$(PYTHON)" -m venv --clear $(1)
endef

help:
	@echo "make demo          own environment, fit the shipped sleepstudy data, results in demo/"
	@echo "make test          own environment, run the suite (ARGS='-k word' is passed on to pytest)"
	@echo "make lint          ruff check, ruff format --check, mypy --strict"
	@echo "make format        ruff format and the fixes that ruff can make"
	@echo "make bench         measure speeds, side by side with the peers that are installed"
	@echo "make check-long    the checks that take many minutes (calibration)"
	@echo "make docs-figures  draw the figures of the docs again"
	@echo "make clean         remove what these made"

demo: $(DEMO_VENV)/.installed
	@$(DEMO_PY) -m partialpool demo --out demo

test: $(VENV)/.test
	$(PY) -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

lint: $(VENV)/.dev
	@status=0; \
	for check in "ruff check ." "ruff format --check ." "mypy --strict src"; do \
	  echo "$$check"; $(PY) -m $$check || status=1; \
	done; exit $$status

format: $(VENV)/.dev
	$(PY) -m ruff check --fix --quiet . || true
	$(PY) -m ruff format .

bench: $(VENV)/.test
	$(PY) -m benchmarks $(ARGS)

check-long: $(VENV)/.test
	$(PY) -m benchmarks.check_long $(ARGS)

docs-figures: $(VENV)/.test
	$(PY) examples/make_figures.py $(ARGS)

# A stamp file says that an environment is up to date, so that a second run starts at once.
$(DEMO_VENV)/.installed: pyproject.toml $(SOURCES)
	@if [ ! -x $(DEMO_PY) ]; then $(MAKE) --no-print-directory $(DEMO_VENV)/.made; fi
	@$(DEMO_PY) -m pip install $(PIP_FLAGS) .
	@touch $@

$(VENV)/.test: pyproject.toml
	@if [ ! -x $(PY) ]; then $(MAKE) --no-print-directory $(VENV)/.made; fi
	@$(PY) -m pip install $(PIP_FLAGS) -e ".[test]"
	@touch $@

$(VENV)/.dev: $(VENV)/.test
	@$(PY) -m pip install $(PIP_FLAGS) -e ".[test,dev]"
	@touch $@

$(VENV)/.made:
	$(call venv,$(VENV))
	@touch $@

$(DEMO_VENV)/.made:
	$(call venv,$(DEMO_VENV))
	@touch $@

clean:
	rm -rf $(VENV) $(DEMO_VENV) demo build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
