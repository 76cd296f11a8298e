"""Load the fast tokenizer of a model's directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tuneline.errors import UserError
from tuneline.models.base_model import read_json

# Classes that take everything from tokenizer.json.
_GENERIC_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")


def load_tokenizer(path: Path) -> Any:
    """Load the fast tokenizer of a model's directory, with its chat template.

    Raises:
        UserError: if the directory holds no usable tokenizer.
    """
    try:
        tokenizer = _generic(path) or _any(path)
    except Exception as error:
        # A damaged file may raise any error of the library.
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise UserError(f"the tokenizer in {path} can't be loaded: {reason}") from None
    if not tokenizer.is_fast:
        raise UserError(f"{path} has a slow tokenizer only; convert it so it has a tokenizer.json")
    return tokenizer


def _generic(path: Path) -> Any | None:
    """Load a Llama's tokenizer of a generic class, None if it is another.

    `AutoTokenizer` chooses the same class for it, but imports torch and the settings of every
    architecture first: seconds in each step that only counts tokens.
    """
    files = (path / "tokenizer_config.json", path / "config.json")
    if not all(file.is_file() for file in files):
        return None
    settings, model = map(read_json, files)
    named = settings.get("tokenizer_class") in _GENERIC_CLASSES and "auto_map" not in settings
    if not named or model.get("model_type") != "llama":
        return None
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(path, local_files_only=True)


def _any(path: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path, local_files_only=True)
