"""Chat templates as they are trained on, exported and served: thoughts off, system turns taken.

The text of a template is changed at its head alone, so that every engine renders what training did.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# What templates call the switch of their thoughts.
_SWITCHES = ("enable_thinking", "thinking")
# llama.cpp gives every template today's date. An undefined name takes it away again, so that Llama
# 3.1 writes the date of its own that training saw.
_GIVEN = ("date_string", "datetime")
# As Gemma 3 writes a system turn; Gemma 1 and 2 refuse one.
_SYSTEM_IN_QUESTION = (
    "{% if messages | length > 1 and messages[0]['role'] == 'system' "
    "and messages[1]['role'] == 'user' %}\n"
    "{% set messages = [{'role': 'user', 'content': messages[0]['content'] + '\n\n' "
    "+ messages[1]['content']}] + messages[2:] %}\n"
    "{% endif %}\n"
)


def special_names(tokenizer: Any) -> dict[str, str]:
    """Return the special tokens by the names that templates know them by."""
    return {name: str(token) for name, token in tokenizer.special_tokens_map.items()}


def adapt_template(template: str, names: dict[str, str]) -> str:
    """Return a template with thoughts switched off that takes system turns, if it has a way to.

    The text is what the template gives with `enable_thinking=False`, for each conversation that it
    takes by itself. Of an adapted template, the same text is returned.

    Args:
        names: special tokens by name, as `bos_token`.
    """
    from jinja2 import TemplateError, meta
    from transformers.utils.chat_template_utils import _compile_jinja_template

    try:
        compiled = _compile_jinja_template(template)
        undeclared = meta.find_undeclared_variables(compiled.environment.parse(template))
    except TemplateError:
        return template  # whoever renders with it says what is wrong
    heads = [f"{{% set {name} = false %}}\n" for name in _SWITCHES if name in undeclared]
    heads += [f"{{% set {name} = not_given %}}\n" for name in _GIVEN if name in undeclared]
    question = {"role": "user", "content": "a"}
    turns = [{"role": "system", "content": "b"}, question]
    if _takes(compiled, [question], names) and not _takes(compiled, turns, names):
        heads.append(_SYSTEM_IN_QUESTION)
    return "".join(heads) + template


def _takes(compiled: Any, messages: Sequence[dict[str, str]], names: dict[str, str]) -> bool:
    """Return True if a template renders a conversation."""
    from jinja2 import TemplateError

    try:
        compiled.render(messages=messages, tools=None, add_generation_prompt=True, **names)
    except (TemplateError, TypeError):
        return False
    return True
