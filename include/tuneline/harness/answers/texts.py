"""Compare free texts: chrF (sacrebleu) and ROUGE-L.

chrF is the F-score of character n-grams up to 6 with a recall weight of 2 (Popović, 2015), as
sacrebleu computes it for one sentence. ROUGE-L is the F-measure of the longest common subsequence
of words (Lin, 2004). The subsequence is rapidfuzz's; the words are split here, since the packages
for ROUGE drop every letter outside of a to z, and with it all that is written in other scripts.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sacrebleu.metrics.chrf import CHRF

# Scripts that put no space between words: each character counts as one.
_NO_SPACES = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\u0e00-\u0e7f"
_WORD = re.compile(rf"[{_NO_SPACES}]|[^\W{_NO_SPACES}]+")


@cache
def _chrf() -> CHRF:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


def chrf(answer: str, expected: str) -> float:
    """Return the sentence-level chrF of an answer, from 0 to 1."""
    return float(_chrf().sentence_score(answer, [expected]).score) / 100


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case, without marks."""
    return _WORD.findall(text.lower())


def rouge_l(answer: str, expected: str) -> float:
    """Return the ROUGE-L F-measure of an answer, from 0 to 1; 0 if either has no word."""
    from rapidfuzz.distance import LCSseq

    got, want = words_of(answer), words_of(expected)
    if not got or not want:
        return 0.0
    return 2 * LCSseq.similarity(got, want) / (len(got) + len(want))
