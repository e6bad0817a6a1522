# The two commands: `make run` and `make test`. Each sets up .venv by itself on a fresh clone.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
ALONE := tests/bench  # they measure time

.DEFAULT_GOAL := help
.PHONY: help setup run test test-all check format bench bench-quality bench-chaos bench-cluster clean

help:            ## list the targets
	@grep -hE '^[a-z-]+: *.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## */  make \1\t/' | expand -t 22

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

setup: $(STAMP)  ## make .venv and install (once; again when pyproject.toml or constraints.txt change)

run: $(STAMP)    ## train the quickstart on local Ray, tracked in sqlite:///mlflow.db
	$(BIN)/fedray train jobs/quickstart.yaml

test: $(STAMP)   ## the test suite but for what starts many processes
	$(BIN)/python -m pytest -q -m 'not slow' -n 2 --dist loadfile --no-loadscope-reorder $(ALONE:%=--ignore=%)
	$(BIN)/python -m pytest -q $(ALONE)

test-all: test   ## the whole test suite
	$(BIN)/python -m pytest -q -m slow

check: $(STAMP)  ## lint, format, types
	$(BIN)/ruff check fedray jobs tests
	$(BIN)/ruff format --check fedray jobs tests
	$(BIN)/mypy

format: $(STAMP) ## rewrite the code in the house format
	$(BIN)/ruff check --fix fedray jobs tests
	$(BIN)/ruff format fedray jobs tests

bench: $(STAMP)  ## seconds per stage and ratios to the naive loop: a table and bench.json
	$(BIN)/python -m tests.bench

bench-quality: $(STAMP) ## rerun the published matrix over seeds; rewrite the README's results (goes on where it stopped)
	$(BIN)/python -m tests.bench.quality

bench-chaos: $(STAMP) ## kill actors and nodes 40 times over a run, and compare to the bit: a table
	$(BIN)/python -m tests.bench.chaos

bench-cluster: $(STAMP) ## a job on a cluster of `ray start`, lost and found, to the bit; on three hosts of their own: HOSTS=--hosts
	$(BIN)/python -m tests.bench.cluster $(HOSTS)

clean:           ## remove .venv and caches (never your runs)
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
