"""A vote as a file of any form states it, before it is checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class GivenVote:
    """A vote as a file states it.

    Attributes:
        where: file and line or record, for errors.
        review_id: the review that the file was written for.
        pair: the pair's number, as text.
        choice: the choice, as text.
        reviewer: the reviewer's name.
        comment: what the reviewer says.
        texts: what the file shows of the pair (`prompt`, `A`, `B`), where it does.
    """

    where: str
    review_id: str
    pair: str
    choice: str
    reviewer: str
    comment: str
    texts: Mapping[str, str]
