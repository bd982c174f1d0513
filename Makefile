# Everything that can be done with this repository. Needs Python 3.11, pip and make; the rest is installed.
PYTHON ?= $(or $(shell command -v python3.11),python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.airlock-ready
ARGS ?=
SYNC = VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv sync --quiet --active --locked --inexact --compile-bytecode --all-extras --all-groups
PYTEST ?= $(BIN)/pytest
WORKERS ?= 3
SIDE_BY_SIDE = -n $(WORKERS) --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help install lint test test-all bench bench-decisions demo clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(READY)  ## make .venv with the locked environment

$(READY): uv.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "needs Python 3.11: $(PYTHON) was not found; set PYTHON=..." >&2; exit 1; }
	@echo "installing the locked environment into $(VENV): a minute or so"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@# The machine's own certificates first: a network that inspects traffic has its authority there.
	@$(SYNC) --system-certs || $(SYNC)
	@touch $@

lint: $(READY)  ## style, types, import directions, specs, lock
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/airlock spec lint
	$(BIN)/uv lock --check --quiet

test: lint  ## lint, then every test but the slow ones, WORKERS=3 at a time; the story on a real Airflow among them
	$(PYTEST) $(SIDE_BY_SIDE) -m "not slow" $(ARGS)

test-all: lint  ## lint, then every test
	$(PYTEST) $(SIDE_BY_SIDE) $(ARGS)

bench: $(READY)  ## the gateway's requests a second, what Airflow adds to a training, what a look at all guards costs
	$(BIN)/python tests/benchmarks/gateway_throughput.py $(ARGS)
	$(BIN)/python tests/benchmarks/train_overhead.py
	$(BIN)/python tests/benchmarks/guard_cost.py

bench-decisions: $(READY)  ## every table about decisions: guards, units, releases, small samples, replay; ARGS go to the first
	$(BIN)/python tests/benchmarks/decision_quality.py $(ARGS)
	$(BIN)/python -m tests.benchmarks.quality.dependence
	$(BIN)/python tests/benchmarks/operating_characteristic.py
	$(BIN)/python tests/benchmarks/small_samples.py
	$(BIN)/python tests/benchmarks/replay_agreement.py

demo: $(READY)  ## the whole story on real tools; ARGS="--exit --summary out.json" ends by itself
	@$(BIN)/airlock demo $(ARGS)

clean:  ## remove the environment and all state
	rm -rf $(VENV) .airlock .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis dist
