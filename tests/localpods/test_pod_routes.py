"""The API as the official client sees it."""

import http.client
import json
import socket
import ssl
import stat
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from kubernetes import client, watch
from tests.lab.pods import NAMESPACE, Api, Server, pod_body, state_of
from tests.lab.waiting import wait_for


def test_pod_runs_to_its_end(api: Api) -> None:
    api.create("ends", "echo hello", labels={"a": "b"})
    pod = api.wait_phase("ends", "Succeeded")
    ended = state_of(pod).terminated
    assert (ended.exit_code, ended.reason, ended.message) == (0, "Completed", None)
    assert ended.finished_at >= ended.started_at
    assert pod.metadata.labels == {"a": "b"}
    assert api.log("ends") == "hello\n"
    assert {"Scheduled", "Started"} <= api.events("ends").keys()
    assert pod.status.container_statuses[0].image_id.startswith("localpods://sha256:")


def test_answer_to_a_create_request_waits_for_the_start(api: Api) -> None:
    # Else the operator sees a pending pod and looks again only after five seconds.
    assert api.create("at-once", "sleep 0.5").status.phase == "Running"
    assert api.create("held-back", container_image="unknown:1").status.phase == "Pending"


@pytest.mark.parametrize(
    ("name", "script", "spec", "code", "reason", "message"),
    [
        ("exits", "echo bad > $TERMINATION_MESSAGE_PATH; exit 75", {}, 75, "Error", "bad\n"),
        ("signalled", "kill -9 $BASHPID", {}, 137, "Error", ""),
        ("no-command", "", {"container_command": ["none-such"]}, 128, "StartError", "none-such"),
    ],
)
def test_a_pod_that_fails_says_how(
    api: Api, name: str, script: str, spec: dict[str, Any], code: int, reason: str, message: str
) -> None:
    pod = api.run(name, script, **spec)
    ended = state_of(pod).terminated
    assert (pod.status.phase, ended.exit_code, ended.reason) == ("Failed", code, reason)
    assert message in (ended.message or "")
    assert ("Started" in api.events(name)) is (reason != "StartError")


def test_what_is_taken_or_not_there(api: Api) -> None:
    api.create("twice")
    # Each namespace has its own names.
    api.core.create_namespaced_pod("other", pod_body("twice", "true"))
    for call, code, reason in (
        (lambda: api.create("twice"), 409, "AlreadyExists"),
        (lambda: api.read("nobody"), 404, "NotFound"),
        (lambda: api.log("nobody"), 404, "NotFound"),
        (lambda: api.core.delete_namespaced_pod("nobody", NAMESPACE), 404, "NotFound"),
        (lambda: api.core.patch_namespaced_pod("nobody", NAMESPACE, {}), 404, "NotFound"),
    ):
        with pytest.raises(client.ApiException) as caught:
            call()
        body = json.loads(caught.value.body)
        assert (caught.value.status, body["kind"], body["reason"]) == (code, "Status", reason)
        assert body["details"]["kind"] == "pods"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"restartPolicy": "Always"}, "spec.restartPolicy"),
        ({"containers": []}, "spec.containers"),
        ({"container_name": "Base"}, "spec.containers[0].name"),
        ({"container_resources": {"limits": {"memory": "lots"}}}, "resources.limits[memory]"),
        ({"volumes": [{"name": "../x", "emptyDir": {}}]}, "spec.volumes[0].name"),
        ({"container_name": "airflow-xcom-sidecar"}, "do_xcom_push=False"),
        ({"initContainers": [{"name": "a"}]}, "spec.initContainers"),
    ],
)
def test_wrong_pod_is_refused(api: Api, change: dict[str, object], field: str) -> None:
    with pytest.raises(client.ApiException) as caught:
        api.create("wrong", **change)
    assert caught.value.status == 422
    assert field in json.loads(caught.value.body)["message"]
    assert not api.exists("wrong")


def test_list_by_selectors(api: Api) -> None:
    for role in ("a", "b"):
        api.create(f"listed-{role}", labels={"set": "x", "role": role})

    def names(label: str, field: str = "", namespace: str = NAMESPACE) -> list[str]:
        found = api.core.list_namespaced_pod(namespace, label_selector=label, field_selector=field)
        return sorted(pod.metadata.name for pod in found.items)

    assert names("set=x,role in (b,c)") == ["listed-b"]
    assert names("set=x", "metadata.name=listed-b") == ["listed-b"]
    assert len(api.core.list_pod_for_all_namespaces(label_selector="set=x").items) == 2
    assert names("set=x", namespace="other") == []
    with pytest.raises(client.ApiException, match=r"^\(400\)"):
        names("role in a")


