"""`tuneline logs curate`: from a day's logged requests to rows that people can review.

The day is checked by Great Expectations before it takes the place of the one before.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Collection, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tuneline.artifacts.releases import current_release, open_release
from tuneline.artifacts.request_log import MERGED, REPLACED, Reason, days, folder_name, read_day
from tuneline.artifacts.request_log import PREFIX as LOGS
from tuneline.config import DataConfig
from tuneline.data.gates.expectations import validate
from tuneline.data.gates.suites import Rule, Suite, among, between, total
from tuneline.data.pii.find.models import describe_models
from tuneline.data.rendering.renderer import Renderer
from tuneline.data.tables.rows import HOLDOUT
from tuneline.environment import code_identity
from tuneline.errors import TunelineError, UserError
from tuneline.evidence import FileRef, Measurement, Verdict, conclude, measure
from tuneline.governance.production import curated_days
from tuneline.governance.production.requests import (
    FACTS,
    Request,
    requests_of,
    staying,
    weight_of,
    write_requests,
)
from tuneline.governance.production.review_sample import (
    Stratum,
    compare,
    draw_sample,
    merge_within_day,
)
from tuneline.governance.production.scrubbing import ScrubbedDay, scrub_day
from tuneline.governance.production.settings import CurationSettings
from tuneline.machine.memory import rare_collections
from tuneline.models import load_tokenizer, resolve
from tuneline.serving.gateway.ledger.reports import costs
from tuneline.statistics import share_of
from tuneline.store import Store, at_work_in, sha256_file

_COLUMNS = (
    "request_id time reason of seen weight resembles similarity novelty stratum in_review"
).split()
_NOT_COMPARED = "not compared"
# Probability that a log that has the required share of the requests is called incomplete.
_TAIL = 0.01
# A sum of weights in another order differs in the last digits.
_ROUNDING = 1e-9


def day_suite(path: Path, facts: pa.Table, day: date, offered: int) -> Suite:
    """Return what is expected of a day's table, of which `offered` rows were drawn."""
    ids = set(facts["request_id"].to_pylist())
    weight = sum(map(weight_of, facts["sample_rate"].to_pylist()))
    nothing = "replaced_by_nothing kept_without_text offered_and_gone"
    rules = [
        Rule("ExpectTableRowCountToEqual", {"value": len(ids)}),
        Rule("ExpectColumnValuesToNotBeNull", {"column": "request_id"}),
        Rule("ExpectColumnValuesToBeUnique", {"column": "request_id"}),
        among("of_the_log", True),
        among("of_the_day", True),
        among("reason", *map(str, Reason)),
        among("stratum", *map(str, Stratum)),
        total("counted", len(ids), len(ids)),
        total("counted_weight", weight * (1 - _ROUNDING), weight * (1 + _ROUNDING)),
        *(between(name, 1, None) for name in ("seen", "weight")),
        *(between(name, 0, 1) for name in ("similarity", "novelty")),
        total("offered", offered, offered),
        *(total(name, 0, 0) for name in nothing.split()),
        # A reviewed row may be trained on, so each was compared, and none is like a held-out one.
        Rule(
            "ExpectColumnValuesToNotBeInSet",
            {"column": "offered_like", "value_set": [HOLDOUT, _NOT_COMPARED]},
        ),
    ]
    return Suite("requests", _day_frame(path, ids, day), rules)


def _day_frame(path: Path, ids: Collection[str], day: date) -> pd.DataFrame:
    """Read a day's table, with a column for each rule that joins several."""
    frame = pq.read_table(path, columns=_COLUMNS).to_pandas()
    answers = pq.read_table(path, columns=["answer"])["answer"]
    first = pd.Timestamp(day, tz="UTC")
    times = pd.to_datetime(frame["time"], utc=True)
    kept, reviewed = frame["reason"].isna(), frame["in_review"].astype(bool)
    # A merged request is counted by the row that stays in its place.
    counted = ~frame["reason"].isin(sorted(MERGED))
    replaced = frame["reason"].isin(sorted(REPLACED))
    return frame.drop(columns=["time"]).assign(
        of_the_log=frame["request_id"].isin(ids),
        of_the_day=(times >= first) & (times < first + timedelta(days=1)),
        counted=frame["seen"].where(counted, 0),
        counted_weight=frame["weight"].where(counted, 0.0),
        replaced_by_nothing=(replaced & frame["of"].isna()).astype(int),
        kept_without_text=(kept & pc.is_null(answers).to_pandas()).astype(int),
        offered=reviewed.astype(int),
        offered_and_gone=(reviewed & ~kept).astype(int),
        # Null for rows that are not offered, which expectations pass over.
        offered_like=frame["resembles"].fillna(_NOT_COMPARED).where(reviewed),
    )


