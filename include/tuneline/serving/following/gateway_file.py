"""The gateway's configuration, written from what is served, and what the gateway says of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tuneline.artifacts.deployment import WARM_UP_FILE, WarmUp
from tuneline.artifacts.releases import CONFIG_FILE, Release, readable
from tuneline.config.addresses import host_of, is_loopback
from tuneline.files import write_whole
from tuneline.serving.following.chain import ChainSettings, served_chain, settings_of
from tuneline.serving.following.release import THROUGHPUT, fetch_tokenizer, upstream_of
from tuneline.serving.gateway.config import GatewayConfig, fingerprint

_HEAD = "# Written by `tuneline follow`, which overwrites changes"
_WITHIN_SECONDS = 3.0
_LATENCY = "evidence/latency_benchmark/evidence.json"
# Settings of a gateway that serves nothing.
_NOTHING: dict[str, Any] = {
    "keys_file": "keys.json",
    "ledger": {"path": "usage.sqlite"},
    "production_log": {"store": "file:///store", "spool": "spool"},
}


@dataclass(frozen=True)
class CanaryEntry:
    """A released version on trial on a share of the keys, by its own limits if it has any."""

    entry: Mapping[str, Any]
    share: float
    limits: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class ServedEntry:
    """What answers for one model: entries of its engines, and the settings of the primary."""

    name: str
    released: str
    chain: tuple[Mapping[str, Any], ...]
    settings: ChainSettings = field(default_factory=ChainSettings)
    tried: CanaryEntry | None = None


def gateway_document(
    settings: Mapping[str, Any],
    models: Sequence[ServedEntry],
    spoken: Sequence[str],
    currencies: Sequence[str],
) -> dict[str, Any]:
    """Return the whole configuration of a gateway.

    Upstreams and models of the settings stay as they are. A model of the settings that has the name
    of a released one gives it its fields, which go before those of the release, and, after the
    released versions, its chain, such as a larger model. A larger model that a release names is
    left out unless the settings allow its host, and the key that it asks for. The first currency is
    used.
    """
    own = {model["id"]: dict(model) for model in settings.get("models") or []}
    upstreams = [dict(entry) for entry in settings.get("upstreams") or []]
    known = {entry["name"] for entry in upstreams}
    hosts, keys = allowed(settings)
    for model in models:
        fields = own.pop(model.name, {})
        behind = [name for name in fields.get("chain", []) if name in known]
        served = served_chain(
            model.name, model.chain, model.settings.within(hosts, keys), behind=behind
        )
        upstreams += served.upstreams
        chain = served.model["chain"]
        if len(chain) == 1:
            # Nobody to fall back to, so there is nothing to judge.
            fields.pop("low_confidence", None)
        entry: dict[str, Any] = {"chain": chain, "released": model.released}
        if model.tried is not None:
            upstreams.append(dict(model.tried.entry))
            entry["canary"] = {"upstream": model.tried.entry["name"], "share": model.tried.share}
            # Where the chain is not judged, or by limits of the owner, so is the candidate.
            if model.tried.limits and "low_confidence" in served.model.keys() - fields.keys():
                entry["canary"]["low_confidence"] = model.tried.limits
        own[model.name] = served.model | fields | entry
    unique = {entry["name"]: entry for entry in upstreams}
    document = {**settings, "upstreams": list(unique.values()), "models": list(own.values())}
    document.pop("upstream_keys", None)
    named = [host_of(entry["base_url"]) for entry in settings.get("upstreams") or []]
    document["allowed_hosts"] = list(hosts) if hosts else named
    if currencies:
        document.setdefault("currency", currencies[0])
    if spoken and document.get("production_log"):
        section = {"languages": list(spoken), **document["production_log"]}
        document["production_log"] = section
    return document


def allowed(settings: Mapping[str, Any]) -> tuple[Sequence[str], Mapping[str, str]]:
    """Return the hosts that releases may name, and the variables that go to them as keys."""
    return settings.get("allowed_hosts") or (), settings.get("upstream_keys") or {}


@dataclass(frozen=True)
class ReleaseFacts:
    """What a release states for the gateway.

    Attributes:
        fields: more fields of its upstream: the tokenizer, which counts the tokens of answers that
            broke off; the system turn of a warm-up; the price.
    """

    settings: ChainSettings
    fields: Mapping[str, Any]
    languages: tuple[str, ...]
    currency: str | None


def read_facts(release: Release, folder: Path) -> ReleaseFacts:
    """Read what a release states, before anything is served by it.

    Raises:
        UserError: if a file of it is missing.
        CorruptObject: if a file has other bytes than it states, or a gateway would refuse what it
            says: one release must not keep others from being served.
    """
    settings, currency = settings_of(release), None
    fields: dict[str, Any] = {}
    if tokenizer := fetch_tokenizer(release, folder):
        fields["tokenizer"] = str(tokenizer)
    warm_up = None if release.apart is not None else release.read(WARM_UP_FILE)
    with readable(f"{WARM_UP_FILE} of {release.uri}"):
        if warm_up and (system := WarmUp.model_validate_json(warm_up).system):
            fields["warmup_system"] = system
    throughput, config = _throughput(release), release.read(CONFIG_FILE)
    with readable(f"{CONFIG_FILE} of {release.uri}"):
        stated = json.loads(config) if config else {}
        languages = tuple(str(code) for code in stated.get("data", {}).get("languages") or ())
        if throughput and stated:
            costs = stated["governance"]
            fields["price"] = {
                "hourly_cost": float(costs["machine_cost_per_hour"]),
                "completion_tokens_per_second": throughput,
            }
            currency = str(costs["currency"])
    entry = {**upstream_of(release, 0, "http://127.0.0.1/v1"), **fields}
    # Two of them, since one alone is not judged.
    chain = (entry, {**entry, "name": f"{entry['name']}-before"})
    served = ServedEntry(release.name, release.version, chain, settings)
    with readable(f"what {release.uri} states for the gateway"):
        document = gateway_document(_NOTHING, [served], languages, [currency] if currency else [])
        GatewayConfig.model_validate(document)
    return ReleaseFacts(settings, fields, languages, currency)


def _throughput(release: Release) -> float:
    """Return the best throughput that was measured, completion tokens per second; 0 for none."""
    raw = release.read(_LATENCY)
    with readable(f"{_LATENCY} of {release.uri}"):
        entries = json.loads(raw)["measurements"] if raw else []
        return float({entry["name"]: entry["value"] for entry in entries}.get(THROUGHPUT) or 0)


@dataclass(frozen=True)
class GatewayState:
    """What a gateway says of its configuration: fingerprints; older ones that have requests."""

    taken: str
    refused: str | None
    retiring: int
    canary: Mapping[str, Any]


class GatewayFile:
    """The file that a gateway watches."""

    def __init__(self, path: Path, url: str) -> None:
        self.path = path
        self.url = url
        self._document: Mapping[str, Any] | None = None
        self._tries = 0
        self.fingerprint = fingerprint(path)

    def write(self, document: Mapping[str, Any]) -> bool:
        """Replace the file in one step if its content differs; return True if it did.

        It differs too if somebody has edited it.
        """
        if document == self._document and fingerprint(self.path) == self.fingerprint:
            return False
        self._document, self._tries = document, 0
        self._replace()
        return True

    def offer_again(self) -> None:
        """Have the gateway look once more at a file that it refused."""
        self._tries += 1
        self._replace()

    def entries(self) -> dict[str, list[dict[str, Any]]]:
        """Return the engines of each released model in the file as it is; {} without a file.

        What they have loaded is left out: anybody may have edited the file.
        """
        try:
            document = json.loads(self.path.read_text().partition("\n")[2])
            # What an earlier release has named elsewhere is not taken over.
            local = [e for e in document["upstreams"] if is_loopback(e["base_url"])]
            known = {entry["name"]: {**entry, "weights_sha256": None} for entry in local}
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
