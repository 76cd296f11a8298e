"""Releases of a model and what their canaries leave, for whoever waits for one."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from tests.lab.releases import log_release

from tuneline.artifacts.governance import Manifest
from tuneline.artifacts.releases import model_prefix
from tuneline.governance.release.manifest import write_manifest

ASKED = {"governance": {"canary": {"share": 0.1, "hours": 6, "begin_hours": 1}}}


def release(
    store: Any,
    name: str,
    version: str,
    *,
    settings: Mapping[str, Any] | None = None,
    at: str = "",
    ships: Mapping[str, bytes] | None = None,
) -> None:
    """Release a version, which ships its settings as `config.json` if it has any."""
    prefix = model_prefix(name, version)
    files, evidence = [], {}
    stored = {"config.json": json.dumps(settings).encode()} if settings else {}
    for file, content in {**stored, **(ships or {})}.items():
        ref = store.put_bytes(f"{prefix}/{file}", content)
        files.append({"name": file, "sha256": ref.sha256, "bytes": ref.bytes})
        if file.startswith("evidence/"):
            found = json.loads(content)
            told = {key: found[key] for key in ("phase", "severity", "verdict", "summary")}
            evidence[found["item"]] = {**told, "because": "left by a test", "file": file}
    of = {"name": name, "version": version, "files": files, "evidence": evidence}
    stated = Manifest.model_validate({**of, "engine": {"engine": "llama_cpp"}})
    digest = write_manifest(store, prefix, stated)
    log_release(store, name, version, digest, at or datetime.now(UTC).isoformat())
