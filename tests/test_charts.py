"""deploy/: helm takes the charts, Kubernetes their manifests, and nothing in them has a right."""

import os
import re
from pathlib import Path

import pytest
import yaml
from tests.lab.charts import CHART, NAMED, PROGRAMS, ROOT, faults, objects, rendered
from tests.lab.commands import call

from tuneline.cli import parser
from tuneline.deployment.health_checks import gateway_probes
from tuneline.serving.gateway.config import GatewayConfig

EVERYTHING = {
    **NAMED,
    "imagePullSecrets": [{"name": "registry"}],
    "serviceAccountAnnotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/tuneline"},
    "serving": {"replicas": 2, "settings": {"production_log": None}, "publicKey": "-----BEGIN"},
    "engine": {
        "image": "registry.example.com/vllm:1.2",
        "gpus": 2,
        "args": ["--no-previous"],
        "nodeSelector": {"gpu": "h100"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
    },
    "autoscaling": {"maxReplicas": 4},
    "ingress": {"host": "llm.example.com", "className": "nginx", "tlsSecret": "llm-tls"},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "networkPolicy": {"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]},
    "runs": {"modelCache": "300Gi", "podSpec": {"priorityClassName": "batch"}},
}


@pytest.fixture(scope="module", params=["defaults", "everything"])
def made(request, tmp_path_factory):
    values = {"defaults": NAMED, "everything": EVERYTHING}[request.param]
    path, error = rendered(tmp_path_factory.mktemp("chart"), values)
    assert not error
    return path


def named(made, kind, name):
    (found,) = (
        o for o in objects(made) if (o["kind"], o["metadata"]["name"]) == (kind, f"tuneline-{name}")
    )
    return found


def pod_of(made):
    pod = named(made, "StatefulSet", "serving")["spec"]["template"]["spec"]
    (gateway,), (follower,) = pod["containers"], pod["initContainers"]
    return pod, gateway, follower


def test_kubernetes_takes_what_the_chart_makes(made):
    # The Prometheus operator's kind is not one of Kubernetes.
    assert [fault for fault in faults(made) if "servicemonitor" not in fault.lower()] == []
    kinds = {o["kind"] for o in objects(made)}
    assert {"NetworkPolicy", "PodDisruptionBudget", "StatefulSet", "Service"} <= kinds
    assert not {kind for kind in kinds if "Role" in kind}
    for account in (o for o in objects(made) if o["kind"] == "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


def test_a_manifest_that_kubernetes_refuses_is_noticed(tmp_path):
    values = {**NAMED, "runs": {"modelCache": "300Gi"}, "engine": {"nodeSelector": {"gpu": 1}}}
    made, _ = rendered(tmp_path, values)
    (fault,) = faults(made)
    assert "statefulset/tuneline-serving" in fault


def test_both_are_in_one_pod_and_the_gateway_ends_first(made):
    """A sidecar starts before the gateway and is told to end after it."""
    pod, gateway, follower = pod_of(made)
    assert follower["restartPolicy"] == "Always"
    options = parser().parse_args(follower["command"][1:])
    config = Path(parser().parse_args(gateway["command"][1:]).config)
    assert config.parent == Path(options.folder)
    shared = {m["mountPath"] for m in gateway["volumeMounts"]} & {
        m["mountPath"] for m in follower["volumeMounts"]
    }
    assert str(options.folder) in shared
    assert pod["automountServiceAccountToken"] is False
    for container in (gateway, follower):
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert {"secretRef": {"name": "tuneline-store"}} in container["envFrom"]
    files = named(made, "ConfigMap", "serving")["data"]
    whole = {**yaml.safe_load(files["settings.yaml"]), "upstreams": [], "models": []}
    settings = GatewayConfig.model_validate(whole)
    drain = settings.drain
    assert pod["terminationGracePeriodSeconds"] > drain.delay_s + drain.timeout_s + 45
    assert (options.public_key is not None) == ("release.pub" in files)
    assert (settings.production_log is None) == ("release.pub" in files)


def test_the_probes_are_those_that_a_run_has_proved(made):
    _, gateway, _ = pod_of(made)
    assert {name: gateway[name] for name in gateway_probes()} == gateway_probes()


def test_engines_get_gpus_and_their_own_image(tmp_path):
    made, _ = rendered(tmp_path, EVERYTHING)
    pod, gateway, follower = pod_of(made)
    assert follower["resources"]["limits"] == {"cpu": "4", "memory": "16Gi", "nvidia.com/gpu": "2"}
    assert "nvidia.com/gpu" not in gateway["resources"]["limits"]
    assert (gateway["image"], follower["image"]) == (NAMED["image"], EVERYTHING["engine"]["image"])
    assert pod["nodeSelector"] == {"gpu": "h100"}
    # The autoscaler's number is not reset by the next release of the chart.
    assert "replicas" not in named(made, "StatefulSet", "serving")["spec"]
    scaler = named(made, "HorizontalPodAutoscaler", "serving")["spec"]
    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (2, 4)
    assert scaler["metrics"][0]["containerResource"]["container"] == follower["name"]
    paths = named(made, "Ingress", "gateway")["spec"]["rules"][0]["http"]["paths"]
    assert not {"/", "/metrics", "/v1/", "/v1/health/ready"} & {p["path"] for p in paths}


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({}, "at '/image'"),
        ({**NAMED, "store": "bucket/tuneline"}, "at '/store'"),
        ({**NAMED, "engine": {"gpu": 1}}, "additional properties 'gpu' not allowed"),
        ({**NAMED, "engine": {"gpus": "1"}}, "at '/engine/gpus'"),
        ({**NAMED, "serving": {"pointer": "prod"}}, "at '/serving/pointer'"),
    ],
)
def test_a_wrong_value_is_refused_by_name(tmp_path, values, complaint):
    made, error = rendered(tmp_path, values)
    assert complaint in error
    assert objects(made) == []


