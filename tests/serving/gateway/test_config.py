from pathlib import Path
from typing import get_args

import pytest
import yaml
from pydantic import BaseModel

from tuneline.config.section import described
from tuneline.errors import UserError
from tuneline.serving.gateway.config import GatewayConfig, load_config
from tuneline.serving.gateway.upstream_config import PriceConfig

LOG = {"store": "file:///s", "spool": "spool"}
DOCS = Path(__file__).parents[3] / "docs" / "gateway.md"


def example() -> dict:
    return {
        "keys_file": "keys.json",
        "ledger": {"path": "usage.db"},
        "upstreams": [
            {"name": "small", "base_url": "http://127.0.0.1:1/v1", "model": "m"},
            {"name": "large", "base_url": "https://models.example/v1/", "model": "l"},
        ],
        "models": [{"id": "support", "chain": ["small", "large"]}],
    }


def load(tmp_path: Path, config: object) -> GatewayConfig:
    path = tmp_path / "gateway.yaml"
    path.write_text(config if isinstance(config, str) else yaml.safe_dump(config))
    return load_config(path)


def message(tmp_path: Path, config: object) -> str:
    with pytest.raises(UserError) as caught:
        load(tmp_path, config)
    assert str(tmp_path / "gateway.yaml") in str(caught.value)
    return str(caught.value)


def test_paths_are_beside_the_file_and_defaults_are_safe(tmp_path):
    config = load(tmp_path, example())
    assert config.keys_file == tmp_path / "keys.json"
    assert config.ledger.path == tmp_path / "usage.db"
    assert config.host == "127.0.0.1"
    assert config.port == 8000
    assert config.upstreams[1].base_url == "https://models.example/v1"


def set_in(config: dict, path: str, value: object) -> dict:
    target: object = config
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    for part in parents:
        target = target[part]
    target[last] = value
    return config


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("prot", 8000, ["`prot`", "unknown key"]),
        ("upstreams.0.api_key", "sk-very-secret", ["`upstreams[0].api_key`", "unknown key"]),
        ("port", "eighty", ["`port`", "integer"]),
        ("port", 70_000, ["`port`", "65535"]),
        ("upstreams.0.base_url", "127.0.0.1:8080", ["`upstreams[0].base_url`", "http://"]),
        ("upstreams.0.base_url", "http://me:sk-very-secret@h/v1", ["base_url", "api_key_env"]),
        ("upstreams.0.api_key_env", "NOT_SET_ANYWHERE", ["api_key_env", "NOT_SET_ANYWHERE"]),
        ("upstreams.0.extra_body", {"model": "x"}, ["extra_body", "model"]),
        ("upstreams.1.name", "small", ["same upstream", "small"]),
        ("upstreams.0.price", {"per_1k_prompt": 1}, ["price", "per_1k_completion"]),
        ("models.0.chain", ["smal"], ["support", "smal"]),
        ("models.0.chain", [], ["`models[0].chain`"]),
        ("models.0.chain", ["small", "small"], ["chain of support", "small"]),
        ("allowed_hosts", ["engine"], ["called at models.example, which allowed_hosts does not"]),
        ("models.0.low_confidence", {"min_mean_logprob": 0.5}, ["min_mean_logprob", "less than 0"]),
        ("request_log", {"dir": "r"}, ["`request_log` is gone", "production_log"]),
        ("production_log", {**LOG, "sample_rate": 1.5}, ["`production_log.sample_rate`"]),
        ("production_log", {**LOG, "part_seconds": 0}, ["`production_log.part_seconds`"]),
        ("ledger", {}, ["`ledger`", "path", "url"]),
        ("ledger", {"path": "a.db", "url": "sqlite:///b.db"}, ["`ledger`", "either"]),
        ("ledger.url", "mysql://h/db", ["`ledger.url`", "postgresql://"]),
        ("ledger.url", "postgresql://me:sk-very-secret@h/db", ["`ledger.url`", "PGPASSWORD"]),
    ],
)
def test_a_wrong_field_is_named_with_its_file(tmp_path, path, value, words):
    text = message(tmp_path, set_in(example(), path, value))
    for word in words:
        assert word in text
    assert "very-secret" not in text


def test_low_confidence_needs_somebody_to_fall_back_to(tmp_path):
    config = example()
    config["models"] = [
        {"id": "support", "chain": ["small"], "low_confidence": {"min_mean_logprob": -1}}
    ]
    assert "no upstream to fall back to" in message(tmp_path, config)


def test_what_is_no_configuration(tmp_path):
    assert "`keys_file`: Field required; `ledger`" in message(tmp_path, "")
    assert "expected `key: value` lines, got a list" in message(tmp_path, "- a\n- b\n")
    assert "line 3" in message(tmp_path, "host: x\nport: [1\n")
    with pytest.raises(UserError, match=r"missing\.yaml does not exist"):
        load_config(tmp_path / "missing.yaml")
    with pytest.raises(UserError, match="is a folder"):
        load_config(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="UTF-8"):
        load_config(tmp_path / "binary.yaml")


def sections(model: type[BaseModel]) -> set[type[BaseModel]]:
    """The section and those inside it."""
    found = {model}

    def visit(annotation: object) -> None:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            found.update(sections(annotation))
        for part in get_args(annotation):
            visit(part)

    for field in model.model_fields.values():
        visit(field.annotation)
    return found


def test_every_key_is_described_and_documented():
    found = sections(GatewayConfig)
    assert PriceConfig in found
    text = DOCS.read_text()
    for section in found:
        for name, field in described(section).items():
            assert field.description, f"{section.__name__}.{name} has no description"
            assert f"`{name}`" in text, f"{section.__name__}.{name} is not in docs/gateway.md"


def test_the_documented_example_loads(tmp_path, monkeypatch):
    monkeypatch.setenv("LARGE_MODEL_KEY", "x")
    blocks = DOCS.read_text().split("```yaml\n")[1:]
    config = load(tmp_path, blocks[0].split("```")[0])
    assert config.models[0].chain[0] == config.upstreams[0].name
    logged = next(yaml.safe_load(b.split("```")[0]) for b in blocks if "production_log:" in b)
    log = load(tmp_path, {**example(), "production_log": logged["production_log"]}).production_log
    assert log.spool == tmp_path / "spool"
