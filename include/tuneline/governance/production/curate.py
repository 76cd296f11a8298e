"""`tuneline logs curate`: from a day's logged requests to rows that people can review.

Requests that can't be used are rejected, the others scrubbed; one row of each question stays. Rows
that resemble a dataset are marked, and rows are drawn for review. The day is audited before it
takes the place of the one before.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from tuneline.artifacts.request_log import PREFIX as LOGS
from tuneline.artifacts.request_log import folder_name, read_day
from tuneline.data.pii.find.models import describe_models
from tuneline.data.rendering.renderer import Renderer
from tuneline.environment import code_identity
from tuneline.errors import TunelineError, UserError
from tuneline.evidence import FileRef, Measurement, Verdict, conclude, measure
from tuneline.governance.production.audit import audit
from tuneline.governance.production.comparison import Compared, Job, compare, findings
from tuneline.governance.production.curated_day import (
    CURATED,
    REJECTED,
    REVIEW,
    CuratedDay,
    CurationEvidence,
    StoredFile,
    check_model,
    open_day,
    publish,
)
from tuneline.governance.production.duplicates import merge_within_day, read_requests
from tuneline.governance.production.scrubbing import ScrubbedDay, scrub_day
from tuneline.governance.production.settings import CurationSettings
from tuneline.governance.production.tables import (
    batches_of,
    surrogates_of,
    weight_of,
    write_curated,
    write_rejected,
)
from tuneline.machine.memory import rare_collections
from tuneline.models import load_tokenizer, resolve
from tuneline.store import Store, at_work_in, sha256_file

_SCRUBBED = "scrubbed.parquet"
_REVIEWED_COLUMNS = (
    "request_id messages answer stand_ins stratum in_review inclusion_probability seen weight "
    "confidence served_by fallback_reason resembles novelty"
).split()


def curate(store: Store, model: str, day: date, settings: CurationSettings) -> CuratedDay:
    """Curate the requests of a day and store the result.

    Args:
        store: the store of the logs, and of the result.
        model: the model that clients asked for.
        day: the day, UTC.
        settings: the settings.

    Returns:
        The curated day. Of a day without logged requests the evidence says so; if rows were
        curated before its logs were deleted, these stay.

    Raises:
        UserError: if the model's name, the day or the reference is wrong.
        TunelineError: if the audit finds a request lost; the day before stays in force.
    """
    check_model(model)
    if day > datetime.now(UTC).date():
        raise UserError(f"{day} is in the future (UTC); name a day that has begun")
    with (
        tempfile.TemporaryDirectory(prefix="tuneline-curate-") as folder,
        rare_collections(),
        at_work_in(store),
    ):
        out = Path(folder)
        job = Job(store, model, day, settings)
        log = read_day(store, model, day)
        if not log.num_rows:
            return _without_logs(job, out)
        path = out / _SCRUBBED
        renderer, base = _renderer(settings)
        scrubbed = scrub_day(log, settings, renderer, path)
        weights = [weight_of(rate) for rate in log["sample_rate"].to_pylist()]
        ids = pa.table(
            {
                "request_id": log["request_id"].cast(pa.string()),
                "weight": pa.array(weights, pa.float64()),
            }
        )
        logs = FileRef(
            name="logs",
            uri=store.uri_of(f"{LOGS}/{folder_name(model)}/{day}"),
            sha256=scrubbed.digest.hexdigest(),
            bytes=scrubbed.bytes,
            rows=log.num_rows,
        )
        # The texts of the log are most of what is in memory, and not needed again.
        del log
        evidence = _curated(job, ids, scrubbed, [logs, *base], out)
        return publish(store, model, day, evidence, out)


def _without_logs(job: Job, out: Path) -> CuratedDay:
    before = open_day(job.store, job.model, job.day)
    if before is not None and before.evidence.requests_in:
        print(
            f"the logs of {job.model} of {job.day} are gone; the curated day stays as it is",
            file=sys.stderr,
        )
        return before
    evidence = CurationEvidence(
        model=job.model,
        day=job.day.isoformat(),
        verdict=Verdict.NOT_APPLICABLE,
        summary=f"{job.model} has no logged requests of {job.day}",
        requests_in=0,
        rows_kept=0,
        settings=job.settings.document(),
        code=code_identity(),
    )
    return publish(job.store, job.model, job.day, evidence, out)


def _curated(
    job: Job, logged: pa.Table, scrubbed: ScrubbedDay, inputs: list[FileRef], out: Path
) -> CurationEvidence:
    """Write the files of a day and return its evidence."""
    requests = read_requests(out / _SCRUBBED, scrubbed.sample)
    threshold = job.settings.data.near_duplicate_jaccard
    rejected = [*scrubbed.rejected, *merge_within_day(requests, threshold)]
    compared = compare(job, requests, rejected, scrubbed.sample)
    found, strata = findings(out / _SCRUBBED, requests, compared, job.settings)
    write_curated(out / CURATED, out / _SCRUBBED, requests.stays, found)
    write_rejected(out / REJECTED, rejected)
    review_rows = _write_review(out / REVIEW, out / CURATED, job.day)
    measurements = [
        *audit(logged, out / CURATED, out / REJECTED, out / REVIEW),
        *_measurements(scrubbed, compared, job.settings),
    ]
    verdict = conclude(measurements)
    if verdict == Verdict.FAIL:
        broken = ", ".join(f"{m.name} is {m.value}" for m in measurements if m.ok is False)
        raise TunelineError(
            f"the curation of {job.model}, {job.day}, is not stored, since it does not add up: "
            f"{broken}"
        )
    rows = {CURATED: len(requests.stays), REJECTED: len(rejected), REVIEW: review_rows}
    reasons = Counter(str(entry.reason) for entry in rejected)
    return CurationEvidence(
        model=job.model,
        day=job.day.isoformat(),
        verdict=verdict,
        summary=_summary(job, logged.num_rows, rows, reasons),
        requests_in=logged.num_rows,
        rows_kept=rows[CURATED],
        rejected=dict(sorted(reasons.items())),
        redactions={
            "gateway": dict(sorted(scrubbed.logged.items())),
            "curation": dict(sorted(scrubbed.found.items())),
        },
        strata=strata,
        measurements=measurements,
        inputs=[*inputs, *compared.inputs],
        files=[_stored(out / name, count) for name, count in rows.items()],
        settings=job.settings.document(),
        code=code_identity(),
    )


def _stored(path: Path, rows: int) -> StoredFile:
    size = path.stat().st_size
    return StoredFile(name=path.name, sha256=sha256_file(path), bytes=size, rows=rows)


def _renderer(settings: CurationSettings) -> tuple[Renderer | None, list[FileRef]]:
    if settings.base_model is None:
        return None, []
    base = resolve(settings.base_model, log=lambda line: print(line, file=sys.stderr))
    ref = FileRef(name="base_model", uri=settings.base_model, sha256=base.digest, bytes=0)
    return Renderer(load_tokenizer(base.path), settings.data.target_format), [ref]


def _write_review(path: Path, curated: Path, day: date) -> int:
    """Write the rows that were drawn for review; return their number."""
    count = 0
    with path.open("w", encoding="utf-8") as out:
        for batch in batches_of(curated, _REVIEWED_COLUMNS):
            for entry in batch.filter(batch.column("in_review")).to_pylist():
                out.write(json.dumps(_review_row(entry, day), ensure_ascii=False) + "\n")
                count += 1
    return count


def _review_row(entry: dict[str, Any], day: date) -> dict[str, Any]:
    surrogates = surrogates_of(entry)
    del entry["stand_ins"], entry["in_review"]
    request_id = entry.pop("request_id")
    return {"request_id": request_id, "day": day.isoformat(), **entry, "surrogates": surrogates}


def _measurements(
    scrubbed: ScrubbedDay, compared: Compared, settings: CurationSettings
) -> list[Measurement]:
    data = settings.data
    resembling = Counter(near.split for near in compared.resembles.values())
    models = [
        measure(f"model_{code}", named, "text") for code, named in describe_models(data).items()
    ]
    return [
        *(measure(f"resembling_{name}", n, "rows") for name, n in sorted(resembling.items())),
        *models,
        measure(
            "undeclared_language_share",
            scrubbed.foreign / max(scrubbed.rows, 1),
            "share",
            "<=",
            data.max_undeclared_language_share,
            on_breach="warn",
        ),
    ]


def _summary(job: Job, requests: int, rows: Mapping[str, int], reasons: Counter[str]) -> str:
    left = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    return (
        f"{requests} requests to {job.model} on {job.day}: {rows[CURATED]} rows kept, "
        f"{rows[REJECTED]} rejected{f' ({left})' if left else ''}; {rows[REVIEW]} for review"
    )
