"""Error replies and request parameters in the form of the Kubernetes API."""

from __future__ import annotations

import copy
import json

from aiohttp import web

from localpods.objects import Json

# The fields of an object's metadata that a patch may change.
_PATCHABLE = ("labels", "annotations")


class ApiError(Exception):
    """An error that the client receives as a Kubernetes `Status` object."""

    def __init__(self, code: int, reason: str, message: str, details: Json | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.status: Json = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": reason,
            "code": code,
            "details": details or {},
        }


def bad_request(message: str) -> ApiError:
    """Return the error for a request that cannot be understood or carried out."""
    return ApiError(400, "BadRequest", message)


def invalid(kind: str, name: str, field: str, why: str) -> ApiError:
    """Return the error for an object with an invalid field, with the fault and its remedy."""
    details = {"name": name, "kind": kind, "causes": [{"field": field, "message": why}]}
    return ApiError(422, "Invalid", f'{kind} "{name}" is invalid: {field}: {why}', details)


def flag(request: web.Request, name: str) -> bool:
    """Read a boolean query parameter; the Python client sends `True` with a capital letter."""
    return request.query.get(name, "").lower() in {"true", "1"}


def whole_number(request: web.Request, name: str) -> int | None:
    """Read a query parameter that is a whole number of at least 0."""
    text = request.query.get(name, "")
    if not text:
        return None
    if not text.isascii() or not text.isdigit():
        raise bad_request(f"query parameter {name}: {text!r} is not a whole number")
    return int(text)


async def read_object(request: web.Request) -> Json:
    """Read a request's body, a JSON object; an empty body counts as an empty object."""
    raw = await request.read()
    if raw.startswith(b"k8s\x00"):
        raise bad_request("protobuf is not supported, only JSON: use `kubectl create -f`")
    try:
        body = json.loads(raw) if raw.strip() else {}
    except ValueError as error:
        raise bad_request(f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise bad_request("the body must be a JSON object")
    return body


def patched(current: Json, patch: Json) -> Json:
    """Return an object with a merge patch (RFC 7386) applied to its labels and annotations.

    Operators mark a pod with a label; everything else about a pod is fixed once it exists.

    Raises:
        ApiError: 422 if the patch names any other field.
    """
    changes = patch.get("metadata") or {}
    if patch.keys() != {"metadata"} or changes.keys() - set(_PATCHABLE):
        message = "only labels and annotations can be changed"
        raise invalid(current["kind"], current["metadata"]["name"], "patch", message)
    changed = copy.deepcopy(current)
    for field in _PATCHABLE:
        merged = {**(changed["metadata"].get(field) or {}), **(changes.get(field) or {})}
        changed["metadata"][field] = {k: v for k, v in merged.items() if v is not None}
    return changed