def test_patch_changes_labels_and_nothing_else(api: Api) -> None:
    before = api.create("patched", labels={"a": "b", "c": "d"})
    patch = {"metadata": {"labels": {"a": None, "already_checked": "True"}}}
    after = api.core.patch_namespaced_pod("patched", NAMESPACE, patch)
    assert after.metadata.labels == {"c": "d", "already_checked": "True"}
    assert int(after.metadata.resource_version) > int(before.metadata.resource_version)
    with pytest.raises(client.ApiException, match=r"^\(422\)"):
        api.core.patch_namespaced_pod("patched", NAMESPACE, {"spec": {"nodeName": "elsewhere"}})


def watched(api: Api, selector: str, version: str, seconds: int = 1) -> Iterator[dict[str, Any]]:
    """Events of the pods that a selector names, from a version on."""
    return watch.Watch().stream(
        api.core.list_namespaced_pod,
        NAMESPACE,
        label_selector=selector,
        resource_version=version,
        timeout_seconds=seconds,
    )


def test_watch_tells_a_pod_s_life(api: Api) -> None:
    seen: list[tuple[str, str]] = []
    version = api.core.list_namespaced_pod(NAMESPACE).metadata.resource_version

    def look() -> None:
        for event in watched(api, "watched=yes", version, seconds=20):
            seen.append((event["type"], event["object"].status.phase))
            if event["type"] == "DELETED":
                return

    thread = threading.Thread(target=look)
    thread.start()
    api.create("not-watched")
    api.run("watched", "sleep 0.3", labels={"watched": "yes"})
    api.core.delete_namespaced_pod("watched", NAMESPACE)
    thread.join(20)
    # Pending lasts for a moment only; a watch may leave it out.
    assert seen[0][0] == "ADDED", seen
    assert "Running" in [phase for _, phase in seen]
    assert ("MODIFIED", "Succeeded") in seen
    assert seen[-1] == ("DELETED", "Succeeded")


def test_watch_from_a_version_starts_after_it(api: Api) -> None:
    # As kubectl waits: it lists, and watches from the version of the list.
    for name in ("before", "deleted-before"):
        api.run(name, "true", labels={"since": "yes"})
    version = api.core.list_namespaced_pod(NAMESPACE).metadata.resource_version
    api.core.delete_namespaced_pod("deleted-before", NAMESPACE)
    api.create("after", labels={"since": "yes"})
    seen = {(e["object"].metadata.name, e["type"]) for e in watched(api, "since=yes", version)}
    assert {("deleted-before", "DELETED"), ("after", "ADDED")} <= seen
    assert {name for name, _ in seen} == {"deleted-before", "after"}


