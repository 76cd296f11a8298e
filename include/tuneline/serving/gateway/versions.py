"""Model ids that name a version: `<id>@<version>` is answered by that version or not at all."""

from __future__ import annotations

from tuneline.serving.gateway.config import GatewayConfig, ModelConfig


def pinned_models(config: GatewayConfig) -> dict[str, ModelConfig]:
    """Return what answers to each versioned id, by that id.

    The version is that of a model's primary; of the chain only upstreams of the same version are
    kept, since a client that pins a version wants no other one. An id that the configuration
    itself uses is left to it.
    """
    upstreams = {upstream.name: upstream for upstream in config.upstreams}
    taken = {model.id for model in config.models}
    found = {}
    for model in config.models:
        version = upstreams[model.chain[0]].version
        pinned = f"{model.id}@{version}"
        if version is None or pinned in taken:
            continue
        chain = tuple(name for name in model.chain if upstreams[name].version == version)
        limits = model.low_confidence if len(chain) > 1 else None
        found[pinned] = model.model_copy(update={"chain": chain, "low_confidence": limits})
    return found
