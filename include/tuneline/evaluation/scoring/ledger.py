"""The hold-out and the ledger of every access to it.

A hold-out that something is chosen on stops being one. `open_holdout` is how a step gets its rows:
it first records run, time, purpose and candidate in a write-once object under
`ledger/holdout/<sha256 of the hold-out>/`, so the ledger spans all runs with the same hold-out. A
choice or a score also leaves the hashes of the questions under `ledger/rows/`, with which other
hold-outs are compared: the more candidates have been tried on the same rows, the surer must each
claim be. Rows that a release, or those that it started from, was trained on are no test of it, nor
of a model that starts from its weights; `seen_by` finds them.

Rows that ask the same count as one, see `independent_groups`.

Two rows are alike by the definition of the data steps; the search is that of `final_audit`, which
shares nothing else with the one that removed the duplicates. It finds 999 of 1,000 pairs at the
threshold, and more above it.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from tuneline.artifacts.data import DATASET, audit_of
from tuneline.artifacts.releases import Release, find_version
from tuneline.asking.rows import asked, of_split, turns_of
from tuneline.data.near_duplicates.compared_text import compared_texts
from tuneline.data.near_duplicates.shingles import normalise
from tuneline.data.near_duplicates.split import smallest_of_group, tie_conversations
from tuneline.data.near_duplicates.witness import cross_pairs
from tuneline.data.tables.rows import HOLDOUT, Row, base_id, read_dataset
from tuneline.environment import airflow_identity
from tuneline.errors import UserError
from tuneline.people.terminal import this_user
from tuneline.run import Run, now
from tuneline.step_context import StepContext
from tuneline.store import AlreadyThere, Store

Purpose = Literal["score", "review", "choose"]
# A blind look at answers that are scored already chooses nothing.
HARMLESS: frozenset[str] = frozenset({"score", "review"})
_QUESTIONS = "ledger/rows"
_HASH_BYTES = 8
# Hold-outs that share as many of their rows say the same of a candidate.
SHARED = 0.5
# Reads from a bucket wait for the network.
_READERS = 16


@dataclass(frozen=True)
class Access:
    """One access to a hold-out, at a time in RFC 3339, by a step or a command of a run.

    Attributes:
        candidate_sha256: hash of the model that was judged; empty if none was.
        airflow: the Airflow task; None outside of Airflow.
        repeat: True if the same model had been scored on the same hold-out before.
        by: who recorded it, as the operating system names them; empty for a step.
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
class Inherited:
    """Another hold-out, the row ids that both have, and the accesses to it."""

    holdout: str
    rows: list[str]
    accesses: list[Access]


@dataclass(frozen=True)
class Holdout:
    """The dataset of a run with its hold-out, after the access has been recorded.

    `seen` are rows of training and validation; `earlier` the accesses before, oldest first;
    `inherited` the other hold-outs with rows of this one.
    """

    held: list[Row]
    seen: list[Row]
    sha256: str
    earlier: list[Access]
    inherited: list[Inherited]

    def scored(self, candidate_sha256: str) -> list[Access]:
        """Return the earlier scorings of a model on these very rows."""
        wanted = ("score", candidate_sha256)
        return [a for a in self.earlier if (a.purpose, a.candidate_sha256) == wanted]

    def candidates(self, since: str = "") -> set[str]:
        """Return the models scored on these rows, or on half of them, since a run's candidate."""
        accesses = list(self.earlier)
        for each in self.inherited:
            if len(each.rows) >= SHARED * len(self.held):
                accesses += each.accesses
        scored = [access for access in accesses if access.purpose == "score"]
        begin = max((access.at for access in scored if access.run == since), default="")
        return {a.candidate_sha256 for a in scored if a.at > begin} - {""}


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
    # The name holds the hash of the entry, so an object that is there is this very entry.
    with suppress(AlreadyThere):
        store.put_bytes(f"{ledger_prefix(holdout)}/{name}", body, once=True)


def read_ledger(store: Store, holdout: str) -> list[Access]:
    """Return all accesses to a hold-out, oldest first."""
    keys = sorted(store.keys(ledger_prefix(holdout)))
    return [Access(**json.loads(store.get_bytes(key))) for key in keys]


