"""Base models: `resolve` turns a URI into a checked directory with a known licence and hash."""

from tuneline.models.base_model import BaseModel, check_directory, load_tokenizer, weight_files
from tuneline.models.cache import cache_root
from tuneline.models.resolver import check_address, resolve

__all__ = [
    "BaseModel",
    "cache_root",
    "check_address",
    "check_directory",
    "load_tokenizer",
    "resolve",
    "weight_files",
]