def test_environment_is_the_pod_s_own(api: Api) -> None:
    env = [
        {"name": "LITERAL", "value": "x"},
        {"name": "COMPOSED", "value": "$(LITERAL)-$(UNKNOWN)-$$(LITERAL)"},
        {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "LABEL", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['a']"}}},
    ]
    script = "env; echo ARG=$0; pwd; touch here $HOME/h $TMPDIR/t; ls"
    api.run(
        "environment", script, labels={"a": "b"}, container_env=env, container_args=["$(LITERAL)"]
    )
    lines = api.log("environment").splitlines()
    values = dict(line.split("=", 1) for line in lines if "=" in line)
    assert values["LITERAL"] == "x"
    assert values["COMPOSED"] == "x-$(UNKNOWN)-$(LITERAL)"
    assert (values["POD"], values["LABEL"], values["ARG"]) == ("environment", "b", "x")
    assert values["HOSTNAME"] == "environment"
    assert values["OMP_WAIT_POLICY"] == "PASSIVE"
    assert "SERVER_ONLY" not in values
    assert "PYTHONPATH" not in values
    assert lines[-1] == "here"
    # Unix sockets must fit below it.
    assert len(values["TMPDIR"]) < 50
    wait_for(lambda: not Path(values["TMPDIR"]).exists(), what="the end of temporary files")


def test_volumes_are_found_by_variable(api: Api, tmp_path: Path) -> None:
    pod = api.run(
        "volumes",
        "echo a > $LOCALPODS_VOLUME_SCRATCH/f && cat $LOCALPODS_VOLUME_SCRATCH/f; "
        "echo b > $LOCALPODS_VOLUME_MY_HOST/sub",
        volumes=[
            {"name": "scratch", "emptyDir": {}},
            {"name": "my-host", "hostPath": {"path": str(tmp_path)}},
        ],
        container_volumeMounts=[
            {"name": "scratch", "mountPath": "/scratch"},
            {"name": "my-host", "mountPath": "/host"},
        ],
    )
    assert pod.status.phase == "Succeeded"
    assert api.log("volumes") == "a\n"
    assert (tmp_path / "sub").read_text() == "b\n"


def test_secret_is_passed_by_reference_and_an_optional_one_may_be_missing(
    api: Api, server: Server
) -> None:
    references = {
        "PASSWORD": {"name": "store", "key": "password"},
        "NONE": {"name": "nowhere", "key": "x", "optional": True},
    }
    api.create(
        "secret",
        'test ${#PASSWORD} = 7 && test "$S3_user" = me && test -z "${NONE+set}"',
        container_env=[
            {"name": name, "valueFrom": {"secretKeyRef": reference}}
            for name, reference in references.items()
        ],
        container_envFrom=[{"prefix": "S3_", "secretRef": {"name": "store"}}],
    )
    reason = "CreateContainerConfigError"
    waiting = api.wait_waiting("secret")
    assert (waiting.reason, "store" in waiting.message) == (reason, True)

    secrets = server.state / "secrets.json"
    secrets.write_text(json.dumps({"store": {"password": "hunter2", "user": "me"}}))
    secrets.chmod(0o644)
    wait_for(
        lambda: "chmod 600" in (state_of(api.read("secret")).waiting or waiting).message,
        what="the refusal of a file that others can read",
    )
    secrets.chmod(0o600)
    api.wait_phase("secret", "Succeeded")
    raw = api.core.read_namespaced_pod("secret", NAMESPACE, _preload_content=False).data
    assert b"hunter2" not in raw
    assert not [
        path
        for path in server.state.rglob("*")
        if path.is_file() and path != secrets and b"hunter2" in path.read_bytes()
    ]


def answer(server: Server, path: str, token: str | None, **headers: str) -> int:
    try:
        with server.open(path, token=token, headers=headers) as response:
            return response.status
    except urllib.error.HTTPError as error:
        kind = json.loads(error.read())["kind"]
        return error.code if kind == "Status" else 0


def test_requests_without_the_token_are_refused(server: Server) -> None:
    pods = f"/api/v1/namespaces/{NAMESPACE}/pods"
    assert answer(server, "/readyz", None) == 200
    assert answer(server, "/version", None) == 200
    for path in (pods, f"{pods}/x/log", "/apis/batch/v1/jobs", "/nowhere"):
        assert answer(server, path, None) == 401
        assert answer(server, path, server.token[:-1]) == 401
    assert answer(server, pods, server.token) == 200
    assert answer(server, "/nowhere", server.token) == 404


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://example.com"},
        {"Origin": "null"},
        # A name that its owner has bound to 127.0.0.1.
        {"Host": "example.com"},
        {"Host": "127.0.0.1.example.com:443"},
    ],
)
def test_web_page_is_not_answered(server: Server, headers: dict[str, str]) -> None:
    assert answer(server, "/version", None, **headers) == 403
    assert answer(server, "/api/v1/pods", server.token, **headers) == 403


def test_only_the_authority_in_the_kubeconfig_vouches_for_the_server(server: Server) -> None:
    port = int(server.url.rpartition(":")[2])
    with (
        pytest.raises(ssl.SSLCertVerificationError),
        socket.create_connection(("127.0.0.1", port)) as plain,
    ):
        ssl.create_default_context().wrap_socket(plain, server_hostname="127.0.0.1")
    with (
        socket.create_connection(("127.0.0.1", port)) as plain,
        server.tls.wrap_socket(plain, server_hostname="127.0.0.1") as secured,
    ):
        assert secured.version() == "TLSv1.3"
    # Without TLS, nothing is answered.
    with pytest.raises(http.client.RemoteDisconnected):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz")


def test_state_is_private_and_only_the_loopback_interface_is_served(server: Server) -> None:
    assert server.process is not None
    listening = psutil.Process(server.process.pid).net_connections()
    addresses = [c.laddr.ip for c in listening if c.status == psutil.CONN_LISTEN]
    assert addresses == ["127.0.0.1"]
    for name in ("token", "kubeconfig", "certificate.pem", "server.json"):
        assert stat.S_IMODE((server.state / name).stat().st_mode) == 0o600
    assert stat.S_IMODE(server.state.stat().st_mode) == 0o700


def test_body_that_is_not_an_object(server: Server) -> None:
    path = f"/api/v1/namespaces/{NAMESPACE}/pods"
    for body in (b"[]", b"{", b"k8s\x00\n\x80"):
        with pytest.raises(urllib.error.HTTPError) as caught:
            server.open(path, token=server.token, data=body)
        assert caught.value.code == 400
