# Every target makes .venv by itself; a machine needs Python >= 3.11 with pip, and make.
.DEFAULT_GOAL := help
SHELL := /bin/sh

PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3 python,\
  $(shell $(p) -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
    && echo $(p))))
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check
WORKERS ?= 2

.PHONY: help demo test test-slow lint format notebook docs release-check clean

help:
	@echo "make demo           the whole road on a small embedded data set (under 5 minutes)"
	@echo "make test           the default tests"
	@echo "make test-slow      the long tests as well"
	@echo "make lint           ruff, pyright and import-linter"
	@echo "make format         let ruff put the files in order"
	@echo "make notebook       open the notebooks in JupyterLab"
	@echo "make docs           write docs/_build/html, every example in it run"
	@echo "make release-check  build, install bare, compare the extras' versions"
	@echo "make clean          remove .venv and caches"

demo: .venv/.experiments
	$(BIN)/python -m experiments.cifar_ssl --preset smoke --data digits

test: .venv/.test
	$(BIN)/python -m pytest -n $(WORKERS) -m "not slow" $(PYTEST_ARGS)

test-slow: .venv/.test
	$(BIN)/python -m pytest -n $(WORKERS) $(PYTEST_ARGS)

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: .venv/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

notebook: .venv/.notebooks
	$(BIN)/jupyter lab notebooks/quickstart.ipynb

docs: .venv/.docs
	$(BIN)/sphinx-build -E -W --keep-going -q docs docs/_build/html
	@echo "Open docs/_build/html/index.html"

release-check: .venv/.dev
	$(BIN)/python .ci/release_check.py

clean:
	rm -rf .venv docs/_build .pytest_cache .ruff_cache .hypothesis .import_linter_cache

# One stamp per extra: an extra is installed again when pyproject.toml changes.
.venv/.%: pyproject.toml | .venv/bin/python
	@echo "Installing sslx[$*] and what it needs into .venv ..."
	@$(PIP) --editable ".[$*]"
	@touch $@

# Some systems ship venv without ensurepip: then the outer pip serves the new venv.
.venv/bin/python:
	@if [ -z "$(PYTHON)" ]; then \
	  echo "sslx needs Python 3.11 or newer and found none on PATH" \
	    "(tried python3.11, python3.12, python3.13, python3, python)." >&2; \
	  echo "Install one, or name it: make PYTHON=/path/to/python3.11 ..." >&2; \
	  exit 1; fi
	@$(PYTHON) -m venv .venv >/dev/null 2>&1 || { \
	  $(PYTHON) -m venv --clear --without-pip .venv && \
	  $(PYTHON) -m pip --quiet --python .venv/bin/python install pip; }