def curate(
    store: Store, model: str, day: date, settings: CurationSettings
) -> curated_days.CuratedDay:
    """Curate the requests of a day and store the result; a day whose logs are gone stays as it is.

    The released dataset is the reference; before the first release nothing is held out.

    Raises:
        UserError: if the model's name, the day or the reference is wrong.
        TunelineError: if the day does not add up; the one before stays in force.
    """
    curated_days.check_model(model)
    if day > datetime.now(UTC).date():
        raise UserError(f"{day} is in the future (UTC); name a day that has begun")
    with (
        tempfile.TemporaryDirectory(prefix="tuneline-curate-") as folder,
        rare_collections(),
        at_work_in(store),
    ):
        out, log = Path(folder), read_day(store, model, day)
        whole = _compared_with_ledger(store, model, day, settings, log)
        if not log.num_rows:
            return _without_logs(store, model, day, settings, out=out, whole=whole)
        if settings.reference is None and (pointer := current_release(store, model)) is not None:
            settings = settings.like(open_release(store, pointer))
        requests = requests_of(log)
        renderer, base = _renderer(settings)
        scrubbed = scrub_day(log, requests, settings, renderer, out / "scrubbed.parquet")
        # The texts of the log are most of what is in memory, and not needed again.
        facts = log.select(FACTS.names).cast(FACTS)
        del log
        merge_within_day(requests, settings.data.near_duplicate_jaccard)
        back = range(1, settings.curation.lookback_days + 1)
        earlier = curated_days.open_days(store, model, [day - timedelta(days=n) for n in back])
        uri = store.uri_of(f"{LOGS}/{folder_name(model)}/{day}")
        logs = scrubbed.log(uri, len(requests))
        inputs = [logs, *base, *compare(requests, earlier, settings, scrubbed.sample)]
        strata = draw_sample(requests, settings)
        write_requests(out / curated_days.REQUESTS, facts, out / "scrubbed.parquet", requests)
        offered = sum(count.in_review for count in strata.values())
        suite = day_suite(out / curated_days.REQUESTS, facts, day, offered)
        evidence = _evidence(
            model, day, requests, scrubbed, settings, suite=suite, out=out, whole=whole
        )
        evidence = evidence.model_copy(update={"strata": strata, "inputs": inputs})
        return curated_days.publish(store, model, day, evidence, out)


def _compared_with_ledger(
    store: Store, model: str, day: date, settings: CurationSettings, log: pa.Table
) -> list[Measurement]:
    """Compare a log with the ledger; nothing without one."""
    if settings.ledger is None:
        return []
    begin = datetime(day.year, day.month, day.day, tzinfo=UTC)
    sums = costs(settings.ledger, "model", begin, begin + timedelta(days=1))
    there = sum(one.requests for one in sums if one.name == model and one.completion_tokens)
    found, logged = [measure("requests_in_ledger", there, "requests")], log.num_rows
    if not there:
        return found
    if not log.num_rows and (earlier := [one for one in days(store, model) if one < day]):
        # An empty log doesn't say how it is sampled; the one before does.
        log = read_day(store, model, earlier[-1])
    weight = sum(map(weight_of, log["sample_rate"].to_pylist()))
    rate = log.num_rows / weight if weight else 1.0
    most = min(1.0, share_of(min(logged, there), there, _TAIL).upper / rate)
    limit = settings.curation.min_logged_share
    return [*found, measure("logged_share_at_most", round(most, 4), "share", ">=", limit)]


