#!/usr/bin/env bash
# Follows what is released, for the gateway on this network; makes a first API key, once.
set -euo pipefail
home=/var/lib/tuneline
if [[ ! -e $home/keys.json ]]; then
  umask 077
  tuneline keys create first --keys "$home/keys.json" > "$home/first-key"
  echo "a first API key was made: docker compose exec gateway cat $home/first-key"
fi
cat > "$home/settings.yaml" <<YAML
host: 0.0.0.0
port: 8000
keys_file: $home/keys.json
ledger:
  path: $home/usage.sqlite
YAML
if [[ $TUNELINE_LOG_SAMPLE_RATE != 0 ]]; then
  cat >> "$home/settings.yaml" <<YAML
production_log:
  store: $TUNELINE_STORE
  spool: $home/spool
  sample_rate: $TUNELINE_LOG_SAMPLE_RATE
YAML
fi
own=/opt/tuneline/compose
if [[ -e $own/gateway.yaml ]]; then
  cat "$own/gateway.yaml" >> "$home/settings.yaml"
fi
trust=()
if [[ -e $own/release.pub ]]; then
  trust=(--public-key "$own/release.pub")
fi
exec tuneline follow --pointer "${TUNELINE_POINTER:-production}" --settings "$home/settings.yaml" --folder "$home" "${trust[@]}"
