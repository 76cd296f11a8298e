"""`tuneline logs curate`: from a day's logged requests to rows that people can review.

The day is checked by Great Expectations before it takes the place of the one before.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pyarrow as pa

from tuneline.artifacts.request_log import PREFIX as LOGS
from tuneline.artifacts.request_log import folder_name, read_day
from tuneline.data.gates.expectations import validate
from tuneline.data.pii.find.models import describe_models
from tuneline.data.rendering.renderer import Renderer
from tuneline.environment import code_identity
from tuneline.errors import TunelineError, UserError
from tuneline.evidence import FileRef, Measurement, Verdict, conclude, measure
from tuneline.governance.production.curated_days import (
    REQUESTS,
    CuratedDay,
    CurationEvidence,
    StoredFile,
    StratumCount,
    check_model,
    open_day,
    open_days,
    publish,
)
from tuneline.governance.production.day_suite import day_suite
from tuneline.governance.production.requests import (
    FACTS,
    Request,
    requests_of,
    staying,
    write_requests,
)
from tuneline.governance.production.review_sample import compare, draw_sample, merge_within_day
from tuneline.governance.production.scrubbing import ScrubbedDay, scrub_day
from tuneline.governance.production.settings import CurationSettings
from tuneline.governance.production.usable import MERGED
from tuneline.machine.memory import rare_collections
from tuneline.models import load_tokenizer, resolve
from tuneline.store import Store, at_work_in, sha256_file


def curate(store: Store, model: str, day: date, settings: CurationSettings) -> CuratedDay:
    """Curate the requests of a day and store the result.

    A day without logged requests says so; what was curated before its logs were deleted stays. If
    the day does not add up, the one before stays in force.
        TunelineError: if the day does not add up; the one before stays in force.
    """
    check_model(model)
    if day > datetime.now(UTC).date():
        raise UserError(f"{day} is in the future (UTC); name a day that has begun")
    with (
        tempfile.TemporaryDirectory(prefix="tuneline-curate-") as folder,
        rare_collections(),
        at_work_in(store),
    ):
        out, log = Path(folder), read_day(store, model, day)
        if not log.num_rows:
            return _without_logs(store, model, day, settings, out)
        requests = requests_of(log)
        renderer, base = _renderer(settings)
        scrubbed = scrub_day(log, requests, settings, renderer, out / "scrubbed.parquet")
        # The texts of the log are most of what is in memory, and not needed again.
        facts = log.select(FACTS.names).cast(FACTS)
        del log
        merge_within_day(requests, settings.data.near_duplicate_jaccard)
        back = range(1, settings.curation.lookback_days + 1)
        earlier = open_days(store, model, [day - timedelta(days=n) for n in back])
        logs = FileRef(
            name="logs",
            uri=store.uri_of(f"{LOGS}/{folder_name(model)}/{day}"),
            sha256=scrubbed.digest.hexdigest(),
            bytes=scrubbed.bytes,
            rows=len(requests),
        )
        inputs = [logs, *base]
        inputs += compare(requests, earlier, settings, scrubbed.sample)
        strata = draw_sample(requests, settings)
        write_requests(out / REQUESTS, facts, out / "scrubbed.parquet", requests)
        checked = _checked(model, day, out, facts, strata)
        measurements = [*checked, *_measurements(requests, scrubbed, settings)]
        made = _evidence(model, day, requests, scrubbed, measurements=measurements, strata=strata)
        size, sha256 = (out / REQUESTS).stat().st_size, sha256_file(out / REQUESTS)
        stored = StoredFile(name=REQUESTS, sha256=sha256, bytes=size, rows=len(requests))
        stated = {"settings": settings.document(), "code": code_identity()}
        evidence = made.model_copy(update={"inputs": inputs, "files": [stored], **stated})
        return publish(store, model, day, evidence, out)


def _without_logs(
    store: Store, model: str, day: date, settings: CurationSettings, out: Path
) -> CuratedDay:
    before = open_day(store, model, day)
    if before is not None and before.evidence.requests_in:
        print(
            f"the logs of {model} of {day} are gone; the curated day stays as it is",
            file=sys.stderr,
        )
        return before
    evidence = CurationEvidence(
        model=model,
        day=day.isoformat(),
        verdict=Verdict.NOT_APPLICABLE,
        summary=f"{model} has no logged requests of {day}",
        requests_in=0,
        rows_kept=0,
        settings=settings.document(),
        code=code_identity(),
    )
    return publish(store, model, day, evidence, out)


def _checked(
    model: str, day: date, out: Path, facts: pa.Table, strata: Mapping[str, StratumCount]
) -> list[Measurement]:
    """Check the table as it was written."""
    offered = sum(count.in_review for count in strata.values())
    suite = day_suite(out / REQUESTS, facts, day, offered)
    verdict, failures, count = validate([suite], out / "gx")
    if verdict == Verdict.FAIL:
        raise TunelineError(
            f"the curation of {model}, {day}, is not stored, since it does not add up: "
            f"{'; '.join(failures)}"
        )
    return [
        measure("expectations", count, "expectations"),
        measure("expectations_broken", len(failures), "expectations", "==", 0),
    ]


def _evidence(
    model: str,
    day: date,
    requests: Sequence[Request],
    scrubbed: ScrubbedDay,
    *,
    measurements: list[Measurement],
    strata: dict[str, StratumCount],
) -> CurationEvidence:
    reasons = Counter(str(r.reason) for r in requests if r.reason is not None)
    left = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    kept, gone = len(staying(requests)), reasons.total()
    offered = sum(count.in_review for count in strata.values())
    return CurationEvidence(
        model=model,
        day=day.isoformat(),
        verdict=conclude(measurements),
        summary=f"{len(requests)} requests to {model} on {day}: {kept} rows kept, {gone} rejected"
        f"{f' ({left})' if left else ''}; {offered} for review",
        requests_in=len(requests),
        rows_kept=kept,
        rejected=dict(sorted(reasons.items())),
        redactions={
            "gateway": dict(sorted(scrubbed.logged.items())),
            "curation": dict(sorted(scrubbed.found.items())),
        },
        strata=strata,
        measurements=measurements,
    )


def _renderer(settings: CurationSettings) -> tuple[Renderer | None, list[FileRef]]:
    if settings.base_model is None:
        return None, []
    base = resolve(settings.base_model, log=lambda line: print(line, file=sys.stderr))
    ref = FileRef(name="base_model", uri=settings.base_model, sha256=base.digest, bytes=0)
    return Renderer(load_tokenizer(base.path), settings.data.target_format), [ref]


def _measurements(
    requests: Sequence[Request], scrubbed: ScrubbedDay, settings: CurationSettings
) -> list[Measurement]:
    data, rows = settings.data, staying(requests)
    resembling = Counter(row.resembles for row in rows if row.resembles is not None)
    merged = sum(request.reason in MERGED for request in requests)
    return [
        measure("requests_in", len(requests), "requests"),
        measure("rows_kept", len(rows), "rows"),
        measure("requests_rejected", len(requests) - len(rows), "requests"),
        measure("requests_merged", merged, "requests"),
        measure("review_rows", sum(row.in_review for row in rows), "rows"),
        *(measure(f"resembling_{name}", n, "rows") for name, n in sorted(resembling.items())),
        *(measure(f"model_{code}", name, "text") for code, name in describe_models(data).items()),
        measure(
            "undeclared_language_share",
            scrubbed.foreign / max(scrubbed.rows, 1),
            "share",
            "<=",
            data.max_undeclared_language_share,
            on_breach="warn",
        ),
    ]
