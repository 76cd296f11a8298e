"""Settings of a curation: those of a run's data phase, and its own section `curation`."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tuneline.artifacts.artifact import Artifact
from tuneline.artifacts.data import DATASET
from tuneline.artifacts.releases import Release
from tuneline.artifacts.request_log import folder_name
from tuneline.config import (
    CurationConfig,
    DataConfig,
    GovernanceConfig,
    Model,
    PipelineConfig,
    build_config,
    check_sections,
    parse_yaml,
    read_yaml,
)
from tuneline.config.data import AUTO
from tuneline.config.pipeline import explain
from tuneline.errors import UserError
from tuneline.evidence import FileRef
from tuneline.store import Store, open_store

# The settings need a dataset; this one is never opened.
_NO_SOURCE = "production"


@dataclass(frozen=True)
class CurationSettings:
    """What a curation depends on besides the logs and the earlier days.

    `sample_rate` is the share of every stratum to review; None for the quotas of `curation`.
    """

    data: DataConfig
    curation: CurationConfig
    governance: GovernanceConfig
    base_model: str | None = None  # None counts no tokens
    reference: str | None = None
    sample_rate: float | None = None  # None takes the quotas of `curation`
    ledger: str | None = None  # knows how many requests there were; a URL may hold a password

    def like(self, release: Release) -> CurationSettings:
        """Return them with the released dataset as reference, and its class for `auto`.

        UserError if the dataset is gone.
        """
        data, reference = self.data, compared_with(release, DATASET).uri
        if data.label_field == AUTO:
            found = release.run().config.data.label_field
            data = data.model_copy(update={"label_field": found})
        return replace(self, data=data, reference=reference)

    def document(self) -> dict[str, Any]:
        """Return the settings for the evidence."""
        return {
            "data": self.data.model_dump(mode="json"),
            "curation": self.curation.model_dump(mode="json"),
            "min_confidence": self.governance.min_confidence,
            "base_model": self.base_model,
            "reference": self.reference,
            "sample_rate": self.sample_rate,
        }


def read_settings(
    config_file: str | Path | None = None,
    *,
    base_model: str | None = None,
    reference: str | None = None,
    sample_rate: float | None = None,
    ledger: str | None = None,
) -> CurationSettings:
    """Read the settings of a curation; UserError if the file is missing, or a setting wrong.

    The YAML file (a path or an address) holds those of a run, or of `data` alone, and `curation`.
    """
    if sample_rate is not None and not 0 < sample_rate <= 1:
        raise UserError(f"--sample {sample_rate:g}: give a share above 0 and up to 1")
    where = str(config_file or "the configuration")
    document: dict[str, Any] = {}
    if "://" in where:
        folder, _, name = where.rpartition("/")
        document = parse_yaml(open_store(folder).get_bytes(name).decode(), where)
    elif config_file is not None:
        document = read_yaml(Path(config_file))
    own = document.pop("curation", {})
    if document and document.keys() <= DataConfig.model_fields.keys():
        document = {"data": document}
    check_sections(document, where)
    config: PipelineConfig = build_config(document, {"data": {"source": _NO_SOURCE}}, where=where)
    try:
        curation = CurationConfig.model_validate(own)
    except ValidationError as error:
        problems = "; ".join(f"curation.{explain(e, CurationConfig)}" for e in error.errors())
        raise UserError(f"{where}: {problems}") from None
    more = (base_model, reference, sample_rate, ledger)
    return CurationSettings(config.data, curation, config.governance, *more)


def compared_with(release: Release, artifact: Artifact) -> FileRef:
    """Return a file of a release's run that requests are compared with; UserError if it is gone."""
    found = release.artifact(artifact.step, artifact.name)
    if found is None:
        raise UserError(
            f"{artifact.name} of {release.name} {release.version} is gone, so that requests can't "
            f"be compared with it; restore its run, or run {artifact.step} again"
        )
    return found


def write_settings(store: Store, model: Model) -> str:
    """Write the settings of a model's file into the store for pods; equal ones have one address."""
    document = {**model.layers, "curation": model.file.curation.model_dump(mode="json")}
    raw = json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False).encode()
    key = f"settings/{folder_name(model.name)}/{hashlib.sha256(raw).hexdigest()[:16]}.json"
    store.put_bytes(key, raw)
    return store.uri_of(key)
