"""SPDX licence expressions: names joined by AND, OR and WITH, with parentheses.

The grammar is that of annex B of the SPDX specification 3.0.1
(https://spdx.github.io/spdx-spec/v3.0.1/annexes/spdx-license-expressions/): WITH binds strongest,
then AND, then OR. Operators are upper case, so that a name such as `GNU Library or Lesser …` stays
one name; a name may hold spaces, as those of packages do.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

_TOKEN = re.compile(r"\(|\)|(?<!\S)(?:AND|OR|WITH)(?!\S)")


@dataclass(frozen=True)
class Named:
    """One licence.

    Attributes:
        name: its name as it stands in the expression.
        exception: the name after WITH, None without one.
    """

    name: str
    exception: str | None = None


@dataclass(frozen=True)
class Joined:
    """Licences of which all bind (`AND`), or of which one can be chosen (`OR`)."""

    operator: Literal["AND", "OR"]
    parts: tuple[Expression, ...]


Expression = Named | Joined


def parse(text: str) -> Expression:
    """Parse an expression.

    Raises:
        ValueError: if it is not one; the message says where it breaks.
    """
    reader = _Reader(_tokens(text))
    found = reader.either()
    if reader.next is not None:
        raise ValueError(f"{text!r}: unexpected {reader.next!r}")
    return found


def _tokens(text: str) -> list[str]:
    tokens, end = [], 0
    for match in _TOKEN.finditer(text):
        tokens += [text[end : match.start()].strip(), match.group()]
        end = match.end()
    return [token for token in [*tokens, text[end:].strip()] if token]


class _Reader:
    """A recursive-descent parser over tokens."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens

    @property
    def next(self) -> str | None:
        return self._tokens[0] if self._tokens else None

    def either(self) -> Expression:
        """OR binds weakest."""
        parts = [self._both()]
        while self._took("OR"):
            parts.append(self._both())
        return parts[0] if len(parts) == 1 else Joined("OR", tuple(parts))

    def _both(self) -> Expression:
        parts = [self._one()]
        while self._took("AND"):
            parts.append(self._one())
        return parts[0] if len(parts) == 1 else Joined("AND", tuple(parts))

    def _one(self) -> Expression:
        if self._took("("):
            inner = self.either()
            if not self._took(")"):
                raise ValueError("a parenthesis is not closed")
            return inner
        name = self._name()
        return Named(name, self._name() if self._took("WITH") else None)

    def _name(self) -> str:
        if self.next in (None, "(", ")", "AND", "OR", "WITH"):
            raise ValueError(f"a licence's name is missing before {self.next or 'the end'!r}")
        return self._tokens.pop(0)

    def _took(self, token: str) -> bool:
        if self.next != token:
            return False
        self._tokens.pop(0)
        return True
