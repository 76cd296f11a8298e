"""The hold-out and the ledger of every access to it.

A hold-out that something is chosen on stops being one. `open_holdout` is how a step gets its rows:
it first records the run, the time, the purpose and the candidate. An entry is one write-once object
under `ledger/holdout/<sha256 of the hold-out>/` in the store, so the ledger spans all runs that use
the same hold-out. What the hold-out shares with others has a history too; see `shared_rows`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tuneline.artifacts.data import DATASET
from tuneline.data.tables.rows import HOLDOUT, Row, read_dataset
from tuneline.environment import airflow_identity
from tuneline.evaluation.holdout.shared_rows import Overlap, Overlaps, note_rows, overlaps
from tuneline.harness.rows import of_split
from tuneline.run import now
from tuneline.step_context import StepContext
from tuneline.store import AlreadyThere, Store

Purpose = Literal["score", "review", "choose"]
# A blind look at answers that are scored already chooses nothing.
HARMLESS: frozenset[str] = frozenset({"score", "review"})


@dataclass(frozen=True)
class Access:
    """One access to a hold-out.

    Attributes:
        at: its time, RFC 3339.
        purpose: what the rows were read for; see `Purpose`.
        run: URI of the run.
        step: the step, or the command.
        candidate_sha256: hash of the model that was judged; empty if none was.
        rows: rows of the hold-out.
        airflow: the Airflow task; None outside of Airflow.
        repeat: True if the same model had been scored on the same hold-out before.
        by: who recorded it, as the operating system names them; empty for a step.
        note: what was chosen.
    """

    at: str
    purpose: str
    run: str
    step: str
    candidate_sha256: str
    rows: int
    airflow: dict[str, Any] | None = None
    repeat: bool = False
    by: str = ""
    note: str = ""


@dataclass(frozen=True)
class Opened:
    """The dataset of a run with its hold-out, after the access has been recorded.

    Attributes:
        held: rows of the hold-out.
        seen: rows of training and validation.
        sha256: identity of the hold-out.
        earlier: the accesses before this one, oldest first.
        shared: what it shares with other hold-outs that were used.
    """

    held: list[Row]
    seen: list[Row]
    sha256: str
    earlier: list[Access]
    shared: Overlaps

    def scored(self, candidate_sha256: str) -> list[Access]:
        """Return the earlier scorings of a model on these very rows."""
        return [
            access
            for access in self.earlier
            if access.purpose == "score" and access.candidate_sha256 == candidate_sha256
        ]


def holdout_sha256(rows: Sequence[Row]) -> str:
    """Return the identity of a hold-out: a hash of its rows that does not depend on their order."""
    digest = hashlib.sha256()
    for row in sorted(rows, key=lambda row: row.row_id):
        line = [row.row_id, [[turn["role"], turn["content"]] for turn in row.messages]]
        digest.update(json.dumps(line, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


def ledger_prefix(holdout: str) -> str:
    """Return the prefix of a hold-out's entries in the store."""
    return f"ledger/holdout/{holdout}"


def note_access(store: Store, holdout: str, access: Access) -> None:
    """Record an access; entries are never replaced."""
    body = json.dumps(asdict(access), ensure_ascii=False).encode()
    name = f"{access.at.replace(':', '')}-{hashlib.sha256(body).hexdigest()[:12]}.json"
    try:
        store.put_bytes(f"{ledger_prefix(holdout)}/{name}", body, once=True)
    except AlreadyThere:
        # The name holds the hash of the entry, so the object there is this very entry.
        return


def read_ledger(store: Store, holdout: str) -> list[Access]:
    """Return all accesses to a hold-out, oldest first."""
    keys = sorted(store.keys(ledger_prefix(holdout)))
    return [Access(**json.loads(store.get_bytes(key))) for key in keys]


def open_holdout(
    ctx: StepContext,
    purpose: Purpose,
    candidate_sha256: str,
    *,
    by: str = "",
    note: str = "",
) -> Opened:
    """Record an access to the hold-out of the run, then return its rows.

    Args:
        ctx: the step that reads.
        purpose: the purpose of the access.
        candidate_sha256: hash of the model that is judged; empty if none is.
        by: who records it; empty for a step.
        note: what was chosen.
    """
    rows, _ = read_dataset(DATASET.fetch(ctx), holdout=True)
    held = of_split(rows, HOLDOUT)
    identity = holdout_sha256(held)
    store = ctx.run.store
    earlier = read_ledger(store, identity)
    opened = Opened(
        held,
        [row for row in rows if row.split != HOLDOUT],
        identity,
        earlier,
        overlaps(store, identity, held, ctx.log),
    )
    access = Access(
        at=now(),
        purpose=purpose,
        run=ctx.run.uri,
        step=ctx.step,
        candidate_sha256=candidate_sha256,
        rows=len(held),
        airflow=airflow_identity(),
        repeat=purpose == "score" and bool(opened.scored(candidate_sha256)),
        by=by,
        note=note,
    )
    note_access(store, identity, access)
    if not opened.shared.noted:
        note_rows(store, identity, held)
    return opened


def choosing(accesses: Sequence[Access]) -> list[Access]:
    """Return the accesses whose purpose chooses something, which a hold-out must never serve."""
    return [access for access in accesses if access.purpose not in HARMLESS]


def history_of(store: Store, shared: Sequence[Overlap]) -> list[Access]:
    """Return the accesses to other hold-outs with which rows are shared, oldest first."""
    found = [access for each in shared for access in read_ledger(store, each.holdout)]
    return sorted(found, key=lambda access: access.at)
