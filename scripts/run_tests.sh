#!/usr/bin/env bash
# run_tests.sh all|fast ML_TESTS... -- AIRFLOW_TESTS...
# Runs the tests of both environments and lint; all of them, even when one fails.
set -uo pipefail
cd "$(dirname "$0")/.."
export OMP_WAIT_POLICY=PASSIVE

which=$1
shift
ml=() airflow=()
while (($#)) && [[ $1 != -- ]]; do ml+=("$1"); shift; done
shift
airflow=("$@")
marks=()
[[ $which == fast ]] && marks=(-m "not stack and not slow")

# One test reads docker-compose.yaml with the real parser, which needs no Docker engine; one talks
# to the local pods with kubectl.
missing=()
command -v docker-compose >/dev/null || missing+=(docker-compose)
command -v kubectl >/dev/null || missing+=(kubernetes-client)
if ((${#missing[@]})) && command -v apt-get >/dev/null; then
  if ((EUID == 0)); then
    echo "=== installing ${missing[*]}"
    { apt-get update -q && apt-get install -y -q --no-install-recommends "${missing[@]}"; } \
      >/tmp/tuneline-apt.log 2>&1 || echo "not installed: ${missing[*]} (see /tmp/tuneline-apt.log)"
  else
    echo "${missing[*]}: missing, and installing needs root; their tests will be skipped"
  fi
fi

failed=()
part() { # name, command...
  local name=$1
  shift
  echo "=== $name"
  "$@" || failed+=("$name")
}

if ((${#ml[@]})); then
  part "tests of the ML environment" .venv-ml/bin/python -m pytest -q "${marks[@]}" "${ml[@]}"
fi
if ((${#airflow[@]})); then
  part "tests of the Airflow environment" \
    .venv-airflow/bin/python -m pytest -q "${marks[@]}" "${airflow[@]}"
fi
part "lint" scripts/lint.sh

echo "=== summary"
if ((${#failed[@]})); then
  printf 'FAILED: %s\n' "${failed[@]}"
  exit 1
fi
echo "tests and lint passed"
