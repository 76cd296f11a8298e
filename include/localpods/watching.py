"""Lists, and watches: a list request that goes on with what changes."""

from __future__ import annotations

import asyncio
import contextlib
import json

from aiohttp import web

from localpods.collection import Collection
from localpods.objects import Json
from localpods.replies import ApiError, bad_request, flag, send_json, whole_number
from localpods.selectors import Selector, parse_fields, parse_labels


async def send_list_or_watch(
    request: web.Request, collection: Collection, fields: frozenset[str]
) -> web.StreamResponse:
    """Answer a list request, or a watch when it asks for one.

    Args:
        request: The request; without a namespace in its path it means all.
        collection: The objects.
        fields: Fields that a field selector may name.

    Returns:
        The list, or the ended stream of changes.
    """
    namespace = request.match_info.get("namespace")
    selector = Selector(
        parse_labels(request.query.get("labelSelector", "")),
        parse_fields(request.query.get("fieldSelector", ""), fields),
    )
    if not flag(request, "watch"):
        return send_json(collection.as_list(namespace, selector))
    text = request.query.get("resourceVersion", "")
    if text and not text.isdigit():
        raise bad_request(f"resourceVersion: {text!r} is not one of this server")
    # "0" asks for any state, which may be the present one.
    since = int(text) if text not in ("", "0") else None
    limit = whole_number(request, "timeoutSeconds")
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(limit):
            try:
                async for event in collection.watch(namespace, selector, since):
                    await _send(response, event)
            except ApiError as error:
                await _send(response, {"type": "ERROR", "object": error.status()})
    return response


async def _send(response: web.StreamResponse, event: Json) -> None:
    await response.write(json.dumps(event).encode() + b"\n")
