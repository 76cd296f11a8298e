#!/usr/bin/env bash
# matrix.sh [RELEASE…]: install the wheel next to the oldest and the newest Airflow that it supports
# (==3.3.0, ==3.3.*), each in a fresh environment away from the checkout, and try it there.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=$(command -v "${PYTHON:-python3}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset PYTHONPATH
"$python" -m pip wheel --quiet --no-deps -w "$work" "$root"
cd "$work"
mkdir dags
# The DAG files of the page.
awk '/^```python/ {file = "dags/page" ++n ".py"; next} /^```/ {file = ""} file {print > file}' \
  "$root/docs/existing-airflow.md"
(($#)) || set -- ==3.3.0 '==3.3.*'
for release; do
  venv=$work/venv$release
  "$python" -m venv "$venv"
  "$venv/bin/pip" install --quiet "$(echo "$work"/tuneline-*.whl)[airflow]" "apache-airflow$release"
  export PATH=$venv/bin:$PATH AIRFLOW_HOME=$work/home$release
  export AIRFLOW__CORE__DAGS_FOLDER=$work/dags AIRFLOW__CORE__LOAD_EXAMPLES=False
  echo "=== Airflow $(airflow version 2>/dev/null | tail -1)"
  airflow db migrate >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
  airflow dags reserialize >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
  # Airflow writes its log before what was asked for.
  for list in dags\ list providers\ list plugins; do
    airflow $list -o json 2>/dev/null | tail -1 >"${list% list}.json"
  done
  python - <<'PY'
import json
from tuneline.config import build_config
from tuneline.config.policy import read_policy

dags, providers, plugins = (
    json.load(open(f"{name}.json")) for name in ("dags", "providers", "plugins")
)
print(*sorted(dag["dag_id"] for dag in dags))
assert len(dags) == 6, dags
assert any(one["package_name"] == "tuneline" for one in providers), providers
assert any(one["name"] == "release_checklist" for one in plugins), plugins
build_config({"data": {"source": "rows.jsonl"}}, preset="gpu")
print("policy", read_policy().where)
PY
  tuneline --help >/dev/null
  tuneline items --json | python -c 'import json, sys; assert len(json.load(sys.stdin)) == 25'
done
echo "all passed"
