#!/usr/bin/env bash
# Runs once in the full stack: database, the UI's user, the bucket, the GPU pool.
set -euo pipefail
for name in TUNELINE_ADMIN_PASSWORD AIRFLOW__API_AUTH__JWT_SECRET AWS_SECRET_ACCESS_KEY; do
  if [[ -z ${!name:-} ]]; then
    echo "$name is empty: run docker/compose/init.sh on the host first, it writes .env" >&2
    exit 2
  fi
done
airflow db migrate
umask 077
python - <<'PY'
import json
import os

import boto3
from botocore.exceptions import ClientError

with open("/opt/airflow/passwords.json", "w") as handle:
    json.dump({"admin": os.environ["TUNELINE_ADMIN_PASSWORD"]}, handle)
bucket = os.environ["TUNELINE_STORE"].removeprefix("s3://").split("/")[0]
s3 = boto3.client("s3")
# Keys of a store elsewhere may be good for this bucket alone.
try:
    s3.head_bucket(Bucket=bucket)
except ClientError as error:
    if error.response["Error"]["Code"] != "404":
        raise
    s3.create_bucket(Bucket=bucket)
PY
airflow pools set gpu "${TUNELINE_GPU_SLOTS:-1}" "Tasks that hold a GPU" --include-deferred