def test_every_value_has_its_schema(tmp_path):
    """A value that the chart knows but its schema does not could not be set."""
    known = yaml.safe_load((CHART / "values.yaml").read_text())
    made, error = rendered(tmp_path, {**known, **NAMED})
    assert not error
    assert faults(made) == []


# Apache Airflow's chart.

VALUES = ROOT / "deploy" / "helm"
MODEL = {"preset": "gpu", "nightly": {"schedule": "0 2 * * *"}}
COMPONENTS = {"scheduler", "api-server", "dag-processor", "triggerer", "worker"}


@pytest.fixture(params=["kubernetes", "celery"])
def airflow(request, tmp_path):
    """What Airflow's chart makes of the values, and the executor."""
    chart = os.environ.get("TUNELINE_TEST_AIRFLOW_CHART")
    if not chart:
        pytest.skip("needs the chart of Apache Airflow: make test-helm")
    files = [VALUES / "values.yaml", VALUES / f"values-{request.param}.yaml"]
    made, error = rendered(tmp_path, {}, Path(chart), more=files)
    assert not error
    return made, request.param


def pods_of(manifests):
    """Each pod by its component, that of the executor's tasks too."""
    for o in manifests:
        template = o.get("spec", {}).get("template", {})
        if name := template.get("metadata", {}).get("labels", {}).get("component"):
            yield name, template["spec"]
        if text := o.get("data", {}).get("pod_template_file.yaml"):
            yield "worker", yaml.safe_load(text)["spec"]


def test_every_component_knows_store_and_secrets(airflow, tmp_path):
    made, executor = airflow
    assert faults(made) == []
    found = [(name, pod) for name, pod in pods_of(objects(made)) if name in COMPONENTS]
    assert {name for name, _ in found} == COMPONENTS
    for name, pod in found:
        base = pod["containers"][0]
        assert {"configMapRef": {"name": "tuneline-airflow"}} in base["envFrom"], name
        assert {"secretRef": {"name": "tuneline-store"}} in base["envFrom"], name
        assert base["image"] == "REGISTRY/tuneline-airflow:TAG"
        assert "/opt/tuneline/pods" in [m["mountPath"] for m in base["volumeMounts"]], name
        if live := base.get("livenessProbe", {}).get("exec"):
            # What the image starts from has it: apache/airflow.
            assert "/entrypoint" in str(live["command"])
    # Helm writes a large number as 1.2e+06, which Airflow takes for a text.
    assert not re.search(r"= [\d.]+e\+", made.read_text())
    budgets = [o for o in objects(made) if o["kind"] == "PodDisruptionBudget"]
    assert len(budgets) == (4 if executor == "kubernetes" else 5)


