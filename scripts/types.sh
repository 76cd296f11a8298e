#!/usr/bin/env bash
# types.sh [ml|airflow …]: mypy, the library in the ML environment, what runs in Airflow's
# processes in Airflow's.
set -uo pipefail
cd "$(dirname "$0")/.."
(($#)) || set -- ml airflow
failed=0
for part; do
  mypy=(--cache-dir ".mypy_cache/$part")
  case $part in
    ml)
      .venv-ml/bin/mypy "${mypy[@]}" include/tuneline benchmarks scripts/*.py hatch_build.py \
        --exclude 'include/tuneline/(airflow|stack)'
      ;;
    airflow)
      .venv-airflow/bin/mypy "${mypy[@]}" include/localpods include/tuneline/{airflow,stack} dags
      ;;
  esac || failed=1
done
exit $failed
