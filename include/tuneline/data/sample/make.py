"""Make the sample dataset: support messages of an imaginary parcel shop, with planted faults.

The same seed gives the same bytes on every platform and Python version. `planted.json` names every
planted fault with its line, so that the findings of each data gate can be compared with it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tuneline.data.near_duplicates.split import quotas
from tuneline.data.sample import faults
from tuneline.data.sample.text import Draw, Row, Writer
from tuneline.data.sample.whole_file import write_whole

SCHEMA = "tuneline/planted/1"
DEFAULT_SEED = 7

CLEAN_ROWS = 787
PII_PER_TYPE = 3
# Rows whose answer repeats the name or address of the customer: surrogates have to agree.
PII_ECHOED = ("PERSON", "PERSON", "EMAIL_ADDRESS", "EMAIL_ADDRESS")
MALFORMED_PER_FAULT = 3
OVER_LONG = 6
EXACT_DUPLICATES = 18
NEAR_DUPLICATES = 22
LABEL_CONFLICTS = 8


@dataclass(eq=False)
class Entry:
    """One line of the file.

    Attributes:
        data: bytes of the line.
        intent: intent that a reader would see, None if the line is malformed.
        faults: kind and details of each planted fault.
        original: line of which this one is a copy.
    """

    data: bytes
    intent: str | None
    faults: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    original: Entry | None = None


def row_line(row: Row, system: str) -> bytes:
    """Return the JSONL line of a row, without its newline."""
    return json.dumps({"messages": row.messages(system)}, ensure_ascii=False).encode()


def _counts(writer: Writer, total: int) -> dict[str, int]:
    """Return the number of rows of each intent, in the intended shares."""
    return quotas({name: round(1000 * share) for name, share in writer.shares().items()}, total)


def _plan(writer: Writer, total: int) -> list[str]:
    """Return the intents of `total` rows in random order, in the intended shares."""
    counts = _counts(writer, total)
    return writer.draw.shuffled([name for name in writer.intents for _ in range(counts[name])])


def _clean(writer: Writer) -> list[tuple[Row, Entry]]:
    spec = writer.phrases["boilerplate"]
    wanted = round(spec["share"] * _counts(writer, CLEAN_ROWS)[spec["intent"]])
    pairs = []
    for intent in _plan(writer, CLEAN_ROWS):
        phrase = intent == spec["intent"] and wanted > 0
        wanted -= phrase
        row = writer.row(intent, boilerplate=phrase)
        entry = Entry(row_line(row, writer.system), intent)
        if phrase:
            entry.faults.append(("boilerplate", {"phrase": spec["text"]}))
        pairs.append((row, entry))
    return pairs


def _with_pii(writer: Writer) -> list[Entry]:
    draw, entries = writer.draw, []
    kinds = [kind for kind in faults.PII_KINDS for _ in range(PII_PER_TYPE)]
    for number, kind in enumerate([*kinds, *PII_ECHOED]):
        echoed = number >= len(kinds)
        pii = faults.personal_data(kind, draw)
        row = writer.row(draw.pick(_plan(writer, 50)), carrier=pii.sentence)
        if echoed:
            row = Row(row.intent, row.user, f"{row.reply[:-1]} and write to {pii.text}.")
        turns = ["user", "assistant"] if echoed else ["user"]
        detail = {"entities": [{"type": kind, "text": pii.text, "turns": turns}]}
        entries.append(Entry(row_line(row, writer.system), row.intent, [("pii", detail)]))
    return entries


def _malformed(writer: Writer) -> list[Entry]:
    entries = []
    for fault in faults.MALFORMED:
        for _ in range(MALFORMED_PER_FAULT):
            row = writer.row(writer.draw.pick(_plan(writer, 50)))
            data = faults.malformed(fault, row, writer)
            entries.append(Entry(data, None, [("malformed", {"fault": fault})]))
    return entries


def _over_long(writer: Writer) -> list[Entry]:
    entries = []
    for intent in _plan(writer, OVER_LONG):
        row = writer.add(faults.ramble(writer.row(intent), writer))
        detail = {"words": len(row.user.split())}
        entries.append(Entry(row_line(row, writer.system), intent, [("over_long", detail)]))
    return entries


def _copies(writer: Writer, pairs: Sequence[tuple[Row, Entry]]) -> list[Entry]:
    """Return exact copies, near copies and contradictions of different clean rows."""
    draw, entries = writer.draw, []
    free = iter(draw.shuffled([pair for pair in pairs if not pair[1].faults]))
    for _ in range(EXACT_DUPLICATES):
        row, entry = next(free)
        entries.append(Entry(entry.data, row.intent, [("exact_duplicate", {})], entry))
    for _ in range(NEAR_DUPLICATES):
        row, entry = next(free)
        copy, user, whole = faults.near_copy(row, writer)
        near = {"jaccard_user": round(user, 4), "jaccard_row": round(whole, 4)}
        data = row_line(copy, writer.system)
        entries.append(Entry(data, row.intent, [("near_duplicate", near)], entry))
    for _ in range(LABEL_CONFLICTS):
        row, entry = next(free)
        other = draw.pick([name for name in writer.intents if name != row.intent])
        acts = draw.pick(writer.phrases["intents"][other]["topics"])["acts"]
        reply = writer.reply([act for act in acts if "{" not in act], row.user, {})
        data = row_line(Row(other, row.user, reply), writer.system)
        labels = {"intent": other, "original_intent": row.intent}
        entries.append(Entry(data, other, [("label_conflict", labels)], entry))
    return entries


def _in_order(entries: list[Entry], draw: Draw) -> list[Entry]:
    """Return the entries in random order, each copy after its original."""
    order = draw.shuffled(entries)
    at = {id(entry): position for position, entry in enumerate(order)}
    for entry in entries:
        if entry.original is not None and at[id(entry)] < at[id(entry.original)]:
            here, there = at[id(entry)], at[id(entry.original)]
            order[here], order[there] = order[there], order[here]
            at[id(entry)], at[id(entry.original)] = there, here
    return order


def make_sample(seed: int = DEFAULT_SEED) -> tuple[list[bytes], dict[str, Any]]:
    """Make the sample dataset.

    Args:
        seed: seed of the draws; each gives another dataset of the same make-up.

    Returns:
        The lines (without newlines) and the report on the planted faults: `{schema, seed, lines,
        intents, system, counts: {kind: lines}, classes: {intent: lines}, planted: [{line, kind,
        detail}]}`, lines from 1. `classes` counts the well-formed lines.
    """
    writer = Writer(Draw(seed))
    clean = _clean(writer)
    entries = [entry for _, entry in clean]
    entries += _with_pii(writer) + _malformed(writer) + _over_long(writer)
    entries += _copies(writer, clean)
    order = _in_order(entries, writer.draw)
    line_of = {id(entry): number for number, entry in enumerate(order, start=1)}
    planted: list[dict[str, Any]] = []
    for entry in order:
        for kind, facts in entry.faults:
            of = {"of": line_of[id(entry.original)]} if entry.original else {}
            planted.append({"line": line_of[id(entry)], "kind": kind, "detail": {**of, **facts}})
    classes = Counter(entry.intent for entry in order if entry.intent is not None)
    return [entry.data for entry in order], {
        "schema": SCHEMA,
        "seed": seed,
        "lines": len(order),
        "intents": writer.intents,
        "system": writer.system,
        "counts": dict(sorted(Counter(fault["kind"] for fault in planted).items())),
        "classes": {name: classes[name] for name in writer.intents},
        "planted": planted,
    }


def counts_table(planted: dict[str, Any]) -> str:
    """Return a Markdown table of the sample: lines by intent and by fault."""
    well_formed = sum(planted["classes"].values())
    rows = [("well-formed lines by intent", well_formed, well_formed / planted["lines"])]
    rows += [(f"`{k}`", n, n / well_formed) for k, n in planted["classes"].items()]
    rows.append(("lines in all", planted["lines"], 1.0))
    rows += [(f"planted: `{k}`", n, n / planted["lines"]) for k, n in planted["counts"].items()]
    body = [f"| {name} | {count} | {share:.1%} |" for name, count, share in rows]
    return "\n".join(["| what | lines | share |", "|---|---|---|", *body])


def write_sample(out: Path, planted: Path, seed: int = DEFAULT_SEED) -> dict[str, Any]:
    """Write the dataset as JSONL and the report on the planted faults as JSON.

    Returns:
        The report of `make_sample`.

    Raises:
        UserError: if a file can't be written.
    """
    lines, report = make_sample(seed)
    text = json.dumps(report, ensure_ascii=False, indent=1) + "\n"
    write_whole({out: b"".join(line + b"\n" for line in lines), planted: text.encode()})
    return report
