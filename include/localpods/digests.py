"""A digest for an environment that stands for an image.

A local environment has no manifest as an image of a registry has. What it holds is stated by the
`RECORD` of each installed package, which lists every file of it by hash; the digest is theirs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

# The form in which clusters report images that come from no registry.
_SCHEME = "localpods://sha256:"


def digest_of(folders: Iterable[str]) -> str:
    """Return the digest of the packages beside some folders of programs, as an `imageID`.

    Args:
        folders: `bin` of each virtual environment.

    Returns:
        Empty if none of them belongs to an environment with packages.
    """
    found = [
        (str(site), site.stat().st_mtime_ns)
        for folder in folders
        for site in sorted((Path(folder).parent / "lib").glob("python3*/site-packages"))
    ]
    return _digest(tuple(found)) if found else ""


@lru_cache(maxsize=32)
def _digest(sites: tuple[tuple[str, int], ...]) -> str:
    """Hash the records of some folders; installing a package changes the folder's time."""
    digest = hashlib.sha256()
    for site, _ in sites:
        for record in sorted(Path(site).glob("*.dist-info/RECORD")):
            digest.update(record.parent.name.encode() + b"\0")
            digest.update(hashlib.sha256(record.read_bytes()).digest())
    return _SCHEME + digest.hexdigest()
