#!/usr/bin/env bash
# commit.sh: the commit that an image is built from, with `-dirty` where files differ from it.
set -euo pipefail
cd "$(dirname "$0")/.."
commit=$(git rev-parse HEAD 2>/dev/null) || exit 0
[[ -z $(git status --porcelain) ]] || commit+=-dirty
echo "$commit"
