import signal

import pytest
from tests.lab.runs import broken

from tuneline.deployment import health_checks
from tuneline.serving.engines import probe as engine_probe
from tuneline.serving.engines.llama_cpp.engine import LlamaCpp, LlamaServer
from tuneline.serving.engines.probe import ProbeResult
from tuneline.serving.processes import DetachedProcess


def execute(lab):
    return lab.execute("health_checks")


def test_the_real_servers_probes_pass_from_start_to_drain(exported_lab):
    lab = exported_lab()
    evidence = execute(lab)
    assert evidence.verdict == "pass", broken(evidence)
    spec = lab.document("health_checks", "probes.json")
    command = spec["engine"]["livenessProbe"]["exec"]["command"]
    assert command[:3] == ["tuneline", "probe", "live"]
    assert spec["gateway"]["livenessProbe"]["httpGet"]["path"] == "/v1/health/live"


def port_alone(kind, url, *_):
    """Exec probes that ask whether the port takes a connection."""
    address = ("127.0.0.1", int(url.rsplit(":", 1)[1]))
    return ["python", "-c", f"import socket; socket.create_connection({address}, 2)"]


# Planted faults: a name in the item or its server and what replaces it, and the rules that break.
FAULTS = [
    (
        [(health_checks, "engine_probe_command", port_alone)],
        {"hung_liveness_probe", "hung_readiness_probe"},
    ),
    (
        [
            (engine_probe, "ready", lambda *_: ProbeResult(True, "always", 0.0)),
            # Its GPU holds as much as it did before the engine was started.
            (LlamaCpp, "on_gpu", lambda _self: True),
            (health_checks, "gpu_memory_used", lambda: 40 << 30),
        ],
        {"start_ready_before_it_listens", "weights_resident"},
    ),
    (
        [
            (LlamaServer, "drain", lambda self: self.signal(signal.SIGKILL)),
            # It has read a tenth of its file.
            (DetachedProcess, "weight_bytes", lambda _self, _files, size: size // 10),
            # Long enough that the tiny model is still at it when the signal comes.
            (health_checks, "LONG_ANSWER", 900),
        ],
        {"drain_engine_answer_whole", "weights_resident"},
    ),
]


@pytest.mark.parametrize(("planted", "rules"), FAULTS)
def test_a_fault_is_seen(planted, rules, exported_lab, monkeypatch):
    for where, name, fault in planted:
        monkeypatch.setattr(where, name, fault)
    evidence = execute(exported_lab())
    assert evidence.verdict == "fail"
    assert rules <= broken(evidence)
