"""Parts of the patterns that several finders share."""

from __future__ import annotations

import re
from collections.abc import Iterator

Span = tuple[int, int]

# Words for numbers.
ONES = "one|two|three|four|five|six|seven|eight|nine"
TENS = (
    "ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen|eighteen|nineteen|twenty|thirty|"
    "forty|fifty|sixty|seventy|eighty|ninety"
)
# A month as it is written in short or in full.
MONTH = r"(?:(?:jan|feb|apr|jun|jul|aug|sep|oct|nov|dec)[a-z]*|mar(?:ch)?(?![a-z])|may(?![a-z]))"


def any_case(pattern: str) -> re.Pattern[str]:
    """Compile a pattern that ignores case."""
    return re.compile(pattern, re.IGNORECASE)


def spans(text: str, pattern: re.Pattern[str]) -> Iterator[Span]:
    """Yield the spans of a pattern's first group, or of all of it if it has none."""
    for match in pattern.finditer(text):
        yield match.span(1 if pattern.groups else 0)


# British, Irish and Canadian postal codes, which have a shape of their own.
LETTERED_POSTCODE = any_case(
    r"(?<![\w-])(?:[a-z]{1,2}\d[a-z\d]? ?\d[a-z]{2}|[a-z]\d[a-z] ?\d[a-z]\d|"
    r"[ac-fhknprtv-y]\d[\dw] ?(?=[a-z\d]{0,3}\d)(?=\d{0,3}[a-z])[ac-fhknprtv-y\d]{4})(?![\w-])"
)
