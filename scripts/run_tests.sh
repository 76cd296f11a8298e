#!/usr/bin/env bash
# run_tests.sh all|fast|long|cluster|vllm [PATH...]
# Runs tests in the environments that they need, all of them even when one fails. Without a
# path it runs the whole suite, lint and types; with paths, these tests alone.
set -uo pipefail
cd "$(dirname "$0")/.."
export OMP_WAIT_POLICY=PASSIVE

# These run in the Airflow environment, all others in the ML environment.
airflow_folders=(tests/dags tests/plugins tests/localpods tests/stack tests/cluster)
# The whole suite as parts that need about the same time, the longest first: the tests of the Airflow
# environment, folders of the ML environment, and all that is left of it.
suite=(airflow serving data training evaluation governance deployment "other folders")

which=$1
shift
if [[ $which == vllm ]]; then
  "${PYTHON:-python3}" scripts/setup.py --only vllm || exit
  exec .venv-vllm/bin/python -m pytest -q -m vllm "${@:-tests/vllm}"
fi
ml=() airflow=()
for path in "${@:-tests}"; do
  path=${path%/}
  place=$(realpath --relative-to=. -- "${path%%::*}")
  if [[ ! -e $place ]]; then
    echo "run_tests: there is no $place" >&2
    exit 2
  fi
  case /$place/ in
    /tests/) ml+=(tests) airflow+=("${airflow_folders[@]}") ;;
    /tests/dags/* | /tests/plugins/* | /tests/localpods/* | /tests/stack/* | /tests/cluster/*) airflow+=("$path") ;;
    *) ml+=("$path") ;;
  esac
done
marks=(-m "not long")
[[ $which == fast ]] && marks=(-m "not stack and not slow and not long")
[[ $which == long ]] && marks=(-m long)
[[ $which == cluster ]] && marks=(-m cluster)

needed=()
((${#ml[@]})) || needed=(--only airflow)
((${#airflow[@]})) || needed=(--only ml)
"${PYTHON:-python3}" scripts/setup.py "${needed[@]}" || exit

# One test reads docker-compose.yaml with the real parser, which needs no Docker engine; one talks
# to the local pods with kubectl; the ledger's tests start a PostgreSQL server.
missing=()
command -v docker-compose >/dev/null || missing+=(docker-compose)
command -v kubectl >/dev/null || missing+=(kubernetes-client)
{ command -v initdb || compgen -G "/usr/lib/postgresql/*/bin/initdb"; } >/dev/null \
  || missing+=(postgresql)
if (($# == 0 && ${#missing[@]})) && command -v apt-get >/dev/null; then
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

ml_tests() { # path...
  .venv-ml/bin/python -m pytest -q "${marks[@]}" "${airflow_folders[@]/#/--ignore=}" "$@"
}
airflow_tests() { # path...
  .venv-airflow/bin/python -m pytest -q "${marks[@]}" "$@"
}
tests_of() { # a part of the suite
  local other rest=()
  case $1 in
    airflow) airflow_tests "${airflow[@]}" ;;
    "other folders")
      for other in "${suite[@]:1:${#suite[@]}-2}"; do rest+=("--ignore=tests/$other"); done
      ml_tests tests "${rest[@]}"
      ;;
    *) ml_tests "tests/$1" ;;
  esac
}
side_by_side() { # two parts at a time; the output of each is shown whole, at its end
  local logs name code ticking next=0 ended=0 interrupted=0
  local -A running=()
  logs=$(mktemp -d)
  # The tiny models of the tests are trained once for all parts.
  SHARED_TEST_MODELS=$(mktemp -d)
  export SHARED_TEST_MODELS
  # After Ctrl-C the tests stop what they have started, which takes a while, and no more begin.
  trap 'next=${#suite[@]}; interrupted=1' INT
  while sleep 60 &>/dev/null; do
    for name in "${suite[@]}"; do
      [[ ! -e $logs/$name ]] || printf '%s %s  ' "$name" \
        "$(grep -o '[0-9]*%]$' "$logs/$name" | tail -n 1 | tr -d ']')"
    done
    echo
  done &
  ticking=$!
  while ((next < ${#suite[@]} || ${#running[@]})); do
    while ((next < ${#suite[@]} && ${#running[@]} < 2)); do
      name=${suite[next++]}
      # A shell has what it starts in the background ignore Ctrl-C.
      (trap - INT && tests_of "$name") >"$logs/$name" 2>&1 </dev/null &
      running[$name]=$!
    done
    for name in "${!running[@]}"; do
      kill -0 "${running[$name]}" 2>/dev/null && continue
      wait "${running[$name]}"
      code=$?
      unset "running[$name]"
      ((code == 0)) || failed+=("tests of $name")
      echo "=== tests of $name ($((++ended)) of ${#suite[@]} parts)"
      cat "$logs/$name"
    done
    sleep 0.2
  done
  kill "$ticking" 2>/dev/null
  rm -r "$logs" "$SHARED_TEST_MODELS"
  trap - INT
  ((interrupted == 0)) || exit 130
}

if (($# == 0 && $(nproc) > 1)); then
  echo "=== all tests, two parts at a time"
  side_by_side
else
  ((${#ml[@]} == 0)) || part "tests of the ml environment" ml_tests "${ml[@]}"
  ((${#airflow[@]} == 0)) || part "tests of airflow" airflow_tests "${airflow[@]}"
fi
if (($# == 0)); then
  part "lint" scripts/lint.sh
  part "types" scripts/types.sh
fi

echo "=== summary"
if ((${#failed[@]})); then
  printf 'FAILED: %s\n' "${failed[@]}"
  exit 1
fi
echo "all passed"
