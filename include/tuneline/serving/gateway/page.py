"""The chat page at the gateway's root: one file, and headers that keep it to itself."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files

from starlette.responses import Response


class ChatPage:
    """The page, read once.

    The browser may run the page's own script and style, known by their hashes, and talk to this
    gateway; nothing else, from nowhere else.
    """

    def __init__(self) -> None:
        text = files("tuneline.serving.gateway").joinpath("page.html").read_text("utf-8")
        self._body = text.encode()
        self._headers = {
            "content-security-policy": "; ".join(
                [
                    "default-src 'none'",
                    f"script-src {_hash_of('script', text)}",
                    f"style-src {_hash_of('style', text)}",
                    "img-src data:",
                    "connect-src 'self'",
                    "base-uri 'none'",
                    "form-action 'none'",
                    "frame-ancestors 'none'",
                ]
            ),
            "cache-control": "no-cache",
            "cross-origin-opener-policy": "same-origin",
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
        }

    def response(self) -> Response:
        """Return the page."""
        return Response(self._body, media_type="text/html", headers=self._headers)


def _hash_of(tag: str, text: str) -> str:
    """Return the hash of the one inline element with a tag, as a CSP source."""
    (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
    return f"'sha256-{digest}'"
