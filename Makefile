# make help lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help

# The first Python 3.11 or 3.12 that really starts (a version manager's stub may not).
PYTHON ?= $(shell for p in python3.11 python3.12 python3 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' \
	>/dev/null 2>&1 && { echo "$$p"; break; }; done)

AIRFLOW := .venv-airflow/bin
ML := .venv-ml/bin
STACK := $(AIRFLOW)/python -m tuneline.stack
BENCH := .venv-bench

ML_TESTS := $(filter-out tests/dags tests/plugins tests/localpods tests/stack,\
	$(patsubst %/,%,$(wildcard tests/*/)) $(wildcard tests/test_*.py))
AIRFLOW_TESTS := $(wildcard tests/dags tests/plugins tests/localpods tests/stack)

.PHONY: help setup demo up down status test test-fast lint bench python

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

python:
	@test -n "$(PYTHON)" && "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 8))' \
	2>/dev/null || { echo "setup: no Python 3.11 or 3.12 was found$(PYTHON:%= at %); install one," \
	"or name it: make setup PYTHON=/path/to/python3.11" >&2; exit 2; }

setup: python ## build both environments and fetch the base model
	@$(PYTHON) scripts/setup.py

demo: python ## run the whole pipeline on sample data (DATA=file CONFIG=file.yaml for your own)
	@PYTHON="$(PYTHON)" scripts/demo.sh --data "$(DATA)" --config "$(CONFIG)" || { code=$$?; \
	[ $$code -eq 130 ] || echo "demo: exit code $$code (1: a critical item failed or the run" \
	"broke, 2: wrong input); make ends with 2 for each, scripts/demo.sh with the code itself" >&2; \
	exit $$code; }

up: setup ## start the stack without a run
	@$(STACK) up

down: ## stop everything that the stack started
	@test -x $(AIRFLOW)/python || { echo "nothing was running"; exit 0; }; $(STACK) down

status: ## what runs
	@$(STACK) status

test: setup ## the whole test suite, then lint
	@scripts/run_tests.sh all $(ML_TESTS) -- $(AIRFLOW_TESTS)

test-fast: setup ## the same without the full-stack tests
	@scripts/run_tests.sh fast $(ML_TESTS) -- $(AIRFLOW_TESTS)

lint: setup ## ruff and mypy on both environments
	@scripts/lint.sh

bench: setup $(BENCH)/tuneline-stamp ## all benchmarks; writes bench/results.json
	@$(ML)/tuneline bench all

# The peers that the ML environment does not have; made for benchmarks only.
$(BENCH)/tuneline-stamp: requirements/bench.txt
	@$(PYTHON) -m venv --clear $(BENCH)
	@$(BENCH)/bin/python -m pip install --quiet --no-input --disable-pip-version-check -r $<
	@cp $< $@
