# Two commands do everything: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKERS ?= 2
PLUGINS := plugins/omnireg-emr plugins/omnireg-consensus

.PHONY: help setup demo test lint fix docs registry clean

help:
	@echo "make demo   merge, score and compare a tiny real family (installs first)"
	@echo "make test   lint, types, import contracts, all tests (installs first)"
	@echo "make setup  create $(VENV) with the tested versions"
	@echo "make registry  build registry.db from docs/manifests"
	@echo "make lint | fix | docs | clean"

setup: $(READY)

$(READY): pyproject.toml constraints.txt $(wildcard plugins/*/pyproject.toml)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "omnireg needs Python 3.11 or newer; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(PLUGINS:%=--editable %)
	@touch $@

demo: $(READY)
	$(BIN)/omnireg demo

test: lint
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

fix: $(READY)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(READY)
	$(BIN)/python docs/generate.py
	$(BIN)/mkdocs build --strict

registry: $(READY)
	rm -f registry.db
	OMNIREG_ACTOR=omnireg $(BIN)/omnireg --registry registry.db apply docs/manifests/*.yaml
	OMNIREG_ACTOR=omnireg $(BIN)/omnireg --registry registry.db db seal

clean:
	rm -rf $(VENV) site .mypy_cache .ruff_cache .pytest_cache
