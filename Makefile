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
.PHONY: help setup run test test-faults test-long lint format bench wheel clean
.PHONY: service service-user service-remove service-user-remove

help:
	@echo 'make run      sort the photos in the inbox, and go on watching it (settings: $(CONFIG); stop: Ctrl-C)'
	@echo 'make test     run the tests; ARGS="-k name" picks some'
	@echo 'make test-long    the tests that train for minutes'
	@echo 'make test-faults  the tests that crash it, starve it and cut its power, at full length'
	@echo 'make lint     check style and types'
	@echo 'make format   put the code into the style that lint checks'
	@echo 'make bench    a quarter of an hour: photos a second beside the script that one would write (ARGS="--photos 200"),'
	@echo '              one photo, start, memory, where the time goes, 100,000 photos, training'
	@echo 'make service  let systemd run it for this machine (asks for root), make service-user for you alone;'
	@echo '              make service-remove, make service-user-remove: undo that; photos, records and models stay'
	@echo 'make setup    install all of it into $(VENV): the daemon, the trainer and the tools'
	@echo 'make wheel    build dist/*.whl, which carries the model that models/current names'
	@echo 'make clean    remove $(VENV) and what the tools left'

setup: $(DEV)

run: $(BASE)
	$(BIN)/pawsort run --config $(CONFIG)

test: $(DEV)
	$(BIN)/pytest -m 'not long' --numprocesses auto --maxprocesses 4 --dist loadfile $(ARGS)

test-long: $(DEV)
	$(BIN)/pytest -m long $(ARGS)

test-faults: $(DEV)
	PAWSORT_FAULTS=full $(BIN)/pytest tests/faults --numprocesses auto --maxprocesses 4 --dist loadfile -rA $(ARGS)

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(DEV)
	$(BIN)/python bench/backlog.py $(ARGS)
	$(BIN)/python bench/idle.py
	$(BIN)/python bench/budget.py
	$(BIN)/python bench/growth.py
	$(BIN)/python bench/training.py

# Of the whole machine, which takes root, or of the person who types. ARGS=--retrain learns every night as well.
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
# The environment that a service gets for itself holds the versions that are tested here.
SERVICE := env PIP_CONSTRAINT=$(abspath constraints.txt) $(abspath $(BIN)/pawsort) service
# Settings that are named are served where they lie; config.yaml itself is for trying pawsort out.
NAMED := $(if $(filter file,$(origin CONFIG)),,--config $(abspath $(CONFIG)))

service: $(BASE)
	$(SUDO) $(SERVICE) install $(NAMED) $(ARGS)

service-user: $(BASE)
	$(SERVICE) install --user $(NAMED) $(ARGS)

service-remove: $(BASE)
	$(SUDO) $(SERVICE) remove

service-user-remove: $(BASE)
	$(SERVICE) remove --user

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
