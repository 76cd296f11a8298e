"""Name the models that find names, for the evidence."""

from __future__ import annotations

from tuneline.config import DataConfig
from tuneline.data.pii.models import describe_model
from tuneline.data.pii.ner.fetched import fetch_entity_model
from tuneline.data.pii.profiles import recognised


def describe_models(config: DataConfig) -> dict[str, str]:
    """Return the models that find names by language, each with its hash, for the evidence."""
    if not config.pii_ner or not recognised(config.pii_profile):
        return {}
    if config.name_model is not None:
        _, digest = fetch_entity_model(config.name_model)
        return dict.fromkeys(config.languages, f"{config.name_model} sha256:{digest}")
    packages = {code: config.spacy_models.get(code) for code in config.languages}
    return {
        code: describe_model(package) for code, package in packages.items() if package is not None
    }
