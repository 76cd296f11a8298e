"""How rows look in print: what a model learns, special tokens, faults, personal data hidden."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import groupby, pairwise
from typing import NamedTuple

from tuneline.data.pii.entities import Recogniser
from tuneline.data.pii.patterns import Hit, find, resolve
from tuneline.data.rendering.renderer import RenderedExample, Renderer
from tuneline.data.tables.rows import Message

# Of a rejected row so many characters around its fault are shown.
WINDOW = 1500

_POSITION = re.compile(r" at (?:character|position) (\d+)")
_QUOTED = re.compile(r"'((?:[^'\\]|\\.)+)'|\"((?:[^\"\\]|\\.)+)\"")
_CODE_POINT = re.compile(r"U\+([0-9A-F]{4,6})")
_TURN = re.compile(r"\bturn (\d+)|the last turn")
# A quotation mark inside a text is escaped, so that these are keys.
_ROLE = re.compile(r'(?<!\\)"(?:role|from)"\s*:\s*("[^"]*")')
# What would move a terminal's cursor, or is no text at all.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class Piece(NamedTuple):
    """A stretch of text of one kind.

    Kinds: `plain` and `learnt`, each also with ` special` behind it, `fault`, `reason`, `hidden`.
    """

    text: str
    kind: str = "plain"


@cache
def _names() -> Recogniser:
    return Recogniser(None, ("PERSON",))


def personal_data(text: str) -> list[Hit]:
    """What patterns, checksums and introducing words find; no model is loaded."""
    return resolve([*find(text), *_names().find([text])[0]])


def hide(messages: Sequence[Message]) -> list[Message]:
    """Turns with placeholders for personal data."""
    return [
        {**message, "content": "".join(p.text for p in _window(message["content"], None, None))}
        for message in messages
    ]


def reason_pieces(reason: str) -> list[Piece]:
    """Why a row was rejected; it may quote the row."""
    return [piece._replace(kind="reason") for piece in _window(reason, None, None)]


def raw_pieces(raw: str, reason: str) -> list[Piece]:
    """A rejected row's source line: its fault marked, personal data hidden.

    Of a long line what stands around the fault.
    """
    fault = fault_place(raw, reason)
    start = max(0, (fault[0] if fault else 0) - WINDOW // 2)
    end = min(len(raw), start + WINDOW)
    pieces = list(_window(raw, fault, (start, end)))
    if start:
        pieces.insert(0, Piece(f"({start} characters) … ", "hidden"))
    if end < len(raw):
        pieces.append(Piece(f" … ({len(raw) - end} characters)", "hidden"))
    return pieces


def _window(
    text: str, fault: tuple[int, int] | None, window: tuple[int, int] | None
) -> Iterator[Piece]:
    """A text, or a part of it: personal data replaced whole, the fault marked."""
    first, last = window or (0, len(text))
    low, high = fault or (0, 0)
    at = 0
    for hit in [*personal_data(text), Hit(len(text), len(text), "")]:
        edges = sorted({at, hit.start, *(edge for edge in (low, high) if at < edge < hit.start)})
        for start, end in pairwise(edges):
            shown = text[max(start, first) : min(end, last)]
            if shown:
                yield Piece(shown, "fault" if low <= start < high else "plain")
        if hit.start < last and hit.end > first and hit.entity:
            inside = low < hit.end and hit.start < high
            yield Piece(f"[{hit.entity}]", "fault" if inside else "hidden")
        at = hit.end


def fault_place(raw: str, reason: str) -> tuple[int, int] | None:
    """Where in a source line the fault is that a reason names, None when it names no place."""
    code, _, detail = reason.partition(": ")
    position = _POSITION.search(f" {detail}")
    if position is not None and code in ("broken_json", "invalid_utf8"):
        at = int(position[1])
        if code == "invalid_utf8":
            # Positions count bytes; the byte itself is written out in the line.
            before = raw.encode("utf-8", "surrogatepass")[:at].decode("utf-8", "ignore")
            at = max(raw.find("\\x", len(before)), 0)
            return at, at + 4
        at = min(at, max(len(raw) - 1, 0))
        return at, at + 1
    wanted: list[str] = []
    point = _CODE_POINT.search(detail)
    if point is not None:
        character = chr(int(point[1], 16))
        wanted += [character, f"\\u{ord(character):04x}", f"\\u{ord(character):04X}"]
    quoted = _QUOTED.search(detail)
    if quoted is not None:
        text = quoted[1] or quoted[2]
        wanted += [f'"{text}"', text, json.dumps(text)[1:-1]]
    for text in wanted:
        # A key that stands twice is marked where it stands again.
        at = raw.rfind(text) if code == "duplicate_key" else raw.find(text)
        if at >= 0:
            return at, at + len(text)
    return _turn_place(raw, detail)


def _turn_place(raw: str, detail: str) -> tuple[int, int] | None:
    """The role of the turn that a reason numbers, or of the last turn."""
    number = _TURN.search(detail)
    if number is None:
        return None
    roles = [match.span(1) for match in _ROLE.finditer(raw)]
    at = int(number[1]) - 1 if number[1] else len(roles) - 1
    return roles[at] if 0 <= at < len(roles) else None


def token_pieces(example: RenderedExample, renderer: Renderer) -> list[Piece]:
    """A rendered row, cut where learning begins and ends and around special tokens."""
    backend = renderer.tokenizer.backend_tokenizer
    encoding = backend.encode(example.text, add_special_tokens=False)
    mask = example.loss_mask or [False] * len(encoding.ids)
    starts = [start for start, _ in encoding.offsets]
    # Characters that no token covers belong to the token before.
    ends = [*starts[1:], len(example.text)]
    special = renderer.special_ids
    kinds = [
        ("learnt" if learnt else "plain", token in special)
        for token, learnt in zip(encoding.ids, mask, strict=True)
    ]
    pieces = []
    if starts and starts[0]:
        pieces.append(Piece(example.text[: starts[0]]))
    for (kind, is_special), run in groupby(range(len(kinds)), key=kinds.__getitem__):
        places = list(run)
        text = example.text[starts[places[0]] : ends[places[-1]]]
        shown = f"{kind} special" if is_special else kind
        pieces.append(Piece(text, shown))
    return pieces


def marked(pieces: Iterable[Piece]) -> str:
    """Pieces in plain characters: ⟦what is learnt⟧ and ⟪the fault⟫."""
    parts = []
    for mark, run in groupby(pieces, key=lambda piece: _MARKS.get(piece.kind.split()[0])):
        text = visible("".join(piece.text for piece in run))
        parts.append(f"{mark[0]}{text}{mark[1]}" if mark and text else text)
    return "".join(parts)


_MARKS = {"learnt": "⟦⟧", "fault": "⟪⟫"}


def visible(text: str) -> str:
    """A text in which characters that no terminal shows are written out."""
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def mask_fault(messages: Sequence[Message], example: RenderedExample, renderer: Renderer) -> str:
    """Why a row's loss mask is wrong, empty when it covers the answers and nothing else.

    It is read back from the tokens themselves: what they decode to has to stand in the answers.
    """
    mask = example.loss_mask
    if mask is None:
        return "its mask trains on nothing: the answer's tokens can't be told from the prompt's"
    runs = [
        [index for index, _ in run]
        for learnt, run in groupby(enumerate(mask), key=lambda entry: entry[1])
        if learnt
    ]
    if not runs:
        return "its mask trains on nothing"
    answers = [m["content"] for m in messages if m["role"] == "assistant"]
    decoded = [
        renderer.tokenizer.decode(
            [example.ids[i] for i in run if example.ids[i] not in renderer.special_ids]
        ).strip()
        for run in runs
    ]
    for number, text in enumerate(decoded):
        if number >= len(answers) or text not in answers[number]:
            return f"its mask trains on the prompt: {visible(text)[:60]!r} is in no answer"
    if len(decoded) != len(answers) or decoded[-1] != answers[-1].strip():
        return "its mask does not cover the whole answer"
    return ""
