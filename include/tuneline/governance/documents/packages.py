"""Addresses of Python packages (package URLs, ECMA-427)."""

from __future__ import annotations

from packageurl import PackageURL


def purl(name: str, version: str) -> PackageURL:
    """Return the package URL of a version of a Python package."""
    return PackageURL("pypi", None, name.replace("_", "-").lower(), version)
