"""A person's review of scrubbed rows: its sheet, its form in Airflow, and the estimate from it."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tuneline.artifacts.answers import (
    PII_SHEET,
    DrawnRow,
    PiiFindings,
    PiiSheet,
    findings_document,
    findings_of,
)
from tuneline.artifacts.data import SCRUBBED
from tuneline.config import DataConfig
from tuneline.data.pii.measure.leak_estimate import PER_ROWS, decides
from tuneline.data.pii.measure.planting import asks_for_data
from tuneline.data.pii.measure.plants import KINDS, entity_of
from tuneline.data.tables.rows import Row
from tuneline.errors import UserError
from tuneline.evidence import Breach, Measurement, Rule, measure
from tuneline.machine.markdown import fenced
from tuneline.people.sheets import read_sheet, written
from tuneline.run import Run, now
from tuneline.statistics import Bounds, weighted_count
from tuneline.store import local_file

if TYPE_CHECKING:
    from tuneline.step_context import StepContext

# From the most risky on; a row belongs to the first that fits.
STRATA = ("after_question", "digits", "names", "other")
ROWS = 200
# Half of the rows are shared out evenly among the strata, half by their sizes.
_EVENLY = 0.5
_DIGITS = re.compile(r"\d{3,}")
_WORD = re.compile(r"[^\W\d_]{3,}")
# A capital that does not begin a sentence.
_CAPITAL = re.compile(r"(?<=[^\W\d_][ ,])[A-ZÀ-Þ][^\W\d_]+")


def draw_rows(rows: Sequence[Row], count: int = ROWS) -> list[DrawnRow]:
    """Draw some of the scrubbed rows, the same for the same rows and count; all if not more."""
    shown = [_shown(row) for row in rows]
    words = Counter(
        word for turns in shown for word in {w.casefold() for t in turns for w in _WORD.findall(t)}
    )
    strata: dict[str, list[tuple[str, int]]] = {name: [] for name in STRATA}
    for number, (row, turns) in enumerate(zip(rows, shown, strict=True)):
        content = json.dumps([row.row_id, row.messages], sort_keys=True, ensure_ascii=False)
        digest = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        strata[_stratum(row, turns, words)].append((digest, number))
    sizes = {name: len(members) for name, members in strata.items() if members}
    drawn = []
    for name, size in _share_out(sizes, min(count, len(rows))).items():
        for row_hash, number in sorted(strata[name])[:size]:
            row = rows[number]
            said = zip(row.messages, shown[number], strict=True)
            text = "\n\n".join(f"{message['role']}: {turn}" for message, turn in said)
            found = {"row_id": row.row_id, "row_hash": row_hash, "stratum": name, "text": text}
            drawn.append(DrawnRow(weight=sizes[name] / size, **found))
    return drawn


def _share_out(sizes: dict[str, int], count: int) -> dict[str, int]:
    """Return how many rows to draw from each stratum, at least one."""
    total = sum(sizes.values())
    more = max(0, count - len(sizes))
    wanted = {
        name: min(size, 1 + int(more * (_EVENLY / len(sizes) + (1 - _EVENLY) * size / total)))
        for name, size in sizes.items()
    }
    # What small strata can't use goes to the larger ones.
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        spare = max(0, count - sum(wanted.values()))
        wanted[name] = min(sizes[name], wanted[name] + spare)
    return wanted


def _shown(row: Row) -> list[str]:
    """Return the turns of a row with surrogates as `[ENTITY]`."""
    texts = [message["content"] for message in row.messages]
    for entry in sorted(row.stand_ins, key=lambda entry: -entry.start):
        text = texts[entry.turn]
        texts[entry.turn] = f"{text[: entry.start]}[{entry.entity}]{text[entry.end :]}"
    return texts


def _stratum(row: Row, shown: Sequence[str], words: Counter[str]) -> str:
    roles = [message["role"] for message in row.messages]
    said = [re.sub(r"\[[A-Z_]+\]", "", text) for text in shown]
    for turn in range(1, len(said)):
        answers = roles[turn - 1 : turn + 1] == ["assistant", "user"] and said[turn].strip()
        if answers and asks_for_data(row.messages[turn - 1]["content"]):
            return "after_question"
    text = "\n".join(one for role, one in zip(roles, said, strict=True) if role != "system")
    if _DIGITS.search(text):
        return "digits"
    # A word of no other row may be a name.
    rare = any(words[word.casefold()] == 1 for word in _WORD.findall(text))
    return "names" if rare or _CAPITAL.search(text) else "other"


GUESS = "a model's guess: canaries alone, no person has looked at rows"
# `data.pii_review` when people are to be asked.
ASK = "ask"
# As many as a person reads without a break.
ROWS_PER_FORM = 10
READ_ALL = "read_all"
COLUMNS = ("row_id", "row_hash", "stratum", "text", "missed")
NONE = "none"
TYPES = (*KINDS, "OTHER")
BETWEEN = "|"
_Missed = Sequence[tuple[str, str]]
_HOW = f"write {NONE}, or what was missed, as TYPE: text {BETWEEN} TYPE: text"


@dataclass(frozen=True)
class PiiReview:
    """Weight, stratum and missed entities of each row that was read; void with foreign rows."""

    weights: list[float] = field(default_factory=list)
    strata: list[str] = field(default_factory=list)
    missed: list[list[str]] = field(default_factory=list)
    foreign: int = 0

    def add(self, row: DrawnRow, missed: _Missed, weight: float) -> None:
        """Add a row, with what a person found in it."""
        self.weights.append(weight)
        self.strata.append(row.stratum)
        self.missed.append([entity_of(kind) for kind, _ in missed])

    def columns(self) -> dict[str, list[Any]]:
        """Return the columns of the table of the review, which holds no text."""
        missed = ["+".join(kinds) for kinds in self.missed]
        return {"stratum": self.strata, "weight": self.weights, "missed": missed}

    def left(self, kind: str | None = None) -> Bounds:
        """Return how many pieces are left in all rows, of one entity or of all."""
        weights = dict(zip(self.strata, self.weights, strict=True))
        pieces = Counter(dict.fromkeys(weights, 0))
        for stratum, kinds in zip(self.strata, self.missed, strict=True):
            pieces[stratum] += sum(kind in (None, entry) for entry in kinds)
        return weighted_count(list(pieces.values()), list(weights.values()))

    def left_per_1000(self, kind: str | None, rows: int) -> Bounds:
        """Return the same per 1,000 of the `rows` that were kept."""
        return Bounds(*(pieces * PER_ROWS / rows for pieces in self.left(kind)))

    def entities(self) -> list[str]:
        """Return the entities of what was missed."""
        return sorted({kind for entry in self.missed for kind in entry})


class Answer(NamedTuple):
    """What a person says of a row: file and line for errors, and type and text of each piece."""

    where: str
    row_id: str
    row_hash: str
    missed: _Missed


def as_csv(drawn: Iterable[DrawnRow]) -> bytes:
    """Return a sheet with an empty column for what was missed."""
    return written(COLUMNS, (row.model_dump() for row in drawn))


def read_answers(raw: bytes, name: str) -> list[Answer]:
    """Read a filled sheet; UserError names file and line of what is wrong or missing."""
    advice = "fill the file that `tuneline data review-pii --out` wrote"
    answers: dict[str, Answer] = {}
    for entry in read_sheet(raw, name, ("row_id", "row_hash", "missed"), advice):
        row_id, missed = entry.text("row_id"), _missed(entry.text("missed"), entry.where)
        if row_id in answers:
            raise UserError(f"{entry.where}: row {row_id} is there twice; keep one of the two")
        answers[row_id] = Answer(entry.where, row_id, entry.text("row_hash"), missed)
    if not answers:
        raise UserError(f"{name} holds no rows; `tuneline data review-pii` writes some")
    return list(answers.values())


def _missed(cell: str, where: str) -> tuple[tuple[str, str], ...]:
    """Return the type and text of each piece that a person wrote into a cell."""
    if not cell:
        raise UserError(f"{where}: the column missed is empty; {_HOW}")
    if cell.casefold() == NONE:
        return ()
    found = []
    for piece in cell.split(BETWEEN):
        kind, separator, text = (part.strip() for part in piece.partition(":"))
        if not separator or not text:
            raise UserError(f"{where}: {piece.strip()!r} is not TYPE: text; {_HOW}")
        if kind.upper() not in TYPES:
            raise UserError(f"{where}: no type is called {kind}; there are {', '.join(TYPES)}")
        found.append((kind.upper(), text))
    return tuple(found)


def read_review(address: str, rows: Sequence[Row], scratch: Path) -> PiiReview:
    """Read a filled sheet (path or address) and hold it against the rows; UserError if wrong."""
    try:
        raw = local_file(address, scratch).read_bytes()
    except OSError as error:
        raise UserError(
            f"data.pii_review: {address} can't be read: {error.strerror}; name a sheet that "
            "`tuneline data review-pii` wrote"
        ) from None
    return reviewed(read_answers(raw, address), rows)


def reviewed(given: Sequence[Answer], rows: Sequence[Row]) -> PiiReview:
    """Hold answers against the rows that would be drawn from a run; texts must stand in them."""
    drawn = {(row.row_id, row.row_hash): row for row in draw_rows(rows, len(given))}
    foreign = sum((answer.row_id, answer.row_hash) not in drawn for answer in given)
    if foreign or len(drawn) != len(given):
        return PiiReview(foreign=max(foreign, 1))
    review = PiiReview()
    for answer in given:
        row = drawn[answer.row_id, answer.row_hash]
        _check_pieces(answer.missed, row.text, answer.where, answer.row_id)
        review.add(row, answer.missed, row.weight)
    return review


def _check_pieces(missed: _Missed, text: str, where: str, row: int | str) -> None:
    for _, piece in missed:
        if piece.casefold() not in text.casefold():
            raise UserError(f"{where}: {piece!r} is not in row {row}; copy it from there")


def make_sheet(rows: Sequence[Row], count: int) -> PiiSheet:
    """Draw rows for people to read."""
    drawn = draw_rows(rows, count)
    named = "\n".join(f"{row.row_id} {row.row_hash}" for row in drawn)
    return PiiSheet(draw_id=hashlib.sha256(named.encode()).hexdigest()[:12], rows=drawn)


def open_forms(run: Run) -> list[list[int]]:
    """Return the row numbers of each form that nobody has answered; none if nobody is asked."""
    sheet = PII_SHEET.find(run) if run.config.data.pii_review == ASK else None
    if sheet is None:
        return []
    done = {number for found in findings_of(run, sheet.draw_id) for number in found.missed}
    numbers = range(1, len(sheet.rows) + 1)
    forms = [list(numbers[n : n + ROWS_PER_FORM]) for n in range(0, len(numbers), ROWS_PER_FORM)]
    return [form for form in forms if not done.issuperset(form)]


def form_body(run: Run, numbers: Sequence[int]) -> str:
    """Render rows of a run as Markdown, for the person who reads them."""
    sheet = _sheet(run)
    asked = (
        "Scrubbing has replaced what it found by `[TYPE]`. Is anything left that tells who "
        "somebody is, or a secret? Leave the field of a row empty if nothing is. Otherwise copy "
        f"each piece as `TYPE: text`, several with `{BETWEEN}` between them. "
        f"Types: {', '.join(TYPES)}."
    )
    texts = [f"### Row {number}\n\n{fenced(sheet.rows[number - 1].text)}" for number in numbers]
    return "\n\n".join([asked, *texts])


def form_fields(run: Run, numbers: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Return the fields of a form: JSON Schema keywords and a default for each."""
    draw_id = _sheet(run).draw_id
    hint = f"Empty, or TYPE: text {BETWEEN} TYPE: text"
    text = {"type": ["string", "null"], "default": None, "description": hint}
    tick = {"type": "boolean", "default": False, "title": "I have read every row of this form"}
    fields = {_field(draw_id, number): {**text, "title": f"Row {number}"} for number in numbers}
    return {**fields, READ_ALL: tick}


