"""Names of a model's tensors in GGUF, by the map of the official `gguf` package."""

from __future__ import annotations

from collections.abc import Callable

from tuneline.errors import UserError
from tuneline.gguf.settings import Settings


def tensor_names(settings: Settings) -> Callable[[str], str]:
    """Return a function from a tensor's name in transformers to its name in GGUF.

    It raises UserError for a tensor that the architecture does not have.
    """
    import gguf

    family = settings.family.gguf
    architecture = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == family)
    known = gguf.get_tensor_name_map(architecture, settings.integer("num_hidden_layers"))

    def name_of(name: str) -> str:
        found: str | None = known.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise UserError(
                f"tensor {name!r} has no place in a GGUF file of the architecture {family}; "
                "export this model with an engine that reads Hugging Face checkpoints"
            )
        return found

    return name_of
