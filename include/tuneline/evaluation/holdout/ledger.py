"""The hold-out and the ledger of every access to it.

A hold-out that something is chosen on stops being one. Steps read its rows through
`open_holdout`, which first records the run, the time, the purpose and the candidate. An entry
is one write-once object under `ledger/holdout/<sha256 of the hold-out>/` in the store, so the
ledger spans all runs that use the same hold-out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tuneline.data.tables.rows import HOLDOUT, Row
from tuneline.harness.rows import of_split
from tuneline.run import StepContext, airflow_identity, now
from tuneline.store import AlreadyThere, Store

Purpose = Literal["score", "review"]
# A blind look at answers that are scored already chooses nothing.
HARMLESS: frozenset[str] = frozenset({"score", "review"})


@dataclass(frozen=True)
class Access:
    """One access to a hold-out, by a step of the run with the URI `run`."""

    at: str
    purpose: str
    run: str
    step: str
    candidate_sha256: str
    rows: int
    airflow: dict[str, Any] | None = None


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
    ctx: StepContext, rows: Sequence[Row], purpose: Purpose, candidate_sha256: str
) -> tuple[list[Row], str, list[Access]]:
    """Record an access to the hold-out, then return its rows.

    Args:
        ctx: the step that reads.
        rows: all rows of the dataset.
        purpose: the purpose of the access.
        candidate_sha256: hash of the model file that is judged.

    Returns:
        The hold-out rows, the hold-out's identity, and the accesses before this one.
    """
    held = of_split(rows, HOLDOUT)
    identity = holdout_sha256(held)
    earlier = read_ledger(ctx.run.store, identity)
    access = Access(
        at=now(),
        purpose=purpose,
        run=ctx.run.uri,
        step=ctx.step,
        candidate_sha256=candidate_sha256,
        rows=len(held),
        airflow=airflow_identity(),
    )
    note_access(ctx.run.store, identity, access)
    return held, identity, earlier


def choosing(accesses: Sequence[Access]) -> list[Access]:
    """Return the accesses whose purpose chooses something, which a hold-out must never serve."""
    return [access for access in accesses if access.purpose not in HARMLESS]