def record_form(
    run: Run, numbers: Sequence[int], given: Mapping[str, Any], reviewer: str
) -> PiiFindings:
    """Store the findings of a form; UserError for unread or other rows, or a wrong piece."""
    sheet, where = _sheet(run), f"review of {reviewer}"
    known = {_field(sheet.draw_id, number): number for number in numbers}
    stray = sorted(set(given) - set(known) - {READ_ALL})
    if stray:
        raise UserError(
            f"{where}: the form has no field {stray[0]}; if other rows were drawn since it was "
            "shown, read the new ones"
        )
    if given.get(READ_ALL) is not True:
        raise UserError(
            f"{where}: tick that every row was read; an empty field says that nothing was missed"
        )
    missed: dict[int, list[tuple[str, str]]] = {}
    for name, number in known.items():
        pieces = _missed(str(given.get(name) or NONE).strip() or NONE, f"row {number}")
        _check_pieces(pieces, sheet.rows[number - 1].text, where, number)
        missed[number] = list(pieces)
    findings = PiiFindings(draw_id=sheet.draw_id, reviewer=reviewer, at=now(), missed=missed)
    findings_document(sheet.draw_id, min(numbers)).put(run, findings)
    return findings


def answered(run: Run, sheet: PiiSheet) -> PiiReview:
    """Return what people found in the rows of a sheet; nothing while a stratum was not read.

    Those rows of a stratum that were read count for the others of it.
    """
    missed = {
        number: pieces
        for found in findings_of(run, sheet.draw_id)
        for number, pieces in found.missed.items()
        if 1 <= number <= len(sheet.rows)
    }
    drawn = Counter(row.stratum for row in sheet.rows)
    seen = Counter(sheet.rows[number - 1].stratum for number in missed)
    if seen.keys() != drawn.keys():
        return PiiReview()
    review = PiiReview()
    for number, pieces in sorted(missed.items()):
        row = sheet.rows[number - 1]
        review.add(row, pieces, row.weight * drawn[row.stratum] / seen[row.stratum])
    return review


