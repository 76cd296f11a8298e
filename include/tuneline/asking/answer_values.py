"""Read an answer: its JSON, its tool calls, the number that it ends in, its words.

Tool calls: JSON objects with `name` and `arguments` (ChatML, Qwen, Mistral) or `parameters` (Llama
3), alone, in a list, in tags, or in the form of OpenAI's API. chrF: Popović (2015), n-grams up to 6
with a recall weight of 2, as sacrebleu computes it. ROUGE-L: Lin (2004), by rapidfuzz; words are
split here, since the packages for ROUGE drop every letter outside of a to z.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from tuneline.data.conversations.answers import answer_object

if TYPE_CHECKING:
    from sacrebleu.metrics.chrf import CHRF


def find_object(text: str) -> dict[str, Any] | None:
    """Return the first JSON object in a text, also in prose or in a code fence, or None."""
    decoder = json.JSONDecoder()
    for brace in re.finditer("{", text):
        with suppress(ValueError, RecursionError):
            return dict(decoder.raw_decode(text, brace.start())[0])
    return None


def canonical(value: Any) -> str:
    """Return the same text for equal JSON values: in any order and spacing, 2.0 as 2."""
    return json.dumps(_plain_numbers(value), sort_keys=True, ensure_ascii=False)


def _plain_numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain_numbers(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_plain_numbers(entry) for entry in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def structure_of(text: str, label_field: str | None) -> str:
    """Return the parsed structure of an answer: its keys, and each value that is not free text.

    Strings other than the label are prose, of which only the presence counts. An answer that is not
    a JSON object is its own structure.
    """
    parsed = answer_object(text)
    if parsed is None:
        return text

    def reduce(key: str | None, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: reduce(str(name), inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [reduce(None, inner) for inner in value]
        return "…" if isinstance(value, str) and key != label_field else value

    return canonical(reduce(None, parsed))


@dataclass(frozen=True, order=True)
class ToolCall:
    """A call: the tool's name, and its arguments as canonical JSON."""

    name: str
    arguments: str


def tool_calls(text: str) -> list[ToolCall]:
    """Return the calls of an answer, sorted; empty if it calls nothing.

    Parallel calls have no order, so that answers compare as sets that may hold a call twice.
    """
    return sorted(call for value in _json_values(text) for call in _calls(value))


def _json_values(text: str) -> Iterator[Any]:
    """Yield the JSON objects and lists of a text that lie in no other."""
    decoder, begins, at = json.JSONDecoder(), re.compile(r"[{\[]"), 0
    while found := begins.search(text, at):
        try:
            value, at = decoder.raw_decode(text, found.start())
            yield value
        except (ValueError, RecursionError):
            at = found.end()


def _calls(value: Any) -> Iterator[ToolCall]:
    if isinstance(value, list):
        for entry in value:
            yield from _calls(entry)
    if not isinstance(value, dict):
        return
    for nested in ("tool_calls", "function"):
        if isinstance(value.get(nested), list | dict):
            yield from _calls(value[nested])
            return
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return
    if isinstance(value.get("name"), str) and isinstance(arguments, dict):
        yield ToolCall(value["name"], canonical(arguments))


# GSM8K and the datasets made after it write the result behind this mark.
_MARK = "####"
# Digits with the signs that numbers, times, dates, ratios and versions are written with.
_DIGITS = r"\d+(?:[.,:/\u2044]\d+)*"
# Dates of ISO 8601, mixed fractions and "7 out of 10" are one value each, and no number.
_WRITTEN = re.compile(
    rf"(?<![\w.])(?:\d{{4}}-\d\d-\d\d(?:T[\d:.]+)?|{_DIGITS} (?:out )?of {_DIGITS}"
    rf"|\d+ \d+[/\u2044]\d+|[-+\u2212]?{_DIGITS}(?:[eE][-+]?\d+)?)"
)
_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?")
# Of what is no such number: a decimal comma, behind points between thousands if there are some.
_DECIMAL_COMMA = re.compile(r"[-+]?(?:\d+|\d{1,3}(?:\.\d{3})+),\d+")
_ALONE = re.compile(rf"\W{{0,3}}{_WRITTEN.pattern}\W{{0,3}}")


def final_number(text: str) -> float | None:
    """Return the number behind the last `####`, else the last of a text.

    `1,234.5`, `1.234,5`, `4,5` and `1/4` are numbers; a time, a date, a version, a mixed fraction
    or "7 of 10" is none.
    """
    _, mark, behind = text.rpartition(_MARK)
    found = _WRITTEN.findall(behind)[:1] if mark else []
    found = found or _WRITTEN.findall(text)[-1:]
    return _value(found[0].replace("\u2212", "-").replace("\u2044", "/")) if found else None


def _value(written: str) -> float | None:
    if written.count("/") == 1:
        over, under = map(_value, written.split("/"))
        return over / under if over is not None and under else None
    if _NUMBER.fullmatch(written):
        written = written.replace(",", "")
    elif _DECIMAL_COMMA.fullmatch(written):
        written = written.replace(".", "").replace(",", ".")
    else:
        return None
    value = float(written)
    return value if math.isfinite(value) else None


def states_number(text: str) -> bool:
    """Return True if an answer is a number alone, or names its result behind `####`."""
    _, mark, behind = text.rpartition(_MARK)
    alone = _ALONE.fullmatch((behind if mark else text).strip())
    return bool(alone) and final_number(text) is not None


# Words of a short answer, at most: "either 7 or 10".
_SHORT = 4


def several_numbers(text: str) -> bool:
    """Return True for a short answer of several numbers, such as "7 or 10", which is not one."""
    stated = re.split(rf"{_MARK}|=", text)[-1]  # the result of an equation is one
    return len(words_of(stated)) <= _SHORT and len(_WRITTEN.findall(stated)) > 1


def same_number(answer: str, expected: str, tolerance: float) -> bool:
    """Return True if two answers end in the same number, within a relative tolerance."""
    got, want = final_number(answer), final_number(expected)
    if got is None or want is None or several_numbers(answer):
        return False
    return math.isclose(got, want, rel_tol=0.0, abs_tol=tolerance * abs(want))


# Signs that stand in code, queries and formulas, hardly in prose besides addresses and remarks in
# parentheses; a share of the characters.
_PROSE = re.compile(r"https?://\S+|(?<!\w)\([\w\s,.;:'-]*\)")
_SIGNS, _CODE_SHARE = frozenset("(){}[]<>=+/\\;|&^%$@~"), 0.04


def is_code(text: str) -> bool:
    """Return True for code, a query or a formula, which one sign can turn into its opposite."""
    fenced = _PROSE.sub("", text.split("```")[1] if text.count("```") > 1 else text)
    return sum(sign in _SIGNS for sign in fenced) > _CODE_SHARE * len(fenced)


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
