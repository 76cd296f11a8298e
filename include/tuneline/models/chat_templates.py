"""Chat templates as they are trained on, exported and served: thoughts off, system turns taken.

The text of a template is changed at its head alone, so that every engine renders what training did.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from tuneline.errors import UserError
from tuneline.models.base_model import read_json

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


def read_chat_template(directory: Path) -> str:
    """Return the default chat template of a model directory.

    Raises:
        UserError: if there is none.
    """
    file = directory / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    kept = (directory / name for name in ("tokenizer_config.json", "chat_template.json"))
    found = (read_json(path).get("chat_template") for path in kept if path.is_file())
    template = next(filter(None, found), None)
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template}
        template = named.get("default")
    if not isinstance(template, str):
        raise UserError(f"{directory} has no chat template; set one on the tokenizer and save it")
    return template


@lru_cache
def request_defaults(model: Path) -> dict[str, Any]:
    """Return the fields of a request that switch off the thoughts of a model in a folder.

    Empty for a GGUF file, and wherever the template has no switch or has it off by itself.
    """
    try:
        template = read_chat_template(model) if model.is_dir() else ""
    except UserError:
        return {}  # whoever renders with it says what is wrong
    head = adapt_template(template, {}).removesuffix(template) if template else ""
    off = {name: False for name in _SWITCHES if f" {name} = false" in head}
    return {"chat_template_kwargs": off} if off else {}


def _takes(compiled: Any, messages: Sequence[dict[str, str]], names: dict[str, str]) -> bool:
    """Return True if a template renders a conversation."""
    from jinja2 import TemplateError

    try:
        compiled.render(messages=messages, tools=None, add_generation_prompt=True, **names)
    except (TemplateError, TypeError):
        return False
    return True
