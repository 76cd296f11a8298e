"""What a run lacks of Airflow or the cluster is one sentence before its first pod."""

import json

import pytest
from tests.lab.airflow_api import airflow_api
from tests.lab.http_server import Handler, serving

from tuneline.airflow.preflight import check_surroundings
from tuneline.config import User, build_config
from tuneline.errors import UserError

REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


class Cluster(Handler):
    """The reviews of rights and the nodes of the Kubernetes API."""

    refused: tuple[str, ...] = ()
    images: tuple[str, ...] = ("docker.io/tuneline/ml:local",)
    node_status = 200

    def do_POST(self) -> None:
        assert self.path == REVIEWS
        review = json.loads(self.body())
        asked = review["spec"]["resourceAttributes"]
        assert asked["namespace"] == "ml"
        name = "/".join(filter(None, (asked["resource"], asked.get("subresource"))))
        review["status"] = {"allowed": f"{asked['verb']} {name}" not in self.refused}
        self._json(201, review)

    def do_GET(self) -> None:
        images = [{"names": None}, *({"names": [name]} for name in self.images)]
        self._json(
            self.node_status, {"kind": "NodeList", "items": [{"status": {"images": images}}]}
        )

    def _json(self, status: int, document: object) -> None:
        kind = {"Content-Type": "application/json"}
        self.answer(json.dumps(document).encode(), status, kind)


@pytest.fixture
def surroundings(monkeypatch, tmp_path):
    """An Airflow and a cluster that lack nothing, but for what a test takes away."""
    with airflow_api() as (url, records):
        monkeypatch.setenv("AIRFLOW_CONN_TUNELINE_API", records.connection(url))

        def check(settings=None, approvers=(), **cluster):
            handler = type("Changed", (Cluster,), cluster)
            with serving(handler) as server:
                (tmp_path / "kubeconfig").write_text(json.dumps(kubeconfig(server)))
                extra = {"kube_config_path": str(tmp_path / "kubeconfig"), "namespace": "ml"}
                connection = json.dumps({"conn_type": "kubernetes", "extra": extra})
                monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", connection)
                pods = {"namespace": "ml", **(settings or {})}
                check_surroundings(build_config({"data": {"source": "x"}, "pods": pods}), approvers)

        check.records = records
        yield check


def kubeconfig(server):
    return {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
    }


@pytest.mark.parametrize("namespace", ["ml", None], ids=("of the run", "of the connection"))
def test_nothing_is_missing(surroundings, capsys, namespace):
    surroundings({"namespace": namespace})
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("taken_away", "said"),
    [
        ({"refused": ("create pods", "get pods/log")}, "may not create pods, get pods/log in .*ml"),
        ({"images": ()}, "no node of the cluster has the image tuneline/ml:local.*TUNELINE_IMAGE"),
    ],
)
def test_what_the_cluster_lacks_is_named_with_the_remedy(surroundings, taken_away, said):
    with pytest.raises(UserError, match=said):
        surroundings(**taken_away)


def test_a_node_with_more_images_than_it_reports_may_have_any(surroundings):
    surroundings(images=tuple(f"registry/other:{n}" for n in range(50)))


def test_images_of_a_registry_are_left_to_the_nodes(surroundings):
    surroundings({"image": "registry/ml:1", "gpus": 1, "gpu_image": "registry/gpu:1"}, images=())


def test_a_missing_pool_is_named(surroundings):
    surroundings.records.pools.clear()
    with pytest.raises(UserError, match=r"no pool 'gpu'.*airflow pools set gpu 1"):
        surroundings()


def test_people_whom_fab_does_not_know_are_named(surroundings, monkeypatch, capsys):
    users = [User(name="alice"), User(name="alize"), User(id="7", name="bob")]
    surroundings(approvers=users)
    manager = "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager"
    monkeypatch.setenv("AIRFLOW__CORE__AUTH_MANAGER", manager)
    surroundings.records.users = {"alice"}
    with pytest.raises(UserError, match="no user alize, named by approvers"):
        surroundings(approvers=users)
    surroundings.records.users = None
    surroundings(approvers=users)
    assert "not checked, whether Airflow has the users alice, alize" in capsys.readouterr().out


def test_what_may_not_be_asked_is_printed_and_passes(surroundings, monkeypatch, capsys):
    surroundings(node_status=403)
    said = capsys.readouterr().out
    assert said == "not checked, whether a node has tuneline/ml:local: Forbidden\n"
    surroundings.records.failures.append(403)
    surroundings()
    said = capsys.readouterr().out
    assert "not checked, the pool gpu: Airflow's API: GET /pools/gpu: 403" in said
    monkeypatch.delenv("AIRFLOW_CONN_TUNELINE_API")
    surroundings()
    assert "not checked, the pool gpu: there is no Airflow connection" in capsys.readouterr().out
