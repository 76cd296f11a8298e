"""`tuneline data show`: print rows as the model will see them, with the text that it learns."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import groupby, pairwise
from pathlib import Path
from typing import NamedTuple, TextIO

from tuneline.config import DataConfig
from tuneline.data.pii.find.detector import Detector
from tuneline.data.pii.find.entities import Hit, Settings
from tuneline.data.pii.find.models import model_directories
from tuneline.data.pii.find.texts import Shared
from tuneline.data.rendering.renderer import RenderedExample, Renderer, TemplateRefused
from tuneline.data.show.rows import Shown, gather
from tuneline.data.tables.rows import Message
from tuneline.errors import EXIT_FAILED, EXIT_OK, TunelineError, UserError

# Characters of a rejected row that are shown around its fault.
WINDOW = 1500

_POSITION = re.compile(r"at character (\d+)")
_NAMED = re.compile(r"'(?P<single>(?:[^'\\]|\\.)+)'|\"(?P<double>(?:[^\"\\]|\\.)+)\"")
# Characters that would move a terminal's cursor, and lone surrogates.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class Piece(NamedTuple):
    """A stretch of text: `plain` or `learnt` (also ` special`), `fault`, `reason` or `hidden`."""

    text: str
    kind: str = "plain"


@cache
def _detector() -> Detector:
    """Return the usual model, without which names are not found."""
    try:
        models = model_directories(DataConfig(source="rows"))
    except TunelineError as error:
        print(f"names are shown, since no model finds them: {error}", file=sys.stderr)
        models = ()
    return Detector(Settings(models=models))


def hide(messages: Sequence[Message]) -> list[Message]:
    """Return turns with placeholders for personal data."""
    return [
        {**message, "content": "".join(p.text for p in _window(message["content"], None, None))}
        for message in messages
    ]


def raw_pieces(raw: str, reason: str) -> list[Piece]:
    """Return a rejected row's line, or what surrounds its fault, with personal data hidden."""
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
    """Cut a text, or a part of it, into pieces: personal data replaced whole, the fault marked."""
    first, last = window or (0, len(text))
    low, high = fault or (0, 0)
    at = 0
    (found,) = _detector().rows([[{"role": "user", "content": text}]], Shared())
    for hit in [*found.get(text, ()), Hit(len(text), len(text), "")]:
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
    """Find the fault that a reason names in a source line, None if it names no place there.

    The tables in quarantine hold the reason and no place, so it is read from the reason: a
    position, or a text that the reason quotes.
    """
    code, _, detail = reason.partition(": ")
    position = _POSITION.search(detail) if code == "broken_json" else None
    if position is not None:
        at = min(int(position[1]), max(len(raw) - 1, 0))
        return at, at + 1
    for text in _named_texts(detail):
        # A key that is repeated is marked at its repetition.
        at = raw.rfind(text) if code == "duplicate_key" else raw.find(text)
        if at >= 0:
            return at, at + len(text)
    return None


def _named_texts(detail: str) -> Iterator[str]:
    """Return the texts that a reason quotes, each as it may stand in a line of JSON."""
    for match in _NAMED.finditer(detail):
        text = match["single"] or match["double"]
        yield from (f'"{text}"', text, json.dumps(text)[1:-1])


def token_pieces(example: RenderedExample, renderer: Renderer) -> list[Piece]:
    """Cut a rendered row where learning begins and ends, and around special tokens."""
    backend = renderer.tokenizer.backend_tokenizer
    encoding = backend.encode(example.text, add_special_tokens=False)
    mask = example.loss_mask or [False] * len(encoding.ids)
    starts = [start for start, _ in encoding.offsets]
    # Characters that no token covers go to the token before.
    ends = [*starts[1:], len(example.text)]
    special = renderer.special_ids
    kinds = [
        ("learnt" if learnt else "plain") + (" special" if token in special else "")
        for token, learnt in zip(encoding.ids, mask, strict=True)
    ]
    pieces = []
    if starts and starts[0]:
        pieces.append(Piece(example.text[: starts[0]]))
    for kind, run in groupby(range(len(kinds)), key=kinds.__getitem__):
        places = list(run)
        pieces.append(Piece(example.text[starts[places[0]] : ends[places[-1]]], kind))
    return pieces


def marked(pieces: Iterable[Piece]) -> str:
    """Join pieces in plain characters: ⟦learnt text⟧ and ⟪the fault⟫."""
    parts = []
    for mark, run in groupby(pieces, key=lambda piece: _MARKS.get(piece.kind.split()[0])):
        text = visible("".join(piece.text for piece in run))
        parts.append(f"{mark[0]}{text}{mark[1]}" if mark and text else text)
    return "".join(parts)


_MARKS = {"learnt": "⟦⟧", "fault": "⟪⟫"}


