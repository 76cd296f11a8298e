"""The model card of a release, in the format of the Hugging Face Hub, written from its evidence.

A result is stated only if it was measured on the bytes that ship; what failed or was not run is
named.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from tuneline.evidence import Verdict
from tuneline.governance.documents.facts import Facts, Metric, metrics
from tuneline.machine.markdown import fenced, render

CARD_FILE = "README.md"
# What no item measures, whatever its verdict.
NEVER_MEASURED = (
    "accuracy for groups of persons, and bias against them",
    "harmful, false or misleading answers, and resistance to prompt injection",
    "other languages, other tasks and longer inputs than those of the dataset",
    "the effect of the answers on the people who read them",
)
_BROKEN = (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.WARN, Verdict.WAIVED)
_HUB, _HUB_DATASETS = "hf://", "hf://datasets/"


def model_card(facts: Facts) -> str:
    """Write the card: metadata in YAML, then Markdown."""
    data, found = card_data(facts), metrics(facts)
    manifest, governance = facts.release.manifest, facts.config.get("governance", {})
    body = render(
        "tuneline.governance.documents",
        "model_card.jinja",
        manifest=manifest,
        base=manifest.base_model,
        data=facts.dataset,
        request=fenced(json.dumps(_request(facts), indent=1, ensure_ascii=False)),
        lora=manifest.hyperparameters.get("lora") or {},
        training=manifest.hyperparameters,
        engine=manifest.engine or {},
        config=facts.config,
        files=sorted(facts.model_files),
        # Annex IV, 1(a), as the provider declared it.
        purpose=str((governance.get("annex_iv") or {}).get("1(a)", "")).splitlines(),
        metrics=found,
        measured=any(one.measured for one in facts.items.values()),
        reviewed=bool(facts.items["human_review"].value("votes")),
        unmeasured=[one for one in facts.items.values() if not one.measured],
        broken=[one for one in facts.with_verdict(*_BROKEN) if one.measured],
        not_applicable=list(facts.with_verdict(Verdict.NOT_APPLICABLE)),
        never_measured=NEVER_MEASURED,
        declared_license=governance.get("model_license"),
        audit=facts.items["license_audit"],
        latency=facts.items["latency_benchmark"],
        # Their numbers are left out, since they are about other bytes.
        elsewhere=[
            name
            for name in ("holdout_performance", "base_regression")
            if facts.items[name].measured and not facts.on_shipped_bytes(name)
        ],
        uri=facts.release.uri,
    )
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}"))


def _request(facts: Facts) -> dict[str, Any]:
    """Return a request as the release was measured."""
    system = facts.dataset.get("system")
    turns = [{"role": "system", "content": system}] if system else []
    question = {"role": "user", "content": "…"}
    return {"messages": [*turns, question], **facts.release.manifest.defaults}


def card_data(facts: Facts) -> ModelCardData:
    """Return the metadata of the card, with what was measured as its results."""
    manifest = facts.release.manifest
    results = [_result(facts, metric) for metric in metrics(facts)]
    adapter = facts.release.apart is not None
    uri = str(manifest.base_model.get("uri", ""))
    base = uri.removeprefix(_HUB).partition("@")[0] if uri.startswith(_HUB) else None
    return ModelCardData(
        base_model=base,
        base_model_relation=("adapter" if adapter else "finetune") if base else None,
        datasets=list(_hub_datasets(facts)) or None,
        tags=list(_tags(facts)),
        pipeline_tag="text-generation",
        library_name="peft" if adapter else None,
        model_name=manifest.name,
        eval_results=results or None,
        **_license(facts),
    )


def _result(facts: Facts, metric: Metric) -> EvalResult:
    own = metric.slice == "hold-out"
    hub = next(_hub_datasets(facts), None)
    return EvalResult(
        task_type="text-generation",
        dataset_type=(hub or "private") if own else "tuneline/general_questions",
        dataset_name=f"{facts.dataset.get('name') or facts.release.manifest.name}, hold-out"
        if own
        else "general questions of Tuneline",
        dataset_split="holdout" if own else None,
        dataset_revision=facts.dataset.get("version") if own else None,
        metric_type=metric.kind,
        metric_name=metric.name,
        metric_value=metric.value,
    )


def _license(facts: Facts) -> dict[str, Any]:
    """Return the licence in the Hub's words: the declared one, otherwise that of the base."""
    declared = facts.config.get("governance", {}).get("model_license")
    stated = declared or facts.release.manifest.base_model.get("license")
    if not stated:
        return {"license": "unknown"}
    name = str(stated).removeprefix("LicenseRef-").lower()
    # The Hub has no `-only` and `-or-later`.
    name = name.removesuffix("-only").removesuffix("-or-later")
    if name in HUB_LICENSES:
        return {"license": name}
    return {"license": "other", "license_name": name}


def _hub_datasets(facts: Facts) -> Iterator[str]:
    """Yield the Hub's ids of the datasets, each once."""
    addresses = [source.get("address", "") for source in facts.dataset.get("sources") or []]
    for address in dict.fromkeys(addresses):
        if address.startswith(_HUB_DATASETS):
            parts = address.removeprefix(_HUB_DATASETS).partition("@")[0].split("/")
            yield "/".join(parts[:2])


def _tags(facts: Facts) -> Iterator[str]:
    yield from ("tuneline", "lora")
    if any(name.endswith(".gguf") for name in facts.model_files):
        yield "gguf"
    engine = (facts.release.manifest.engine or {}).get("engine")
    if engine:
        yield str(engine)


HUB_LICENSES = frozenset(
    (
        "apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m "
        "bigscience-bloom-rail-1.0 bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd "
        "bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 "
        "cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 "
        "cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 "
        "cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 "
        "epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl "
        "lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr "
        "mpl-2.0 odc-by odbl openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl "
        "lgpl-lr deepfloyd-if-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 gemma"
    ).split()
)
