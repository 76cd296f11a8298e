"""Addresses in settings: what they may hold, and which hosts may be called."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator


def _http_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be an http:// or https:// URL such as http://127.0.0.1:8081/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(
            "must hold no user, password, query or fragment; a key's variable goes in api_key_env"
        )
    return url.rstrip("/")


HttpUrl = Annotated[str, AfterValidator(_http_url)]


def host_of(url: str) -> str:
    """Return the host of a URL in lower case; empty if it has none."""
    return urlsplit(url).hostname or ""


def is_loopback(url: str) -> bool:
    """Return True if a URL is called over this machine's loopback."""
    try:
        return ipaddress.ip_address(host_of(url)).is_loopback
    except ValueError:
        return host_of(url) == "localhost"


def is_allowed(url: str, hosts: Iterable[str], *, plain: bool = True) -> bool:
    """Return True if the host of a URL is one of `hosts`, whatever their case.

    Args:
        hosts: hosts; one may be listed as `http://host`.
        plain: whether `http://` needs no host that is listed with it.
    """
    listed, host = {each.lower() for each in hosts}, host_of(url)
    encrypted = urlsplit(url).scheme == "https"
    return (host in listed and (plain or encrypted)) or (
        not encrypted and f"http://{host}" in listed
    )
