"""Refusals and lists in the words of the Kubernetes API."""

from __future__ import annotations

import copy
import json
from typing import Any

from aiohttp import web

from localpods.objects import Json


class ApiError(Exception):
    """A refusal that the client receives as a Kubernetes `Status` object."""

    def __init__(
        self, code: int, reason: str, message: str, details: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.details = details

    def status(self) -> Json:
        """Return the `Status` object to send."""
        body: Json = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        }
        if self.details is not None:
            body["details"] = self.details
        return body


def bad_request(message: str) -> ApiError:
    """Return the refusal of a request that makes no sense."""
    return ApiError(400, "BadRequest", message)


def not_found(plural: str, name: str) -> ApiError:
    """Return the refusal for an object that is not there."""
    return ApiError(404, "NotFound", f'{plural} "{name}" not found', {"name": name, "kind": plural})


def already_exists(plural: str, name: str) -> ApiError:
    """Return the refusal of a name that is taken."""
    return ApiError(
        409,
        "AlreadyExists",
        f'{plural} "{name}" already exists',
        {"name": name, "kind": plural},
    )


def invalid(kind: str, name: str, field: str, why: str) -> ApiError:
    """Return the refusal of an object with a wrong field.

    Args:
        kind: The object's kind, such as `Pod`.
        name: The object's name, as far as it is known.
        field: Path of the field, such as `spec.restartPolicy`.
        why: What is wrong with it and what to write instead.
    """
    return ApiError(
        422,
        "Invalid",
        f'{kind} "{name}" is invalid: {field}: {why}',
        {"name": name, "kind": kind, "causes": [{"field": field, "message": why}]},
    )


def send_json(body: Json, code: int = 200) -> web.Response:
    """Return an object as a response."""
    return web.json_response(body, status=code)


def flag(request: web.Request, name: str) -> bool:
    """Read a boolean query parameter; the Python client sends `True` with a capital."""
    return request.query.get(name, "").lower() in {"true", "1"}


def whole_number(request: web.Request, name: str) -> int | None:
    """Read a query parameter that is a whole number, not negative."""
    text = request.query.get(name)
    if text is None or text == "":
        return None
    if not text.isascii() or not text.isdigit():
        raise bad_request(f"query parameter {name}: {text!r} is not a whole number")
    return int(text)


async def read_object(request: web.Request) -> Json:
    """Read a request's body, which must be a JSON object; an empty body is an empty object."""
    raw = await request.read()
    if not raw.strip():
        return {}
    try:
        body = json.loads(raw)
    except ValueError as error:
        raise bad_request(f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise bad_request("the body must be a JSON object")
    return body


def merge(target: Json, patch: Json) -> Json:
    """Apply a JSON merge patch (RFC 7386).

    A strategic merge patch differs from it only in lists, and the fields that may change here
    (labels and annotations) hold none.
    """
    merged = copy.deepcopy(target)
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict):
            below = merged.get(key)
            merged[key] = merge(below if isinstance(below, dict) else {}, value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def patched(current: Json, patch: Json) -> Json:
    """Apply a patch that changes nothing but labels and annotations.

    Args:
        current: The object as it is.
        patch: A merge patch.

    Returns:
        The changed object.

    Raises:
        ApiError: 409 when the patch names another resource version, 422 when it changes
            any other field.
    """
    kind, name = current["kind"], current["metadata"]["name"]
    wanted = patch.get("metadata", {}).get("resourceVersion")
    if wanted not in (None, current["metadata"]["resourceVersion"]):
        raise ApiError(409, "Conflict", f'{kind} "{name}" was modified: apply the change again')
    changed = merge(current, patch)
    before, after = copy.deepcopy(current), copy.deepcopy(changed)
    for obj in (before, after):
        obj["metadata"].pop("labels", None)
        obj["metadata"].pop("annotations", None)
    if before != after:
        raise invalid(kind, name, "patch", "only labels and annotations can change here")
    return changed
