#!/usr/bin/env bash
# The demo with its exit code: 0 released, 1 a critical item failed or the run broke, 2 wrong input
# or machine, 75 worth another try, 130 interrupted. make exits with 2 for all but the first.
#
#     scripts/demo.sh [--data FILE] [--config FILE]
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
"${PYTHON:-python3}" "$root/scripts/setup.py" --ports "$@" || exit
exec "$root/.venv-airflow/bin/python" -m tuneline.stack demo "$@"
