#!/usr/bin/env bash
# Types: the library in the ML environment, what runs in Airflow's processes in Airflow's.
set -uo pipefail
cd "$(dirname "$0")/.."
failed=0
.venv-ml/bin/mypy include/tuneline benchmarks scripts/reference.py \
  --exclude include/tuneline/stack || failed=1
MYPYPATH=dags .venv-airflow/bin/mypy include/localpods include/tuneline/stack dags || failed=1
MYPYPATH=plugins .venv-airflow/bin/mypy plugins || failed=1
exit $failed
