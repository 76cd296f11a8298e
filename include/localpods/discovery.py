"""What kubectl asks before its first request: versions, resources, and the check of fields.

The OpenAPI document is no more than kubectl needs to leave the validation of a file to the
server, which `kubectl create -f` does by default.
"""

from __future__ import annotations

from aiohttp import web

from localpods import __version__
from localpods.objects import Json

# The version of Kubernetes whose API this is.
_MAJOR, _MINOR = "1", "33"
_VERBS = ["create", "delete", "get", "list", "patch", "watch"]
_BATCH = {"groupVersion": "batch/v1", "version": "v1"}
_GROUP = {"name": "batch", "versions": [_BATCH], "preferredVersion": _BATCH}


def _resource(name: str, kind: str, verbs: list[str], *short: str) -> Json:
    return {
        "name": name,
        "singularName": kind.lower(),
        "namespaced": True,
        "kind": kind,
        "verbs": verbs,
        **({"shortNames": list(short), "categories": ["all"]} if short else {}),
    }


def _openapi(path: str, *kinds: tuple[str, str, str, str]) -> Json:
    parameter = {"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}
    return {
        "openapi": "3.0.0",
        "info": {"title": "localpods", "version": __version__},
        "paths": {
            f"{path}/namespaces/{{namespace}}/{plural}/{{name}}": {
                "patch": {
                    "parameters": [parameter],
                    "responses": {},
                    "x-kubernetes-action": "patch",
                    "x-kubernetes-group-version-kind": {
                        "group": group,
                        "version": version,
                        "kind": kind,
                    },
                }
            }
            for group, version, kind, plural in kinds
        },
    }


_DOCUMENTS: dict[str, Json] = {
    "/version": {
        "major": _MAJOR,
        "minor": _MINOR,
        "gitVersion": f"v{_MAJOR}.{_MINOR}.0+localpods-{__version__}",
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "",
        "goVersion": "",
        "compiler": "",
        "platform": "local",
    },
    "/api": {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []},
    "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": [_GROUP]},
    "/apis/batch": {"kind": "APIGroup", "apiVersion": "v1", **_GROUP},
    "/api/v1": {
        "kind": "APIResourceList",
        "groupVersion": "v1",
        "resources": [
            _resource("pods", "Pod", _VERBS, "po"),
            _resource("pods/log", "Pod", ["get"]),
            _resource("pods/status", "Pod", ["get"]),
            _resource("events", "Event", ["list", "watch"]) | {"shortNames": ["ev"]},
        ],
    },
    "/apis/batch/v1": {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": "batch/v1",
        "resources": [
            _resource("jobs", "Job", _VERBS, "job"),
            _resource("jobs/status", "Job", ["get"]),
        ],
    },
    "/openapi/v3": {
        "paths": {
            "api/v1": {"serverRelativeURL": "/openapi/v3/api/v1"},
            "apis/batch/v1": {"serverRelativeURL": "/openapi/v3/apis/batch/v1"},
        }
    },
    "/openapi/v3/api/v1": _openapi("/api/v1", ("", "v1", "Pod", "pods")),
    "/openapi/v3/apis/batch/v1": _openapi("/apis/batch/v1", ("batch", "v1", "Job", "jobs")),
}


def register(router: web.UrlDispatcher) -> None:
    """Add the routes to a router."""
    for path in _DOCUMENTS:
        router.add_get(path, _send)


async def _send(request: web.Request) -> web.Response:
    return web.json_response(_DOCUMENTS[request.path])
