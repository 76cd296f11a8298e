#!/usr/bin/env bash
# run_tests.sh all|fast|long [PATH...]
# Runs tests in the environments that they need, all of them even when one fails. Without a
# path it runs the whole suite, lint and types; with paths, these tests alone.
set -uo pipefail
cd "$(dirname "$0")/.."
export OMP_WAIT_POLICY=PASSIVE

# These run in the Airflow environment, all others in the ML environment.
airflow_folders=(tests/dags tests/plugins tests/localpods tests/stack)

which=$1
shift
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
    /tests/dags/* | /tests/plugins/* | /tests/localpods/* | /tests/stack/*) airflow+=("$path") ;;
    *) ml+=("$path") ;;
  esac
done
marks=(-m "not long")
[[ $which == fast ]] && marks=(-m "not stack and not slow and not long")
[[ $which == long ]] && marks=(-m long)

needed=()
((${#ml[@]})) || needed=(--only airflow)
((${#airflow[@]})) || needed=(--only ml)
"${PYTHON:-python3}" scripts/setup.py "${needed[@]}" || exit

# One test reads docker-compose.yaml with the real parser, which needs no Docker engine; one talks
# to the local pods with kubectl.
missing=()
command -v docker-compose >/dev/null || missing+=(docker-compose)
command -v kubectl >/dev/null || missing+=(kubernetes-client)
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

if ((${#ml[@]})); then
  part "tests of the ML environment" .venv-ml/bin/python -m pytest -q "${marks[@]}" \
    "${airflow_folders[@]/#/--ignore=}" "${ml[@]}"
fi
if ((${#airflow[@]})); then
  part "tests of the Airflow environment" \
    .venv-airflow/bin/python -m pytest -q "${marks[@]}" "${airflow[@]}"
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
