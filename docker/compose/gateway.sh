#!/usr/bin/env bash
# Serves the released model's engine behind the gateway; makes a first API key, once.
set -euo pipefail
home=/var/lib/tuneline
if [[ ! -e $home/keys.json ]]; then
  umask 077
  tuneline gateway-key first --keys "$home/keys.json" > "$home/first-key"
  echo "a first API key was made: docker compose exec gateway cat $home/first-key"
fi
# A release that is an adapter beside a base: the engine calls the base by this name.
upstream_model=${TUNELINE_ADAPTER:+base}
cat > "$home/gateway.yaml" <<YAML
host: 0.0.0.0
port: 8000
keys_file: $home/keys.json
ledger:
  path: $home/usage.sqlite
upstreams:
  - name: engine
    base_url: http://engine:8081/v1
    model: ${upstream_model:-$TUNELINE_MODEL}
    adapter: ${TUNELINE_ADAPTER:-null}
models:
  - id: $TUNELINE_MODEL
    chain: [engine]
YAML
if [[ $TUNELINE_LOG_SAMPLE_RATE != 0 ]]; then
  cat >> "$home/gateway.yaml" <<YAML
production_log:
  store: $TUNELINE_STORE
  spool: $home/spool
  sample_rate: $TUNELINE_LOG_SAMPLE_RATE
YAML
fi
exec tuneline gateway --config "$home/gateway.yaml"