def open_holdout(
    ctx: StepContext, purpose: Purpose, candidate_sha256: str, *, by: str = "", note: str = ""
) -> Holdout:
    """Record an access to the hold-out of the run (see `Access`), then return its rows."""
    rows, _ = read_dataset(DATASET.fetch(ctx), holdout=True)
    held, store = of_split(rows, HOLDOUT), ctx.run.store
    identity = holdout_sha256(held)
    earlier, inherited = read_ledger(store, identity), _inherited(store, identity, held)
    seen = [row for row in rows if row.split != HOLDOUT]
    opened = Holdout(held, seen, identity, earlier, inherited)
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
    # An earlier access to the same hold-out has left the same bytes.
    with suppress(AlreadyThere):
        if purpose != "review":
            content = b"".join(sorted(_questions(held)))
            store.put_bytes(f"{_QUESTIONS}/{identity}", content, once=True)
    note_access(store, identity, access)
    return opened


def choosing(accesses: Sequence[Access]) -> list[Access]:
    """Return the accesses whose purpose chooses something, which a hold-out must never serve."""
    return [access for access in accesses if access.purpose not in HARMLESS]


def _questions(rows: Iterable[Row]) -> Mapping[bytes, list[str]]:
    """Return the row ids by a hash of the row's question, whatever its case and punctuation."""
    found: dict[bytes, list[str]] = {}
    for row in rows:
        text = normalise(asked(row)) or asked(row)
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        found.setdefault(digest[:_HASH_BYTES], []).append(row.row_id)
    return found


def _inherited(store: Store, holdout: str, rows: Sequence[Row]) -> list[Inherited]:
    """Find the other hold-outs that have rows of this one."""
    own = _questions(rows)
    # Earlier versions wrote a day before the identity.
    others = {key: key.rpartition("/")[2].rpartition("-")[2] for key in store.keys(_QUESTIONS)}
    keys = sorted(key for key, other in others.items() if other != holdout)
    found = []
    with ThreadPoolExecutor(_READERS) as pool:
        for key, raw in zip(keys, pool.map(store.get_bytes, keys), strict=True):
            hashes = {raw[at : at + _HASH_BYTES] for at in range(0, len(raw), _HASH_BYTES)}
            shared = [row_id for each in own.keys() & hashes for row_id in own[each]]
            if shared:
                accesses = read_ledger(store, others[key])
                found.append(Inherited(others[key], sorted(shared), accesses))
    return found


def record_access(run_uri: str, purpose: Purpose, note: str) -> int:
    """Record that somebody used the hold-out of a run; return the number of accesses before.

    UserError if there is no such run, its dataset is not made, or it has no hold-out.
    """
    with _context(run_uri) as ctx:
        opened = open_holdout(ctx, purpose, "", by=this_user(), note=note)
        if not opened.held:
            raise UserError(f"the dataset of {run_uri} has no hold-out row")
        return len(opened.earlier)


def accesses_of(run_uri: str) -> list[Access]:
    """Return the accesses to the hold-out of a run, oldest first; this is none."""
    with _context(run_uri) as ctx:
        rows, _ = read_dataset(DATASET.fetch(ctx), holdout=True)
        return read_ledger(ctx.run.store, holdout_sha256(of_split(rows, HOLDOUT)))


@contextmanager
def _context(run_uri: str) -> Iterator[StepContext]:
    """Return the surroundings of a step that leaves nothing but its entry in the ledger."""
    run = Run.open(run_uri)
    with tempfile.TemporaryDirectory(prefix="tuneline-holdout-") as folder:
        place = Path(folder)
        yield StepContext(run, "by hand", out=place, quarantine=place, scratch=place)


@dataclass(frozen=True)
class SeenRows:
    """The hold-out rows that the trainings behind some weights have seen.

    `unknown` are versions whose training rows are no longer in the store.
    """

    ids: frozenset[str] = frozenset()
    unknown: tuple[str, ...] = ()


