"""The gateway's configuration, written from what is served."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tuneline.serving.release.chain import ChainSettings, served_chain, settings_of
from tuneline.serving.release.released import (
    Release,
    fetch_tokenizer,
    languages,
    price,
    warm_up_system,
)
from tuneline.store import Store


@dataclass(frozen=True)
class Tried:
    """A released version that is tried on a share of the keys.

    Attributes:
        entry: the gateway's entry of its engine.
        share: the share.
        limits: the limits of confidence of its answers; None takes those of the chain.
    """

    entry: Mapping[str, Any]
    share: float
    limits: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Served:
    """What answers for one model.

    Attributes:
        name: the model, which is the id that clients ask for.
        released: the released version, which need not be served yet.
        chain: the gateway's entries of its engines, the primary first.
        settings: what the primary's release is served with.
        tried: a released version that is tried beside it.
    """

    name: str
    released: str
    chain: tuple[Mapping[str, Any], ...]
    settings: ChainSettings = field(default_factory=ChainSettings)
    tried: Tried | None = None


def gateway_document(
    settings: Mapping[str, Any],
    models: Sequence[Served],
    spoken: Sequence[str],
    currencies: Sequence[str],
) -> dict[str, Any]:
    """Return the whole configuration of a gateway.

    Upstreams and models of the settings stay as they are. A model of the settings that has the
    name of a released one gives it its fields, which go before those of the release, and, after
    the released versions, its chain, such as a larger model.

    Args:
        settings: what the gateway's owner has set.
        models: what is served.
        spoken: languages of the data of the served releases.
        currencies: currencies of their prices, the one to be used first.
    """
    own = {model["id"]: dict(model) for model in settings.get("models") or []}
    upstreams = [dict(entry) for entry in settings.get("upstreams") or []]
    known = {entry["name"] for entry in upstreams}
    for model in models:
        fields = own.pop(model.name, {})
        behind = [name for name in fields.get("chain", []) if name in known]
        served = served_chain(
            model.name,
            model.chain,
            model.settings,
            behind=behind,
            allowed_hosts=settings.get("allowed_hosts"),
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
    if currencies:
        document.setdefault("currency", currencies[0])
    if spoken and document.get("production_log"):
        section = {"languages": list(spoken), **document["production_log"]}
        document["production_log"] = section
    return document


class Facts:
    """A reader of what releases state for the gateway; it reads each release once.

    Args:
        store: the store of the releases.
        folder: folder of the tokenizers.
    """

    def __init__(self, store: Store, folder: Path) -> None:
        self._store = store
        self._folder = folder
        self._known: dict[Release, tuple[dict[str, Any], list[str], str | None]] = {}
        self._settings: dict[Release, ChainSettings] = {}

    def settings(self, release: Release) -> ChainSettings:
        """Return what a release is served with."""
        if release not in self._settings:
            self._settings[release] = settings_of(self._store, release)
        return self._settings[release]

    def of(self, release: Release) -> tuple[dict[str, Any], list[str], str | None]:
        """Return the fields of a release's upstream, its languages and its currency.

        The tokenizer counts the tokens of answers that broke off, for which an engine states no
        usage. The price applies where the release states one.
        """
        if release not in self._known:
            fields: dict[str, Any] = {}
            if tokenizer := fetch_tokenizer(self._store, release, self._folder):
                fields["tokenizer"] = str(tokenizer)
            if system := warm_up_system(self._store, release):
                fields["warmup_system"] = system
            if cost := price(self._store, release):
                fields["price"] = {
                    "hourly_cost": cost.hourly_cost,
                    "completion_tokens_per_second": cost.tokens_per_second,
                }
            spoken = languages(self._store, release) or []
            self._known[release] = fields, spoken, cost.currency if cost else None
        return self._known[release]
