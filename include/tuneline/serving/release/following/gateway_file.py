"""The gateway's configuration file, and what the gateway says of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tuneline.config.addresses import is_loopback
from tuneline.files import write_whole
from tuneline.serving.gateway.config import fingerprint

_HEAD = "# Written by `tuneline follow`, which overwrites changes"
_WITHIN_SECONDS = 3.0


@dataclass(frozen=True)
class GatewayState:
    """What a gateway says of its configuration.

    Attributes:
        taken: fingerprint of the file that it serves.
        refused: fingerprint of a later file that it refused, None if it refused none.
        retiring: older configurations that still have requests.
        canary: counts of both arms of each canary, by the candidate's upstream.
    """

    taken: str
    refused: str | None
    retiring: int
    canary: Mapping[str, Any]


class GatewayFile:
    """The file that a gateway watches.

    Args:
        path: the file.
        url: address of the gateway, without `/v1`.
    """

    def __init__(self, path: Path, url: str) -> None:
        self.path = path
        self.url = url
        self._document: Mapping[str, Any] | None = None
        self._tries = 0
        self.fingerprint = fingerprint(path)

    def write(self, document: Mapping[str, Any]) -> bool:
        """Replace the file in one step if its content differs; return True if it did."""
        if document == self._document:
            return False
        self._document, self._tries = document, 0
        self._replace()
        return True

    def offer_again(self) -> None:
        """Have the gateway look once more at a file that it refused."""
        self._tries += 1
        self._replace()

    def entries(self) -> dict[str, list[dict[str, Any]]]:
        """Return the engines of each released model in the file as it is; {} without a file."""
        try:
            document = json.loads(self.path.read_text().partition("\n")[2])
            # What an earlier release has named elsewhere is not taken over.
            known = {e["name"]: e for e in document["upstreams"] if is_loopback(e["base_url"])}
            chains = {m["id"]: m["chain"] for m in document["models"] if "released" in m}
            return {
                name: engines
                for name, chain in chains.items()
                if (engines := [known[entry] for entry in chain if entry in known])
            }
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def state(self) -> GatewayState | None:
        """Ask the gateway; None if it does not answer."""
        url = f"{self.url}/v1/health/ready"
        try:
            body = httpx.get(url, timeout=_WITHIN_SECONDS, trust_env=False).json()
            found = body["reload"]
            return GatewayState(found["taken"], found["refused"], found["retiring"], body["canary"])
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return None

    def _replace(self) -> None:
        # JSON is YAML without quoting rules. The head makes another try another file.
        again = f"; try {self._tries + 1}" if self._tries else ""
        text = f"{_HEAD}{again}.\n{json.dumps(self._document, indent=1)}\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, text.encode())
        self.fingerprint = fingerprint(self.path)
