#!/usr/bin/env bash
# Serves the pod API inside the ML image; credentials reach pods as a secret, by reference.
set -euo pipefail
state=/run/tuneline
umask 077
python - <<'PY'
import json
import os

names = ("TUNELINE_STORE", "AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY",
         "AWS_DEFAULT_REGION")
secrets = {name: os.environ[name] for name in names}
secrets |= {name: os.environ[name] for name in ("WANDB_API_KEY",) if os.environ.get(name)}
with open("/run/tuneline/secrets.json", "w") as handle:
    json.dump({"tuneline-store": secrets}, handle)
images = {os.environ["TUNELINE_IMAGE"]: {"path_prepend": [os.path.dirname(os.sys.executable)]}}
env = {"OMP_WAIT_POLICY": "PASSIVE", "TUNELINE_CACHE": os.environ["TUNELINE_CACHE"],
       "TUNELINE_IMAGE_COMMIT": os.environ.get("TUNELINE_IMAGE_COMMIT", ""),
       "MLFLOW_TRACKING_URI": os.environ["MLFLOW_TRACKING_URI"],
       "TUNELINE_TRACKING_URL": os.environ["TUNELINE_TRACKING_URL"]}
with open("/run/tuneline/images.json", "w") as handle:
    json.dump({"images": images, "env": env}, handle)
PY
exec python -m localpods serve --state "$state" --images "$state/images.json" --port 8443