def _sheet(run: Run) -> PiiSheet:
    sheet = PII_SHEET.find(run)
    if sheet is None:
        raise UserError(f"no rows of {run.uri} were drawn for review; run pii_scrubbing first")
    return sheet


def _field(draw_id: str, number: int) -> str:
    return f"row_{number}_{draw_id}"


def review_measurements(
    review: PiiReview | None, rows: int, config: DataConfig
) -> list[Measurement]:
    """Return what the estimate rests on and, with a review, what a person found in kept `rows`.

    An entity fails if even the lower end of its interval is above the limit: a small review can
    prove a leak, but not its absence.
    """
    seen = 0 if review is None else len(review.weights)
    basis = f"canaries and a person's review of {seen} rows" if seen else GUESS
    found = [measure("leak_estimate_rests_on", basis, "text"), measure("review_rows", seen, "rows")]
    if review is None:
        return found
    foreign = review.foreign
    found.append(measure("review_rows_of_other_data", foreign, "rows", "==", 0, on_breach="warn"))
    if not seen:
        return found
    for entity in (None, *review.entities()):
        name = "review_left_per_1000_rows" + (f"_{entity}" if entity else "")
        unit = "values per 1000 rows"
        value, lower, upper = (round(n, 4) for n in review.left_per_1000(entity, rows))
        rule: Rule | None = "<=" if entity and config.pii_max_left is not None else None
        limit = config.pii_max_left if rule else None
        breach: Breach = "fail" if entity and decides(entity, config.pii_profile) else "warn"
        found += [
            measure(name, value, unit),
            measure(f"{name}_at_most", upper, unit),
            measure(f"{name}_at_least", lower, unit, rule, limit, on_breach=breach),
        ]
    return found


def asked_review(ctx: StepContext) -> list[Measurement]:
    """Judge what people found in the scrubbed rows; nothing if nobody was asked."""
    config = ctx.config.data
    if config.pii_review != ASK:
        return []
    sheet, entry = PII_SHEET.read(ctx), ctx.entry(SCRUBBED.step)
    review, drawn = answered(ctx.run, sheet), len(sheet.rows)
    kept = next((m.value for m in entry.measurements if m.name == "rows_kept"), None)
    measured = review_measurements(review, int(kept or drawn), config)
    # That nobody has answered warns.
    read = measure("review_rows_read", len(review.weights), "rows", ">=", drawn, on_breach="warn")
    return [m.model_copy(update={"name": f"{SCRUBBED.step}.{m.name}"}) for m in [read, *measured]]
