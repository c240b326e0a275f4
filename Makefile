# Every task of the project; `make` alone lists them. Needs python3, make and a package registry.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
TEST_READY := .venv/.test-ready
FUZZ_READY := .venv/.fuzz-ready
MODEL := .venv/demo/model
BENCH_VENV := .venv/bench/venv
BENCH_READY := $(BENCH_VENV)/.ready
PYTEST := $(BIN)/pytest -q -n auto --maxprocesses 4

MAKEFLAGS += --no-print-directory
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test test-slow lint types docs docs-check bench bench-figures ci

help:
	@echo 'usage: make TARGET'
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1@\2/p' $(MAKEFILE_LIST) | while IFS=@ read -r name text; \
		do printf '  %-15s %s\n' "$$name" "$$text"; done

setup: $(READY) ## make .venv with mstore and the development tools in it

demo: $(READY) $(MODEL) ## see mstore work on a real model (the first time: downloads 84 MB)
	@$(BIN)/python tests/demo.py --model $(MODEL)

test: $(TEST_READY) ## run the tests, less the slow ones
	@$(PYTEST) -m 'not slow'

test-slow: $(FUZZ_READY) ## run the slow tests: long matrices, fuzzing
	@$(PYTEST) -m slow

lint: $(READY) ## check style and formatting
	@$(BIN)/ruff check --quiet mstore tests
	@$(BIN)/ruff format --check --quiet mstore tests

types: $(READY) ## check types
	@$(BIN)/mypy --no-error-summary

docs: $(READY) ## write the generated pages of docs/ anew
	@$(BIN)/python tests/docs/generate.py

docs-check: $(READY) ## check that the generated pages are up to date
	@$(BIN)/python tests/docs/generate.py --check

bench-figures: $(TEST_READY) $(MODEL) ## measure sizes, speed and memory (some minutes, 15 GB of disk)
	@$(BIN)/python tests/benchmarks/run.py --model $(MODEL) $(BENCH)

bench: $(BENCH_READY) $(MODEL) ## train models, compare with the peers, write docs/benchmarks.md
	@$(BENCH_VENV)/bin/python tests/benchmarks/bench_families.py --model $(MODEL) \
		--json .venv/bench/results.json --report $(BENCH)

ci: lint types docs-check test ## everything that must pass before a change is accepted

$(READY): pyproject.toml
	@echo 'setting up .venv'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -qq --editable '.[dev]'
	@touch $@

$(TEST_READY): $(READY)
	@echo 'adding to .venv the libraries whose files the tests read (PyTorch, Keras, …)'
	@$(BIN)/python -m pip install -qq --editable '.[test]'
	@touch $@

$(FUZZ_READY): $(TEST_READY)
	@$(BIN)/python -m pip install -qq --editable '.[fuzz]'
	@touch $@

$(BENCH_READY): pyproject.toml
	@echo 'setting up $(BENCH_VENV), with PyTorch and the peers'
	@test -x $(BENCH_VENV)/bin/python || $(PYTHON) -m venv $(BENCH_VENV)
	@$(BENCH_VENV)/bin/python -m pip install -qq --editable '.[bench]'
	@touch $@

$(MODEL): | $(READY)
	@$(BIN)/python tests/fetch_model.py $@
