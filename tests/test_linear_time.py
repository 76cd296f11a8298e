"""No text takes any pattern of the product more than linear time."""

import ast
import gc
import importlib
import random
import re
from functools import _lru_cache_wrapper, cache, partial
from itertools import islice
from pathlib import Path

import pytest
import regex
from tests.lab.hostile_texts import FRAGMENTS, filled, hostile_texts, seconds

from tuneline.machine.linear_pattern import LinearPattern

INCLUDE = Path(__file__).parents[1] / "include"
COMPILES = re.compile(r"\bre\.compile|any_case\(|Caseless|LinearPattern|import regex")
ANCHORED = {"match", "fullmatch"}
METHODS = ANCHORED | {"finditer", "search", "sub", "subn", "split", "findall", "spans"}
# CPU seconds for a text of a size, of which a linear pattern takes a tenth, and the number of texts
# for each repeat of a pattern.
LIMITS = {400: 0.2, 16_000: 0.25, 300_000: 1.5}
TEXTS = {400: 4, 16_000: 2, 300_000: 2}
IN_CLASS = {
    "CATEGORY_DIGIT": "7",
    "CATEGORY_WORD": "a7_",
    "CATEGORY_SPACE": " \n",
    "CATEGORY_NOT_DIGIT": "a-",
    "CATEGORY_NOT_WORD": " -.,*'",
    "CATEGORY_NOT_SPACE": "a7-",
}


def sample(tree, draw):
    """Draw a text that a parsed pattern matches, about."""
    text = ""
    for kind, value in tree:
        kind = str(kind)
        if kind == "LITERAL":
            text += chr(value)
        elif kind in ("ANY", "NOT_LITERAL"):
            text += draw.choice("a7 -")
        elif kind == "IN":
            text += _sample_class(value, draw)
        elif kind == "BRANCH":
            text += sample(draw.choice(value[1]), draw)
        elif kind == "SUBPATTERN":
            text += sample(value[3], draw)
        elif kind == "ATOMIC_GROUP":
            text += sample(value, draw)
        elif kind.endswith("REPEAT"):
            least, most, body = value
            times = draw.choice((least, least, min(most, least + 1), min(most, least + 3)))
            text += "".join(sample(body, draw) for _ in range(min(times, 80)))
    return text


def _sample_class(items, draw):
    kinds = [str(kind) for kind, _ in items]
    if kinds[0] == "NEGATE":
        named = {value for kind, value in items if str(kind) == "LITERAL"}
        return draw.choice([sign for sign in "a7 -_.'*:@/" if ord(sign) not in named] or ["é"])
    kind, value = draw.choice(items)
    if str(kind) == "LITERAL":
        return chr(value)
    return chr(draw.randint(*value)) if str(kind) == "RANGE" else draw.choice(IN_CLASS[str(value)])


def repeats(tree):
    """Yield what stands before each repeat of a parsed pattern, and what it repeats."""
    for place, (kind, value) in enumerate(tree):
        before, kind = list(tree)[:place], str(kind)
        inner = ()
        if kind == "BRANCH":
            inner = value[1]
        elif kind in ("ATOMIC_GROUP", "SUBPATTERN", "ASSERT", "ASSERT_NOT"):
            inner = [value if kind == "ATOMIC_GROUP" else value[-1]]
        elif kind.endswith("REPEAT"):
            inner = [value[2]]
            yield before, value[2]
        for part in inner:
            yield from ((before + more, body) for more, body in repeats(part))


def hostile(pattern, size):
    """Yield texts that repeat what a pattern repeats, or one to three other fragments."""
    draw = random.Random(f"{pattern.pattern!r}:{size}")
    tree = re._parser.parse(pattern.pattern, pattern.flags & ~re.UNICODE)
    parts = [*repeats(tree), ([], tree)]
    for before, body in parts * TEXTS[size]:
        lead, piece = sample(before, draw), sample(body, draw)
        if draw.random() < 0.5:
            piece = lead + piece
        other = sample(draw.choice(parts)[1], draw)
        piece += draw.choice(["", "-", draw.choice(FRAGMENTS), other])
        end = draw.choice(["", "!", " 1", "x"])
        yield filled(lead, piece or draw.choice(FRAGMENTS), size) + end
    yield from hostile_texts(draw, size, 3 * TEXTS[size])


@cache
def sources():
    return {
        path.relative_to(INCLUDE).with_suffix("").as_posix().replace("/", "."): path.read_text()
        for path in (INCLUDE / "tuneline").rglob("*.py")
        if path.parent.name != "airflow"
    }


@cache
def patterns():
    """Every pattern of the product, with its module and the methods that its name is used with."""
    found = {}
    for module, text in sources().items():
        if COMPILES.search(text):
            for name, value in vars(
                importlib.import_module(module.removesuffix(".__init__"))
            ).items():
                for pattern in _reachable(value):
                    methods = _methods(module, name) if pattern is value else set()
                    found.setdefault(id(pattern), (module, pattern, methods))
        for call in _calls(module):
            if call[0] in ("re", "regex") and isinstance(call[2], str):
                found[call] = (module, re.compile(call[2]), {call[1]})
    return list(found.values())


def _reachable(value):
    seen, todo = set(), [value]
    while todo:
        value = todo.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, re.Pattern | regex.Pattern | LinearPattern):
            if not isinstance(getattr(value, "pattern", ""), bytes):
                yield value
        elif isinstance(value, dict | list | tuple | set | frozenset | _lru_cache_wrapper) or type(
            value
        ).__module__.startswith("tuneline"):
            todo += gc.get_referents(value)


@cache
def _calls(module):
    """Calls of methods in a module: the name before the dot, the method, a constant argument."""
    return {
        (
            getattr(node.func.value, "id", None) or getattr(node.func.value, "attr", None),
            node.func.attr,
            getattr(node.args[0], "value", None) if node.args else None,
        )
        for node in ast.walk(ast.parse(sources()[module]))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if node.func.attr in METHODS
    }


def _methods(module, name):
    modules = [module] if name.startswith("_") else sources()
    return {method for own in modules for called, method, _ in _calls(own) if called == name}


def slow(pattern, methods, size):
    """Texts of about a size on which a pattern takes longer than the limit."""
    texts = hostile(pattern, size)
    if isinstance(pattern, LinearPattern):
        texts = hostile_texts(random.Random(size), size, 3 * TEXTS[size])
    for text in texts:
        work = [partial(getattr(pattern, method), text) for method in methods & ANCHORED]
        if not methods or methods - ANCHORED:
            work.append(lambda: sum(1 for _ in pattern.finditer(text)))  # noqa: B023
        if any(seconds(one, LIMITS[size]) >= LIMITS[size] for one in work):
            yield text[:60]


@pytest.mark.parametrize("size", LIMITS)
def test_every_pattern_is_linear(size):
    found = []
    for module, pattern, methods in patterns():
        found += [(module, pattern, text) for text in islice(slow(pattern, methods, size), 1)]
    assert found == []


@pytest.mark.parametrize(
    ("pattern", "size"),
    [
        (r"(?:[•*·]{2,}[ -]?){1,4}(\d{2,4})(?![\w.,])", 400),
        (r"(?:[^\w.!?;]+[a-z']{1,12}){0,6}[^\w.!?;]+(?:is|was|=|:)\W{1,3}", 400),
        (r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+", 16_000),
        (r"\beyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?", 300_000),
    ],
)
def test_a_pattern_that_is_not_linear_is_found(pattern, size, monkeypatch):
    monkeypatch.setitem(TEXTS, size, 20)
    assert any(slow(re.compile(pattern), set(), size))
