"""Replies with objects: one, a list, or a watch, which is a list that continues with changes.

kubectl asks for tables and receives them; every other client receives the objects.
"""

from __future__ import annotations

import asyncio
import contextlib
import json

from aiohttp import web

from localpods.collection import Collection, version_of
from localpods.objects import Json
from localpods.replies import bad_request, flag, whole_number
from localpods.selectors import Selector
from localpods.tables import as_table


def send_object(request: web.Request, collection: Collection, obj: Json) -> web.Response:
    """Reply with one object."""
    if _wants_table(request):
        obj = as_table(collection.kind, [obj], collection.version)
    return web.json_response(obj)


async def send_list_or_watch(request: web.Request, collection: Collection) -> web.StreamResponse:
    """Reply to a list request or a watch; without a namespace it asks for all."""
    namespace = request.match_info.get("namespace")
    labels, fields = (request.query.get(f"{name}Selector", "") for name in ("label", "field"))
    selector = Selector(labels, fields, collection.kind)
    if flag(request, "watch"):
        return await _watch(request, collection, namespace, selector)
    found = collection.select(namespace, selector)
    if _wants_table(request):
        return web.json_response(as_table(collection.kind, found, collection.version))
    # Of the API that is asked: /api/v1/… or /apis/batch/v1/….
    version = "batch/v1" if request.path.startswith("/apis/batch/") else "v1"
    metadata = {"resourceVersion": str(collection.version)}
    kind = f"{collection.kind}List"
    return web.json_response(
        {"kind": kind, "apiVersion": version, "metadata": metadata, "items": found}
    )


async def _watch(
    request: web.Request, collection: Collection, namespace: str | None, selector: Selector
) -> web.StreamResponse:
    text = request.query.get("resourceVersion", "")
    if text and not text.isdigit():
        raise bad_request(f"resourceVersion: {text!r} does not come from this server")
    # "0" asks for any state, such as the present one.
    since = int(text) if text not in ("", "0") else None
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(whole_number(request, "timeoutSeconds")):
            async for change, obj in collection.watch(namespace, selector, since):
                if _wants_table(request):
                    obj = as_table(collection.kind, [obj], version_of(obj))  # noqa: PLW2901
                line = json.dumps({"type": change, "object": obj})
                await response.write(f"{line}\n".encode())
    return response


def _wants_table(request: web.Request) -> bool:
    return "as=Table" in request.headers.get("Accept", "")
