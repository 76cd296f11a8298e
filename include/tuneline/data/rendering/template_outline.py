"""Chat templates that only put texts between texts, and what they put there.

A Jinja template may do anything with a turn's content. Most only write it between markers that
depend on the roles. Where the template's syntax tree shows that, the markers around the contents
are worked out once for each sequence of roles, and rendering is joining texts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from tuneline.data.tables.rows import Message

if TYPE_CHECKING:
    from jinja2 import nodes

# Private-use characters, which no template writes; a template that does is not outlined.
_HERE = re.compile("\ue0f0([0-9]+)\ue0f1")

Render = Callable[[Sequence[Message], bool], str]


class Outline:
    """Renders turns of a template whose contents are opaque to it.

    Args:
        render: the template itself: turns and whether to ask for an answer; its text.
    """

    def __init__(self, render: Render) -> None:
        self._render = render
        self._of_roles = lru_cache(maxsize=1024)(self._outline)

    def text(self, messages: Sequence[Message], ask: bool) -> str:
        """Render turns; `ask` adds what makes the model answer."""
        roles = tuple(message["role"] for message in messages)
        head, *rest = self._of_roles(roles, ask)
        parts = [head]
        for index, after in rest:
            parts += (messages[index]["content"], after)
        return "".join(parts)

    def _outline(self, roles: tuple[str, ...], ask: bool) -> tuple[Any, ...]:
        """The text before the first content, then each content's turn and the text after it."""
        stand_ins = [
            {"role": role, "content": f"\ue0f0{index}\ue0f1"} for index, role in enumerate(roles)
        ]
        head, *rest = _HERE.split(self._render(stand_ins, ask))
        return (head, *((int(i), t) for i, t in zip(rest[::2], rest[1::2], strict=True)))


def contents_are_opaque(template: str, environment: Any) -> bool:
    """Whether a template's syntax tree shows that contents are written as they are, or not at all.

    Contents may stand in an output, alone or added to other texts; nothing else may look at
    them: no test, filter, call or assignment. What is not understood counts as looking.

    Args:
        template: the Jinja source.
        environment: what compiles it.
    """
    from jinja2 import nodes

    tree = environment.parse(template)
    targets = {loop.target.name for loop in tree.find_all(nodes.For) if _is_name(loop.target)}
    return not any(
        _is_beyond(node)
        or _looks_at_turns(node, parents, targets)
        or (_key(node) == "content" and not _only_written(parents))
        for node, parents in _walk(tree, [])
    )


def _is_beyond(node: Any) -> bool:
    """Whether a node does what is not understood here, or would spoil the stand-ins."""
    from jinja2 import nodes

    if isinstance(node, nodes.Stmt):
        return not isinstance(node, nodes.Output | nodes.For | nodes.If | nodes.ExprStmt)
    text = getattr(node, "data", getattr(node, "value", None))
    if isinstance(node, nodes.TemplateData | nodes.Const):
        return isinstance(text, str) and re.search("[\ue0f0\ue0f1]", text) is not None
    return False


def _looks_at_turns(node: Any, parents: Sequence[Any], targets: set[str]) -> bool:
    """Whether a name is used so that more than roles can decide what is written."""
    if not _is_name(node) or node.ctx != "load":
        return False
    if node.name in targets:
        return _key(parents[-1], node) not in ("role", "content")
    if node.name == "messages":
        return not _names_turns(node, parents)
    return bool(node.name == "strftime_now")


def _walk(node: nodes.Node, parents: list[Any]) -> Iterator[tuple[Any, list[Any]]]:
    yield node, parents
    for child in node.iter_child_nodes():
        yield from _walk(child, [*parents, node])


def _is_name(node: Any) -> bool:
    from jinja2 import nodes

    return isinstance(node, nodes.Name)


def _key(node: Any, owner: Any = None) -> str | None:
    """The field that a node takes of `owner` (of anything when it is None)."""
    from jinja2 import nodes

    if not isinstance(node, nodes.Getitem | nodes.Getattr):
        return None
    if owner is not None and node.node is not owner:
        return None
    if isinstance(node, nodes.Getattr):
        return node.attr
    return str(node.arg.value) if isinstance(node.arg, nodes.Const) else None


def _names_turns(node: Any, parents: Sequence[Any]) -> bool:
    """Whether turns are gone through one by one, or one is taken for its role or content."""
    from jinja2 import nodes

    around = parents[-1]
    if isinstance(around, nodes.For):
        return around.iter is node and around.test is None and not around.recursive
    number = _key(around, node)
    return (
        number is not None
        and number.isdecimal()
        and _key(parents[-2], around) in ("role", "content")
    )


def _only_written(parents: Sequence[Any]) -> bool:
    from jinja2 import nodes

    for around in reversed(parents):
        if isinstance(around, nodes.Output):
            return True
        if not isinstance(around, nodes.Add | nodes.Concat):
            return False
    return False
