#!/usr/bin/env bash
# Six days of requests, drift, labels, a retraining and a release, by a clock that the demo moves on
# (libfaketime). The stack has a home apart, so that no invented date gets into the user's own. Exit
# codes as scripts/demo.sh.
#
#     scripts/demo_drift.sh [--data FILE] [--config FILE]
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
"${PYTHON:-python3}" "$root/scripts/setup.py" "$@" || exit

find_clock() {
    ls /usr/lib/*/faketime/libfaketimeMT.so.1 /usr/lib*/faketime/libfaketimeMT.so.1 \
        /usr/local/lib/faketime/libfaketimeMT.so.1 2>/dev/null | head -n 1
}
clock=$(find_clock)
if [ -z "$clock" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing libfaketime (Debian package), which moves the demo's clock"
    { apt-get update -q && apt-get install -y -q --no-install-recommends libfaketime; } >/dev/null
    clock=$(find_clock)
fi
if [ -z "$clock" ]; then
    echo "demo-drift: the demo moves its clock with libfaketime; install it (Debian, Ubuntu:" \
        "sudo apt-get install libfaketime)" >&2
    exit 2
fi

# Nothing of another store, cluster, server or policy takes part in the story.
unset TUNELINE_STORE TUNELINE_KUBECONFIG TUNELINE_LEDGER TUNELINE_LOG_SAMPLE_RATE TUNELINE_POLICY \
    MLFLOW_TRACKING_URI TUNELINE_TRACKING_URL
home=${TUNELINE_HOME:-$root/.tuneline}
mkdir -p "$home"
export TUNELINE_HOME=$home/drift-demo TUNELINE_MODELS=$home/drift-demo/models
# Every process reads the clock's file again each second; times of files and monotonic clocks stay.
export FAKETIME_TIMESTAMP_FILE=$home/drift-demo.clock FAKETIME_CACHE_DURATION=1
export FAKETIME_DONT_FAKE_MONOTONIC=1 NO_FAKE_STAT=1 LD_PRELOAD=$clock
[ -s "$FAKETIME_TIMESTAMP_FILE" ] || echo +0 >"$FAKETIME_TIMESTAMP_FILE"
exec "$root/.venv-airflow/bin/python" -m tuneline.stack demo-drift "$@"
