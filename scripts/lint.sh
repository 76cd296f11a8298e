#!/usr/bin/env bash
# Formatting, lint and types; the library is checked in the ML environment, what runs in
# Airflow's processes in Airflow's.
set -uo pipefail
cd "$(dirname "$0")/.."
failed=0
sources=(include dags scripts tests benchmarks)
[[ -n $(find plugins -name '*.py' -print -quit) ]] && sources+=(plugins)
.venv-ml/bin/ruff format --check --quiet "${sources[@]}" || { echo "run: ruff format ${sources[*]}"; failed=1; }
.venv-ml/bin/ruff check --quiet "${sources[@]}" || failed=1
.venv-ml/bin/mypy include/tuneline benchmarks --exclude include/tuneline/stack || failed=1
MYPYPATH=dags .venv-airflow/bin/mypy include/localpods include/tuneline/stack dags || failed=1
if [[ -n $(find plugins -name '*.py' -print -quit) ]]; then
  MYPYPATH=plugins .venv-airflow/bin/mypy plugins || failed=1
fi
exit $failed