def seen_by(ctx: StepContext, version: str, held: Sequence[Row]) -> SeenRows:
    """Find the hold-out rows that a released version has seen, by their text or nearly so."""
    texts: dict[str, Row] = {}
    unknown = []
    for name, release in _weights_behind(ctx, version):
        rows = None if release is None else _trained_on(release, ctx.scratch / "earlier" / name)
        if rows is None:
            unknown.append(name)
        else:
            texts.update((normalise(asked(turn)), turn) for row in rows for turn in turns_of(row))
    same = {row.row_id for row in held if normalise(asked(row)) in texts}
    rest = [row for row in held if row.row_id not in same]
    alike = near_duplicates(rest, list(texts.values()), ctx.config.data.near_duplicate_jaccard)
    return SeenRows(frozenset(same | {leak.row_id for leak in alike}), tuple(unknown))


def _weights_behind(ctx: StepContext, version: str) -> list[tuple[str, Release | None]]:
    """Return a version and those whose weights it started from, None for one that is gone."""
    found: list[tuple[str, Release | None]] = []
    wanted: str | None = version
    while wanted is not None:
        release = find_version(ctx.run.store, ctx.config.name, wanted)
        found.append((wanted, release))
        lora = release.manifest.hyperparameters.get("lora") if release else None
        start = (lora or {}).get("started_from")
        wanted = start["version"] if start else None
    return found


def _trained_on(release: Release, folder: Path) -> list[Row] | None:
    """Return the training and validation rows of a release; None if they are gone."""
    ref = release.artifact(DATASET.step, DATASET.name)
    if ref is None:
        return None
    try:
        return read_dataset(release.fetch(ref, folder / DATASET.name))[0]
    except UserError:
        return None


@dataclass(frozen=True)
class Leak:
    """A hold-out row and the most similar row of another split."""

    row_id: str
    other_id: str
    other_split: str
    similarity: float


def independent_groups(ctx: StepContext, rows: Sequence[Row]) -> list[int]:
    """Return the number of each row's group, of which all rows count as one.

    A group are rows that ask the same or nearly so (Jaccard), pieces of one row, and turns of one
    conversation. Where deduplication has looked at the rows, its groups count too: they also tie
    conversations by their names, and texts that differ in surrogates alone.
    """
    import pyarrow.parquet as pq

    own = [asked(row) for row in rows]
    pairs = cross_pairs(
        compared_texts(own, own), range(len(rows)), ctx.config.data.near_duplicate_jaccard
    )
    ties = [(first, second) for first, second, _ in pairs]
    audit = audit_of("deduplication")
    known: dict[str, int | None] = {}
    if ctx.run.find_entry(audit.step) and audit.exists(ctx):
        table = pq.read_table(audit.fetch(ctx), columns=["row_id", "conversation"])
        known = dict(zip(*(table[name].to_pylist() for name in table.column_names), strict=True))
    first_of: dict[object, int] = {}
    for number, row in enumerate(rows):
        source = base_id(row.row_id)
        group = known.get(source)
        for key in (source,) if group is None else (source, group):
            ties.append((first_of.setdefault(key, number), number))
    return tie_conversations(lambda: rows, smallest_of_group(len(rows), ties))


def same_ids(held: Sequence[Row], seen: Sequence[Row]) -> list[str]:
    """Return the hold-out rows whose source row (the id without its part `#k`) was seen too."""
    elsewhere = {base_id(row.row_id) for row in seen}
    return sorted(row.row_id for row in held if base_id(row.row_id) in elsewhere)


def near_duplicates(held: Sequence[Row], seen: Sequence[Row], threshold: float) -> list[Leak]:
    """Find the hold-out rows whose question resembles (Jaccard) one seen, each with the closest."""
    own = [asked(row) for row in (*held, *seen)]
    texts = compared_texts(own, own)
    sides = [1] * len(held) + [0] * len(seen)
    best: dict[int, tuple[float, int]] = {}
    for other, row, similarity in cross_pairs(texts, sides, threshold):
        found = (similarity, other - len(held))
        best[row] = max(best.get(row, found), found)
    return [
        Leak(held[row].row_id, seen[col].row_id, seen[col].split, round(similarity, 4))
        for row, (similarity, col) in sorted(best.items())
    ]
