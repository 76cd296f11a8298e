"""Make the free-text sample: a ranger's terse notes, answered with sentences for visitors.

It stands for datasets without labels. The register is another one than that of the support
messages: lower case, fragments in any order, no system turn, and an answer of several sentences
that no two rows share. The same seed gives the same bytes on every platform and Python version.
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

from tuneline.data.sample.similarity import NearIndex
from tuneline.data.sample.text import CLEAN_SIMILARITY, MAX_TRIES, Draw, typo
from tuneline.data.sample.whole_file import write_whole

FREE_TEXT_ROWS = 400
# Between the fragments of a note.
_JOINTS = (" / ", "; ", ". ", " - ", "\n")


class NoteWriter:
    """A writer of notes that are unlike all notes it wrote before."""

    def __init__(self, draw: Draw) -> None:
        import yaml

        self.draw = draw
        text = resources.files("tuneline.data.sample").joinpath("notes.yaml").read_text("utf-8")
        self.phrases: dict[str, Any] = yaml.safe_load(text)
        self._index = NearIndex()

    def row(self) -> tuple[str, str]:
        """Write a note and what the board says of it.

        Raises:
            RuntimeError: if the phrases do not yield another different note.
        """
        for _ in range(MAX_TRIES):
            note, board = self.drawn()
            views = self._index.views(note, board, f"{note} {board}")
            if self._index.nearest(views) < CLEAN_SIMILARITY:
                self._index.add(views)
                return note, board
        raise RuntimeError(f"no new note after {MAX_TRIES} tries")

    def drawn(self) -> tuple[str, str]:
        """Write a note and what the board says of it, whatever was written before."""
        draw = self.draw
        trail = draw.pick(self.phrases["trails"])
        state = self._filled("states", trail)
        others = [
            self._filled(kind, trail)
            for kind, share in (("sightings", 0.8), ("skies", 0.5), ("advice", 0.6))
            if draw.chance(share)
        ]
        sentences = [state[1], *(board for _, board in others)]
        notes = [f"{trail}: {state[0]}", *draw.shuffled([note for note, _ in others])]
        note = draw.pick(_JOINTS).join(notes)
        return (typo(note, draw) if draw.chance(0.1) else note), " ".join(sentences)

    def _filled(self, kind: str, trail: str) -> tuple[str, str]:
        """Return the note and the sentence of an entry with the same values in both."""
        draw, entry = self.draw, self.draw.pick(self.phrases[kind])
        count = draw.pick(list(self.phrases["counts"]))
        slots = {
            "trail": trail,
            "spot": draw.pick(self.phrases["spots"]),
            "animals": draw.pick(self.phrases["animals"]),
            "count": count,
            "Count": self.phrases["counts"][count],
        }
        return entry["note"].format(**slots), entry["board"].format(**slots)


def make_free_text(seed: int, rows: int = FREE_TEXT_ROWS) -> list[bytes]:
    """Return the lines of the free-text sample, without newlines.

    Args:
        seed: seed of the draws.
        rows: number of rows.
    """
    writer = NoteWriter(Draw(seed))
    lines = []
    for _ in range(rows):
        note, board = writer.row()
        turns = [{"role": "user", "content": note}, {"role": "assistant", "content": board}]
        lines.append(json.dumps({"messages": turns}, ensure_ascii=False).encode())
    return lines


def write_free_text(out: Path, seed: int) -> int:
    """Write the free-text sample as JSONL, and return the number of its rows.

    Raises:
        UserError: if the file can't be written.
    """
    lines = make_free_text(seed)
    write_whole({out: b"".join(line + b"\n" for line in lines)})
    return len(lines)
