#!/usr/bin/env bash
# types.sh [ml|airflow|plugins …]: mypy, the library in the ML environment, what runs in Airflow's
# processes in Airflow's.
set -uo pipefail
cd "$(dirname "$0")/.."
(($#)) || set -- ml airflow plugins
failed=0
for part; do
  mypy=(--cache-dir ".mypy_cache/$part")
  case $part in
    ml)
      .venv-ml/bin/mypy "${mypy[@]}" include/tuneline benchmarks scripts/*.py \
        --exclude include/tuneline/stack
      ;;
    airflow) MYPYPATH=dags .venv-airflow/bin/mypy "${mypy[@]}" include/localpods include/tuneline/stack dags ;;
    plugins) MYPYPATH=plugins .venv-airflow/bin/mypy "${mypy[@]}" plugins ;;
  esac || failed=1
done
exit $failed
