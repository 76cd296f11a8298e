#!/usr/bin/env bash
# lint.sh [--fix]: format, style, complexity, spelling, the direction of imports,
# the links of the pages, and the size.
# Needs only .venv-dev, which `make lint` builds.
set -uo pipefail
cd "$(dirname "$0")/.."
bin=.venv-dev/bin
sources=(include dags scripts tests benchmarks hatch_build.py)

if [[ ${1:-} == --fix ]]; then
  $bin/ruff format --quiet "${sources[@]}"
  $bin/ruff check --quiet --fix "${sources[@]}"
  exit
fi
failed=0
$bin/ruff format --check --quiet "${sources[@]}" || { echo "run: make format"; failed=1; }
$bin/ruff check --quiet "${sources[@]}" || failed=1
$bin/codespell || failed=1
PYTHONPATH=include:. $bin/lint-imports --no-logo --cache-dir .tuneline/import-graph || failed=1
$bin/python scripts/site.py || { echo "the site: a link, or docs/README.md"; failed=1; }
$bin/python scripts/ratchet.py || failed=1
exit $failed
