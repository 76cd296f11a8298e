"""The circumstances in which a run uses its base model, for the rules of licences."""

from __future__ import annotations

from collections.abc import Iterable

from tuneline.config import PipelineConfig
from tuneline.models.license_rules import Circumstances
from tuneline.models.license_table import Use, find_rule, normalise

_USES: dict[str, Use] = {
    "research": "research",
    "internal": "internal",
    "commercial": "hosted",
    "distribution": "distributed",
}
# How transformers calls models that take images or sound beside text.
_MULTIMODAL = "ForConditionalGeneration"


def circumstances_of(
    config: PipelineConfig, base_license: str | None, architecture: str
) -> Circumstances:
    """Return what the licences of a run are judged for.

    Args:
        config: the run's configuration.
        base_license: licence of the base model.
        architecture: its architecture, as its configuration names it.
    """
    governance = config.governance
    rule = find_rule(normalise(base_license))
    domicile = governance.domicile
    return Circumstances(
        use=_USES[governance.intended_use],
        monthly_users=governance.monthly_users,
        in_eu=None if domicile is None else domicile == "eu",
        multimodal=_MULTIMODAL in architecture,
        outputs_train=governance.outputs_train_models,
        model_name=config.name,
        base_family=rule.family if rule else None,
    )


def generators_of(config: PipelineConfig, addresses: Iterable[str]) -> dict[str, str]:
    """Return the licence of the model that wrote each source's answers, where one is stated."""
    stated = config.governance.generated_by
    found = {address: stated.get(address, stated.get("*")) for address in addresses}
    return {address: license_id for address, license_id in found.items() if license_id}
