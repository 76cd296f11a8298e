"""Versioned model ids: `<id>@<version>` is that version's upstream or nobody."""

from tests.serving.gateway.conftest import upstream_entry


def ids(gateway):
    return {entry["id"] for entry in gateway.client.get("/v1/models").json()["data"]}


def test_a_version_is_an_id_of_its_own(start, small):
    gateway = start(upstream_entry(small, version="7"))
    assert ids(gateway) == {"support", "support@7"}
    assert gateway.chat(model="support@7").status_code == 200
    refused = gateway.chat(model="support@8")
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")
    (row,) = gateway.rows(1)
    # Logs and ledger know the model by its plain id.
    assert row["model"] == "support"


def test_a_pinned_version_has_no_fallback(start, small, large):
    gateway = start(upstream_entry(small, version="7"), upstream_entry(large))
    small.mode = "error"
    assert gateway.chat(model="support").headers["x-tuneline-served-by"] == "large"
    pinned = gateway.chat(model="support@7")
    assert pinned.status_code == 502
    assert large.name not in pinned.headers["x-tuneline-attempts"]


def test_an_id_of_the_configuration_is_left_to_it(start, small, large):
    old = {"id": "support@7", "chain": ["large"]}
    entries = [upstream_entry(small, version="7"), upstream_entry(large)]
    gateway = start(*entries, models=[{"id": "support", "chain": ["small"]}, old])
    assert gateway.chat(model="support@7").headers["x-tuneline-served-by"] == "large"


def test_a_client_chooses_no_adapter(start, small):
    gateway = start(upstream_entry(small, adapter=1))
    gateway.chat(lora=[{"id": 0, "scale": 1.0}], lora_request={"name": "x"}, id_slot=3)
    assert small.bodies[-1]["lora"] == [{"id": 1, "scale": 1.0}]
    assert not {"lora_request", "id_slot"} & small.bodies[-1].keys()


def test_an_adapter_with_a_name_is_asked_for_as_the_model(start, small):
    gateway = start(upstream_entry(small, model="base", adapter=f"{small.name}-model"))
    gateway.wait_ready()
    assert gateway.chat().status_code == 200
    assert small.bodies[-1]["model"] == f"{small.name}-model"
    assert "lora" not in small.bodies[-1]
