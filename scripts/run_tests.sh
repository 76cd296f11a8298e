#!/usr/bin/env bash
# run_tests.sh all|fast|long|cluster|vllm [PATH...]
# Runs tests in the environments that they need, all of them even when one fails. Without a
# path it runs the whole suite, lint and types; with paths, these tests alone.
set -uo pipefail
cd "$(dirname "$0")/.."
export OMP_WAIT_POLICY=PASSIVE

# These run in the Airflow environment, all others in the ML environment.
airflow_folders=(tests/dags tests/plugins tests/localpods tests/stack tests/cluster)

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

ml_tests() {
  .venv-ml/bin/python -m pytest -q "${marks[@]}" "${airflow_folders[@]/#/--ignore=}" "${ml[@]}"
}
airflow_tests() {
  .venv-airflow/bin/python -m pytest -q "${marks[@]}" "${airflow[@]}"
}
ended() { # the exit code of a process of ours; a signal that we hear meanwhile is not its end
  local code
  while wait "$1"; code=$?; kill -0 "$1" 2>/dev/null; do :; done
  return "$code"
}
side_by_side() { # the output of each is shown whole, at its end
  local logs name ticking interrupted=0
  local -A running=()
  logs=$(mktemp -d)
  # After Ctrl-C the tests stop what they have started, which takes a while.
  trap 'interrupted=1' INT
  for name in ml airflow; do
    # A shell has what it starts in the background ignore Ctrl-C.
    (trap - INT && "${name}_tests") >"$logs/$name" 2>&1 </dev/null &
    running[$name]=$!
  done
  while sleep 60 &>/dev/null; do
    for name in ml airflow; do
      printf '%s %s  ' "$name" "$(grep -o '[0-9]*%]$' "$logs/$name" | tail -n 1 | tr -d ']')"
    done
    echo
  done &
  ticking=$!
  for name in ml airflow; do
    ended "${running[$name]}" || failed+=("tests of the $name environment")
    echo "=== tests of the $name environment"
    cat "$logs/$name"
  done
  kill "$ticking" 2>/dev/null
  rm -r "$logs"
  trap - INT
  ((interrupted == 0)) || exit 130
}

if (($# == 0 && $(nproc) > 1)); then
  echo "=== tests of both environments, side by side"
  side_by_side
else
  ((${#ml[@]} == 0)) || part "tests of the ml environment" ml_tests
  ((${#airflow[@]} == 0)) || part "tests of the airflow environment" airflow_tests
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
