# What a person types here. `make run` and `make test` are enough; both make .venv when it is missing.

CONFIG ?= config.yaml
VENV := .venv
BIN := $(VENV)/bin
# The first of these that is 3.11 or newer makes .venv. Another: make setup PYTHON=/path/to/python
PYTHON ?=
CANDIDATES := $(PYTHON) python3 python3.11 python3.12 python3.13 python3.14
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable

# Stamps: what is installed is installed again only when what is asked for changes.
BASE := $(VENV)/.installed-base
DEV := $(VENV)/.installed-dev
ASKED := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.PHONY: help setup run test lint format wheel clean

help:
	@echo 'make run      sort the photos in the inbox, and go on watching it (settings: $(CONFIG); stop: Ctrl-C)'
	@echo 'make test     run the tests; ARGS="-k name" picks some'
	@echo 'make lint     check style and types'
	@echo 'make format   put the code into the style that lint checks'
	@echo 'make setup    install all of it into $(VENV): the daemon, the trainer and the tools'
	@echo 'make wheel    build dist/*.whl, which carries the model that models/current names'
	@echo 'make clean    remove $(VENV) and what the tools left'

setup: $(DEV)

run: $(BASE)
	$(BIN)/pawsort run --config $(CONFIG)

test: $(DEV)
	$(BIN)/pytest $(ARGS)

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(DEV)
	$(BIN)/python -m build --wheel

clean:
	rm -rf $(VENV) dist build .mypy_cache .pytest_cache .ruff_cache

$(BASE): $(ASKED) | $(BIN)/python
	@echo 'installing pawsort into $(VENV) ...'
	$(INSTALL) .
	@touch $@

# The trainer and the tools on top; torch, a few hundred megabytes, comes with it.
$(DEV): $(ASKED) | $(BIN)/python
	@echo 'installing pawsort, its trainer and its tools into $(VENV) ...'
	$(INSTALL) '.[train,heic,dev]'
	@touch $(BASE) $@

$(BIN)/python:
	@for python in $(CANDIDATES); do \
	  "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	  "$$python" -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "$$python cannot make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }; \
	  echo "making $(VENV) with $$("$$python" --version)"; \
	  exec "$$python" -m venv --clear $(VENV); \
	done; \
	echo 'pawsort needs Python 3.11 or newer, and found none; make setup PYTHON=/path/to/python names one' >&2; exit 1
