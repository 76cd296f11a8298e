"""The published document: it is what is served, and nothing in it is served without a key."""

import json
import re
from pathlib import Path

import httpx
import pytest
import schemathesis
import yaml
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    positive_data_acceptance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)
from starlette.routing import Route

from tuneline.serving.gateway.app.routes import document

from .conftest import upstream_entry

# What answers without a key: it tells nothing that is anybody's.
PUBLIC = {"/", "/metrics", "/openapi.json", "/v1/health/live", "/v1/health/ready"}
ROOT = Path(__file__).parents[3]
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
]
DOCUMENT = schemathesis.openapi.from_dict(json.loads(document()))


@pytest.fixture
def gateway(start, small):
    small.mode = "any"
    return start(upstream_entry(small, ping=False))


def paths_of(gateway) -> set[str]:
    routes = gateway.thread.server.config.app.routes
    assert all(isinstance(route, Route) for route in routes)
    return {route.path.replace(":path", "") for route in routes}


def test_what_is_served_is_what_is_published(gateway):
    published = gateway.client.get("/openapi.json").json()
    assert published["openapi"] == "3.1.0"
    assert paths_of(gateway) == set(published["paths"])
    open_to_all = {
        path
        for path, entry in published["paths"].items()
        for operation in entry.values()
        if not operation["security"]
    }
    assert open_to_all == PUBLIC


def test_no_route_answers_without_a_valid_key(gateway, small):
    paths = paths_of(gateway) - PUBLIC
    assert len(paths) == 4
    for path in paths:
        basic = f"Basic {gateway.key}"
        for key in (None, "", "Bearer", "Bearer tl-wrong", b"Bearer \xff\xfe", basic, gateway.key):
            headers = {} if key is None else {"authorization": key}
            for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "HEAD", "TRACE"):
                url = gateway.url + path.replace("{model}", "support")
                answer = httpx.request(method, url, headers=headers, json={"model": "support"})
                assert answer.status_code in (401, 405), (method, path, key)
                if answer.status_code == 401 and method != "HEAD":
                    assert answer.json()["error"]["code"] == "invalid_api_key"
                    assert answer.headers["www-authenticate"] == "Bearer"
    assert small.bodies == []


_ODD = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
TEN_EXAMPLES = settings(max_examples=10, deadline=None, suppress_health_check=_ODD)


@DOCUMENT.parametrize()
@TEN_EXAMPLES
def test_every_operation_keeps_to_the_document(case, gateway):
    headers = {"authorization": f"Bearer {gateway.key}"}
    response = case.call(base_url=gateway.url, headers=headers, timeout=20)
    case.validate_response(response, checks=CHECKS)


@DOCUMENT.include(method="POST").parametrize()
@TEN_EXAMPLES
def test_what_the_document_allows_is_not_refused(case, gateway):
    if case.meta.generation.mode.is_negative:
        return
    case.body = {**case.body, "model": "support"}
    if isinstance(case.body.get("prompt"), list):
        # The product of the two has a bound, which no schema can state.
        case.body |= {"n": 1}
    headers = {"authorization": f"Bearer {gateway.key}"}
    response = case.call(base_url=gateway.url, headers=headers, timeout=20)
    case.validate_response(response, checks=[*CHECKS, positive_data_acceptance])


def test_the_page_the_alerts_and_the_dashboard_name_what_is_served(start, small, tmp_path):
    log = {"store": tmp_path.as_uri(), "spool": "spool", "pii_model": False}
    gateway = start(upstream_entry(small, ping=False), production_log=log)
    types = dict(re.findall(r"^# TYPE tuneline_gateway_(\S+) (\S+)$", gateway.metrics, re.M))
    page = (ROOT / "docs" / "metrics.md").read_text()
    assert dict(re.findall(r"^\| `(\w+)` \| (\w+) \|", page, re.M)) == types
    served = set(types) | {f"{name}_bucket" for name, kind in types.items() if kind == "histogram"}
    folder = ROOT / "deploy" / "monitoring"
    rules = yaml.safe_load((folder / "alerts.yaml").read_text())["groups"][0]["rules"]
    dashboard = json.loads((folder / "grafana-dashboard.json").read_text())
    queries = [rule["expr"] for rule in rules]
    queries += [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    queries += [one["query"] for one in dashboard["templating"]["list"]]
    assert len(rules) == 3
    for query in queries:
        assert query.count("(") == query.count(")"), query
        assert set(re.findall(r"tuneline_gateway_(\w+)", query)) <= served, query
