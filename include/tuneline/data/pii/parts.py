"""Cut long texts into parts, so that rules that look around see a bounded text.

Some rules compare everything that they find in a text with everything else, or look at all that
stands before a word. In parts of a bounded length their time is linear in the text.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator

from tuneline.data.pii.hits import Hit
from tuneline.data.pii.identifiers import find_identifiers

# Characters of a text that is read as a whole; hardly any turn of a chat is longer.
LONGEST = 2_000
# A part ends at the last of these in its second half.
_ENDS = ("\n", ". ", " ")
# Words right before an identifier show what it is, so they stay with it.
_CUE = 40


def parts(text: str, hits: Iterable[Hit] | None = None) -> Iterator[tuple[int, str]]:
    """Yield the parts of a text with the place of their first character.

    No secret or identifier is cut. A part is longer than `LONGEST` only if it is little but one of
    them, such as a private key; rules have nothing to look for in it.

    Args:
        text: any text.
        hits: its identifiers, if they are known.
    """
    if len(text) <= LONGEST:
        yield 0, text
        return
    whole = _apart(find_identifiers(text) if hits is None else hits)
    at = 0
    while len(text) - at > LONGEST:
        middle, cut = at + LONGEST // 2, at + LONGEST
        ends = (text.rfind(end, middle, cut) + len(end) for end in _ENDS)
        cut = next((end for end in ends if end > middle), cut)
        after = bisect_right(whole, cut, key=lambda span: span[1])
        if after < len(whole) and whole[after][0] - _CUE < cut:
            start, end = whole[after]
            before = whole[after - 1][1] if after else 0
            cut = max(before, start - _CUE)
            cut = cut if cut > at else end
        yield at, text[at:cut]
        at = cut
    yield at, text[at:]


def in_parts(change: Callable[[str], str]) -> Callable[[str], str]:
    """Return a change of a text that changes its parts one by one."""
    return lambda text: "".join(change(part) for _, part in parts(text))


def _apart(hits: Iterable[Hit]) -> list[tuple[int, int]]:
    """Return the spans of hits in order, those that overlap as one."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted((hit.start, hit.end) for hit in hits):
        if joined and start < joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined
