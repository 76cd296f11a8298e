"""`tuneline data show`: print rows as the model will see them, with the text that it learns."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TextIO

from tuneline.data.rendering.renderer import Renderer, TemplateRefused
from tuneline.data.show.rows import Shown, gather
from tuneline.data.show.text import (
    Piece,
    hide,
    marked,
    mask_fault,
    raw_pieces,
    reason_pieces,
    token_pieces,
    visible,
)
from tuneline.errors import EXIT_FAILED, EXIT_OK, UserError

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
    """Print rows; return 1 if a mask trains on nothing, or on something other than its answers.

    `row` is a line of a raw file, or a number from 1; for the others see `gather`.

    Raises:
        UserError: if there is no such row.
    """
    source = gather(
        target,
        step=step,
        rejected=rejected,
        row=row,
        base_model=base_model,
        config_file=config_file,
    )
    chosen = [shown for shown in source.rows if row is None or shown.number == row][:limit]
    if not chosen:
        kind = "rejected row" if rejected else "row"
        which = f"no {kind} {row}" if row is not None else f"no {kind}"
        raise UserError(f"{target} has {which} to show; it has {len(source.rows)} {kind}s")
    screen = _Screen(sys.stdout)
    if mask and any(shown.messages for shown in chosen):
        screen.legend()
    found = [(s.number, _print_row(screen, s, source.renderer, mask=mask)) for s in chosen]
    faults = [f"row {number}: {fault}" for number, fault in found if fault]
    for fault in faults:
        print(f"tuneline: {fault}", file=sys.stderr)
    return EXIT_FAILED if faults else EXIT_OK


def _print_row(screen: _Screen, shown: Shown, renderer: Renderer, *, mask: bool) -> str:
    """Print a row; return the fault of its mask, empty if there is none."""
    reject = shown.reject
    if reject is not None:
        screen.head(shown, [reject.item])
        screen.line(reason_pieces(reject.reason))
        screen.line(raw_pieces(reject.raw, reject.reason))
        if reject.code == "mask_boundary":
            return f"its mask trains on nothing ({reject.reason})"
        return ""
    messages = hide(shown.messages) if shown.unscrubbed else shown.messages
    try:
        example = renderer.render([messages])[0]
    except TemplateRefused as error:
        raise UserError(f"row {shown.number}: the chat template refuses it: {error}") from None
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