def test_nothing_has_a_right_beyond_pods_and_jobs_of_its_namespace(airflow):
    made, executor = airflow
    manifests = objects(made)
    assert not [o for o in manifests if o["kind"].startswith("ClusterRole")]
    rules = [rule for o in manifests if o["kind"] == "Role" for rule in o["rules"]]
    granted = {resource for rule in rules for resource in rule["resources"]}
    assert granted == {"pods", "pods/log", "pods/exec", "events", "jobs", "jobs/status"}
    bindings = [o for o in manifests if o["kind"] == "RoleBinding"]
    bound = {(s["name"], o["roleRef"]["name"]) for o in bindings for s in o["subjects"]}
    # The triggerer ends pods and jobs of tasks that a user ends.
    triggerer = dict(pods_of(manifests))["triggerer"]["serviceAccountName"]
    assert {(triggerer, f"airflow-{what}-launcher-role") for what in ("pod", "job")} <= bound
    accounts = {o["metadata"]["name"]: o for o in manifests if o["kind"] == "ServiceAccount"}
    for name, account in accounts.items():
        if name not in dict(bound) and (name, executor) != ("airflow-scheduler", "celery"):
            assert account["automountServiceAccountToken"] is False, name


def test_what_the_chart_s_job_runs_is_a_script(airflow):
    (job,) = (pod for name, pod in pods_of(objects(airflow[0])) if name == "run-airflow-migrations")
    *shell, script = job["containers"][0]["args"]
    assert call(*shell[:1], "-n", "-c", script).stderr == ""
    assert "--conn-host airflow-api-server" in script
    (password,) = (e for e in job["containers"][0]["env"] if e["name"] == "API_PASSWORD")
    assert password["valueFrom"]["secretKeyRef"] == {"name": "tuneline-api", "key": "password"}


def test_the_values_name_what_tuneline_s_chart_makes(tmp_path):
    made, _ = rendered(tmp_path, {**NAMED, "runs": {"models": {"support": MODEL}}})
    maps = {o["metadata"]["name"]: o["data"] for o in objects(made) if o["kind"] == "ConfigMap"}
    values = yaml.safe_load((VALUES / "values.yaml").read_text())
    environment, _ = yaml.safe_load(values["extraEnvFrom"])
    variables = maps[environment["configMapRef"]["name"]]
    volumes = {v["name"]: v["configMap"]["name"] for v in values["volumes"]}
    mounted = {m["mountPath"]: maps[volumes[m["name"]]] for m in values["volumeMounts"]}
    assert "pod.yaml" in mounted[variables["TUNELINE_POD_TEMPLATE"]]
    assert yaml.safe_load(mounted[variables["TUNELINE_MODELS"]]["support.yaml"]) == MODEL
    assert variables["TUNELINE_NAMESPACE"] == "ml"


# The pages.


def commands(page):
    """The commands of a page, one a line."""
    blocks = re.findall(r"^```bash\n(.*?)^```", (ROOT / "docs" / page).read_text(), re.M | re.S)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]


@pytest.mark.parametrize("page", ["helm.md", "cluster.md"])
def test_the_commands_of_the_page_are_taken(page, tmp_path):
    """Helm renders, kubectl makes the objects without a cluster, and files that are named exist."""
    charts = [c for c in commands(page) if "upgrade --install tuneline" in c]
    assert charts
    for command in charts:
        words = command.replace("helm upgrade --install", "template").split()
        done = call(PROGRAMS / "helm", *words, cwd=ROOT)
        assert done.returncode == 0, done.stderr
    secrets = [c for c in commands(page) if c.startswith("kubectl create")]
    (tmp_path / "keys.json").write_text("{}")
    for command in secrets:
        done = call("bash", "-c", f"{command} --dry-run=client --output name", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    asked = {"tuneline-store", "tuneline-api", "tuneline-gateway-keys"}
    if page == "helm.md":
        assert asked == set(re.findall(r"secret generic (\S+)", "\n".join(secrets)))
    for name in re.findall(r"(?:-f|--values) (\S+)", "\n".join(commands(page))):
        assert (ROOT / name).is_file(), name


def test_the_values_of_the_page_are_the_chart_s(tmp_path):
    text = (ROOT / "docs" / "helm.md").read_text()
    for block in re.findall(r"^```yaml\n(.*?)^```", text, re.M | re.S):
        made, error = rendered(tmp_path, {**NAMED, **yaml.safe_load(block)})
        assert not error
        assert faults(made) == []