def visible(text: str) -> str:
    """Write out the characters of a text that a terminal does not show."""
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def mask_fault(messages: Sequence[Message], example: RenderedExample, renderer: Renderer) -> str:
    """Return the fault of a row's loss mask, empty if it covers the answers and nothing else."""
    mask = example.loss_mask
    if mask is None:
        return "its mask trains on nothing: the answer's first token merges with the prompt's last"
    runs = [
        [index for index, _ in run]
        for learnt, run in groupby(enumerate(mask), key=lambda entry: entry[1])
        if learnt
    ]
    if not runs:
        return "its mask trains on nothing"
    places = [n for n, message in enumerate(messages) if message["role"] == "assistant"]
    places = places if renderer.stays(messages) else places[-1:]
    said = text = ""
    for number, run in enumerate(runs):
        turns = messages[: places[number] + 1] if number < len(places) else ()
        form = renderer.form_of(turns)
        text = renderer.tokenizer.decode([example.ids[i] for i in run])
        text = text.removeprefix(form.lead).removesuffix(form.end).strip()
        # The text of a call is the template's.
        said = text if form is renderer.call_form else "".join(t["content"] for t in turns[-1:])
        if not turns or text not in said:
            return f"its mask trains on the prompt: {visible(text)[:60]!r} is in no answer"
    if len(runs) != len(places) or text != said.strip():
        return "its mask does not cover the whole answer"
    return ""


ROWS = 5
_STYLES = {
    "plain": "dim",
    "plain special": "dim cyan",
    "learnt": "green",
    "learnt special": "bold green",
    "fault": "bold white on red",
    "reason": "bold red",
    "hidden": "magenta",
}


def show(
    target: str,
    *,
    row: int | None = None,
    mask: bool = False,
    rejected: bool = False,
    step: str | None = None,
    base_model: str,
    config_file: Path | None = None,
    limit: int = ROWS,
) -> int:
    """Print rows; return 1 if a mask trains on nothing, or on something other than its answers."""
    rows, renderer = gather(
        target,
        step=step,
        rejected=rejected,
        row=row,
        base_model=base_model,
        config_file=config_file,
    )
    chosen = [shown for shown in rows if row is None or shown.number == row][:limit]
    if not chosen:
        kind = "rejected row" if rejected else "row"
        which = f"no {kind} {row}" if row is not None else f"no {kind}"
        raise UserError(f"{target} has {which} to show; it has {len(rows)} {kind}s")
    screen = _Screen(sys.stdout)
    if mask and any(shown.messages for shown in chosen):
        screen.legend()
    found = [(s.number, _print_row(screen, s, renderer, mask=mask)) for s in chosen]
    faults = [f"row {number}: {fault}" for number, fault in found if fault]
    for fault in faults:
        print(f"tuneline: {fault}", file=sys.stderr)
    return EXIT_FAILED if faults else EXIT_OK


def _print_row(screen: _Screen, shown: Shown, renderer: Renderer, *, mask: bool) -> str:
    """Print a row; return the fault of its mask, empty if there is none."""
    reject = shown.reject
    if reject is not None:
        screen.head(shown, [reject.item])
        # Its quotations of the row are hidden like the row itself.
        screen.line([p._replace(kind="reason") for p in _window(reject.reason, None, None)])
        screen.line(raw_pieces(reject.raw, reject.reason))
        if reject.code == "mask_boundary":
            return f"its mask trains on nothing ({reject.reason})"
        return ""
    messages = hide(shown.messages) if shown.unscrubbed else shown.messages
    try:
        example = renderer.render([messages])[0]
    except TemplateRefused as error:
        raise UserError(f"row {shown.number}: the chat template refuses it: {error}") from None
    if shown.served_by is not None:
        example = replace(example, loss_mask=example.last_answer())
        messages = messages[-1:]
    learnt = sum(example.loss_mask or ())
    screen.head(shown, [*shown.facts, f"{len(example.ids)} tokens, {learnt} in the loss"])
    pieces = token_pieces(example, renderer)
    if not mask:
        pieces = [p._replace(kind=p.kind.replace("learnt", "plain")) for p in pieces]
    screen.line(pieces)
    return mask_fault(messages, example, renderer)


class _Screen:
    """Prints in colours on a terminal, with brackets elsewhere."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._colours = out.isatty()

    def legend(self) -> None:
        """Print how learnt text is marked."""
        if self._colours:
            self.line([Piece("green is learnt", "learnt"), Piece(", the rest is only read")])
        else:
            self.line([Piece("what is learnt stands between "), Piece(" and ", "learnt")])

    def head(self, shown: Shown, facts: list[str]) -> None:
        """Print the head of a row: its number, place and facts."""
        head = " · ".join([f"row {shown.number}", shown.place, *filter(None, facts)])
        print(f"── {visible(head)} ──", file=self._out)

    def line(self, pieces: list[Piece]) -> None:
        """Print pieces and end the line."""
        if not self._colours:
            print(marked(pieces), file=self._out)
            return
        from rich.console import Console
        from rich.text import Text

        text = Text()
        for piece in pieces:
            text.append(visible(piece.text), _STYLES[piece.kind])
        Console(file=self._out, soft_wrap=True, highlight=False).print(text)
