"""Write a plot as SVG, which the checklist of a run shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def printable(text: str, longest: int = 30) -> str:
    """Return a text in the form for a plot: short, in letters that the font has."""
    letters = (c if c.isprintable() and ord(c) < 0x0530 else ascii(c)[1:-1] for c in text[:longest])
    return "".join(letters)[:longest]


def save(figure: Any, path: Path) -> None:
    """Write a figure of matplotlib by the suffix of its path; an SVG has the same bytes each time.

    Texts stay texts, so that the file is small and can be searched.
    """
    import matplotlib

    svg = path.suffix == ".svg"
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "tuneline"}):
        figure.savefig(path, dpi=120, metadata={"Date": None} if svg else None)
