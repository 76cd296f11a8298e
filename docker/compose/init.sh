#!/usr/bin/env bash
# Writes .env beside docker-compose.yaml with generated secrets; what is there stays.
set -euo pipefail
cd "$(dirname "$0")/../.."
if [[ -e .env ]]; then
  echo ".env exists; nothing was changed" >&2
  exit 0
fi
secret() { python3 -c 'import secrets, sys; print(secrets.token_urlsafe(int(sys.argv[1])))' "$1"; }
umask 077
cat > .env <<ENV
COMPOSE_PROFILES=pods
POSTGRES_PASSWORD=$(secret 24)
S3_ACCESS_KEY=$(secret 12)
S3_SECRET_KEY=$(secret 32)
AIRFLOW_API_SECRET=$(secret 64)
AIRFLOW_JWT_SECRET=$(secret 64)
AIRFLOW_FERNET_KEY=$(python3 -c 'import base64, os; print(base64.urlsafe_b64encode(os.urandom(32)).decode())')
TUNELINE_ADMIN_PASSWORD=$(secret 12)
TUNELINE_COMMIT=$(scripts/commit.sh)
ENV
mkdir -p data
echo "wrote .env; put datasets into ./data (seen by the steps as /data)"