def _without_logs(
    store: Store,
    model: str,
    day: date,
    settings: CurationSettings,
    *,
    out: Path,
    whole: Sequence[Measurement],
) -> curated_days.CuratedDay:
    """Publish a day without logs; only a ledger without requests says that it is in order."""
    before = curated_days.open_day(store, model, day)
    if before is not None and before.evidence.requests_in:
        line = f"the logs of {model} of {day} are gone; the curated day stays as it is"
        print(line, file=sys.stderr)
        return before
    verdict = conclude(whole)
    if verdict == Verdict.PASS:
        asked = whole[0].value if whole else current_release(store, model)
        verdict = Verdict.INCONCLUSIVE if asked else Verdict.NOT_APPLICABLE
    said = f"{model} has no logged requests of {day}{_of_ledger(whole)}"
    counts = {"requests_in": 0, "rows_kept": 0, "measurements": list(whole)}
    evidence = _stated(model, day, settings, verdict=verdict, summary=said, **counts)
    return curated_days.publish(store, model, day, evidence, out)


def _stated(
    model: str, day: date, settings: CurationSettings, **found: Any
) -> curated_days.CurationEvidence:
    of = {"model": model, "day": str(day), "settings": settings.document()}
    return curated_days.CurationEvidence(**of, code=code_identity(), **found)


def _of_ledger(whole: Sequence[Measurement]) -> str:
    if not whole:
        return "; not compared with a ledger"
    said = f"; the ledger has {whole[0].value} requests"
    advice = ": see that the gateway's production_log is on and can be stored"
    return said + advice * (conclude(whole) == Verdict.FAIL)


def _measured(
    requests: Sequence[Request], scrubbed: ScrubbedDay, data: DataConfig
) -> list[Measurement]:
    rows = staying(requests)
    counts = {
        "requests_in": len(requests),
        "rows_kept": len(rows),
        "requests_rejected": len(requests) - len(rows),
        "requests_merged": sum(request.reason in MERGED for request in requests),
        "review_rows": sum(row.in_review for row in rows),
        **Counter(sorted(f"resembling_{row.resembles}" for row in rows if row.resembles)),
    }
    share, most = scrubbed.foreign / max(scrubbed.rows, 1), data.max_undeclared_language_share
    return [
        *(
            measure(n, count, "requests" if "requests" in n else "rows")
            for n, count in counts.items()
        ),
        *(measure(f"model_{code}", name, "text") for code, name in describe_models(data).items()),
        measure("undeclared_language_share", share, "share", "<=", most, on_breach="warn"),
    ]


def _evidence(
    model: str,
    day: date,
    requests: Sequence[Request],
    scrubbed: ScrubbedDay,
    settings: CurationSettings,
    *,
    suite: Suite,
    out: Path,
    whole: Sequence[Measurement],
) -> curated_days.CurationEvidence:
    """Check the table as it was written, and state what became of the day."""
    table = out / curated_days.REQUESTS
    verdict, failures, count = validate([suite], out / "gx")
    if verdict == Verdict.FAIL:
        raise TunelineError(
            f"the curation of {model}, {day}, is not stored, since it does not add up: "
            f"{'; '.join(failure.text for failure in failures)}"
        )
    measurements = [
        measure("expectations", count, "expectations"),
        measure("expectations_broken", len(failures), "expectations", "==", 0),
        *_measured(requests, scrubbed, settings.data),
        *whole,
    ]
    reasons = Counter(str(r.reason) for r in requests if r.reason is not None)
    left = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    kept, gone = len(staying(requests)), reasons.total()
    redactions = {"gateway": scrubbed.logged, "curation": scrubbed.found}
    size = table.stat().st_size
    facts = {"sha256": sha256_file(table), "bytes": size, "rows": len(requests)}
    return _stated(
        model,
        day,
        settings,
        verdict=conclude(measurements),
        summary=f"{len(requests)} requests to {model} on {day}: {kept} rows kept, {gone} rejected"
        f"{f' ({left})' if left else ''}; {sum(r.in_review for r in requests)} for review"
        f"{_of_ledger(whole)}",
        requests_in=len(requests),
        rows_kept=kept,
        rejected=dict(sorted(reasons.items())),
        redactions={who: dict(sorted(counts.items())) for who, counts in redactions.items()},
        measurements=measurements,
        files=[curated_days.StoredFile(name=table.name, **facts)],
    )


def _renderer(settings: CurationSettings) -> tuple[Renderer | None, list[FileRef]]:
    if settings.base_model is None:
        return None, []
    base = resolve(settings.base_model, log=lambda line: print(line, file=sys.stderr))
    ref = FileRef(name="base_model", uri=settings.base_model, sha256=base.digest, bytes=0)
    return Renderer(load_tokenizer(base.path), settings.data.target_format), [ref]
