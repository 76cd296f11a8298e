# make help lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help

# The first Python 3.11 or 3.12 that really starts (a version manager's stub may not).
PYTHON ?= $(shell for p in python3.11 python3.12 python3 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' \
	>/dev/null 2>&1 && { echo "$$p"; break; }; done)

AIRFLOW := .venv-airflow/bin
ML := .venv-ml/bin
DEV := .venv-dev
BENCH := .venv-bench
STACK := $(AIRFLOW)/python -m tuneline.stack
AIRFLOW_CHART ?= .tuneline/charts/airflow-1.22.0.tgz

.PHONY: help setup setup-vllm setup-spark demo demo-drift review up down status land test test-fast test-long test-cluster test-helm test-matrix test-vllm test-celery test-spark test-air-gapped lint ratchet types format docs site pictures hooks bench python

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

python:
	@test -n "$(PYTHON)" && "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 8))' \
	2>/dev/null || { echo "setup: no Python 3.11 or 3.12 was found$(PYTHON:%= at %); install one," \
	"or name it: make setup PYTHON=/path/to/python3.11" >&2; exit 2; }

setup: python ## build both environments and fetch the base model
	@$(PYTHON) scripts/setup.py

setup-vllm: python ## build the environment of vLLM on the CPU, which is optional
	@$(PYTHON) scripts/setup.py --only vllm

setup-spark: python ## build the environment of the steps with Spark, which is optional
	@$(PYTHON) scripts/setup.py --only spark

demo: python ## run the whole pipeline on sample data (DATA=file CONFIG=file.yaml for your own)
	@PYTHON="$(PYTHON)" scripts/demo.sh --data "$(DATA)" --config "$(CONFIG)" || { code=$$?; \
	[ $$code -eq 130 ] || echo "demo: exit code $$code (1: a critical item failed or the run" \
	"broke, 2: wrong input); make ends with 2 for each, scripts/demo.sh with the code itself" >&2; \
	exit $$code; }

demo-drift: python ## six days of production in minutes: requests, drift, labels, retraining, release
	@PYTHON="$(PYTHON)" scripts/demo_drift.sh --data "$(DATA)" --config "$(CONFIG)" || { code=$$?; \
	[ $$code -eq 130 ] || echo "demo-drift: exit code $$code (1: not released, or a part broke," \
	"2: wrong input); make ends with 2 for each, scripts/demo_drift.sh with the code itself" >&2; \
	exit $$code; }

up: setup ## start the stack without a run
	@$(STACK) up

review: ## compare the answers of the last run with the base's, blind, in this terminal
	@test -x $(AIRFLOW)/python || { echo "review: nothing was run yet; start with make demo" >&2; \
	exit 2; }; $(STACK) review

down: ## stop everything that the stack started
	@test -x $(AIRFLOW)/python || { echo "nothing was running"; exit 0; }; $(STACK) down; \
	code=$$?; home="$${TUNELINE_HOME:-.tuneline}/drift-demo"; \
	if [ -d "$$home/services" ]; then \
	TUNELINE_HOME="$$home" TUNELINE_MODELS="$$home/models" $(STACK) down || code=$$?; fi; exit $$code

status: ## list the running services
	@$(STACK) status

land: python ## move main to this branch (or BRANCH=name) if the whole suite passes on it; STATUS=1: how far it is
	@$(PYTHON) scripts/land.py $(if $(STATUS),--status) $(BRANCH)

test: $(DEV)/bin/helm ## run all tests; T="path …" these alone
	@$(PYTHON) scripts/run_tests.py all $(T)

test-long: $(DEV)/tuneline-stamp ## run the tests that `make test` leaves out since they take long
	@$(PYTHON) scripts/run_tests.py long $(T)

test-cluster: $(DEV)/tuneline-stamp ## run the tests that need a Kubernetes cluster and an S3 store
	@$(PYTHON) scripts/run_tests.py cluster $(or $(T),tests/cluster)

test-helm: $(DEV)/bin/helm $(AIRFLOW_CHART) ## check deploy/helm with Apache Airflow's chart (AIRFLOW_CHART=file.tgz)
	@TUNELINE_TEST_AIRFLOW_CHART="$(abspath $(AIRFLOW_CHART))" \
	$(PYTHON) scripts/run_tests.py all tests/test_charts.py

test-matrix: python ## install the wheel next to the oldest and the newest Airflow, and try it
	@PYTHON="$(PYTHON)" scripts/matrix.sh

test-vllm: $(DEV)/tuneline-stamp ## run the tests that need vLLM, in an environment of its own
	@$(PYTHON) scripts/run_tests.py vllm $(T)

test-celery: $(DEV)/tuneline-stamp ## run whole runs with Celery on PostgreSQL and Redis (12 minutes)
	@$(PYTHON) scripts/run_tests.py celery $(T)

test-spark: python ## run the tests that need Spark, in an environment of its own
	@$(PYTHON) scripts/run_tests.py spark $(T)

test-air-gapped: $(DEV)/tuneline-stamp ## install by docs/air-gapped.md without a network (20 minutes, 12 GB)
	@$(PYTHON) scripts/run_tests.py long tests/docs/test_air_gapped.py

test-fast: $(DEV)/bin/helm ## the same without the stack and the files of tests that take over 10 s
	@$(PYTHON) scripts/run_tests.py fast $(T)

lint: $(DEV)/tuneline-stamp ## check format, style, complexity, spelling, imports and the size
	@scripts/lint.sh

ratchet: python ## lower the numbers of scripts/ratchet.json, which may only fall, to today's
	@$(PYTHON) scripts/ratchet.py --lower

types: setup ## check types with mypy, in both environments
	@scripts/types.sh

format: $(DEV)/tuneline-stamp ## format the code and mend what ruff can mend
	@scripts/lint.sh --fix

docs: python ## write docs/reference, the picture of a run and the table in README.md from the code
	@$(PYTHON) scripts/setup.py --only ml
	@$(ML)/python scripts/reference.py

site: $(DEV)/tuneline-stamp .tuneline/mermaid.min.js ## build the pages of docs/ as a site, in .tuneline/site
	@$(DEV)/bin/python scripts/site.py
	@echo "open .tuneline/site/index.html"

pictures: setup ## take the pictures in docs/pictures anew (needs chromium)
	@PYTHONPATH=.:include $(ML)/python scripts/pictures.py
	@TUNELINE_PICTURES=docs/pictures $(AIRFLOW)/python -m pytest -q tests/plugins -k by_keys

hooks: $(DEV)/tuneline-stamp ## have git run the checks before each commit
	@$(DEV)/bin/pre-commit install

bench: setup $(BENCH)/tuneline-stamp $(BENCH)/portkey-stamp ## run all benchmarks; writes bench/results.json
	@$(ML)/tuneline bench all

$(BENCH)/portkey-stamp: $(BENCH)/tuneline-stamp
	@if command -v npm >/dev/null; then \
	  npm install --silent --no-fund --no-audit --prefix $(@D) @portkey-ai/gateway@1.15.2; fi
	@touch $@

# What draws the diagrams of the site; without npm they are shown as text.
.tuneline/mermaid.min.js:
	@mkdir -p $(@D)
	@if command -v npm >/dev/null; then cd $(@D) && npm pack --silent mermaid@11.12.2 >/dev/null && \
	  tar -xzOf mermaid-11.12.2.tgz package/dist/mermaid.min.js >$(@F) && rm mermaid-11.12.2.tgz; fi

# An environment from one file of requirements: the linters, and the peers of the benchmarks.
$(DEV)/tuneline-stamp: requirements/lint.txt
$(BENCH)/tuneline-stamp: requirements/bench.txt
$(DEV)/tuneline-stamp $(BENCH)/tuneline-stamp: | python
	@$(PYTHON) -m venv --clear $(@D)
	@$(@D)/bin/python -m pip install --quiet --no-input --disable-pip-version-check -r $<
	@cp $< $@

$(DEV)/bin/helm: $(DEV)/tuneline-stamp
	@scripts/helm.sh $@

.tuneline/charts/airflow-%.tgz: | $(DEV)/bin/helm
	@$(DEV)/bin/helm pull airflow --repo https://airflow.apache.org --version $* --destination $(@D)
