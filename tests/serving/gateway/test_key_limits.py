import json

import pytest

from tuneline.cli import main
from tuneline.errors import UserError
from tuneline.serving.gateway.accounts.keys import (
    KeyLimits,
    KeyRing,
    add_key,
    parse_limits,
    read_keys,
    revoke_key,
)


def test_the_command_makes_a_key_with_its_limits_and_shows_it_once(tmp_path, capsys):
    path = tmp_path / "keys.json"
    command = ["keys", "create", "alice", "--keys", str(path), "--model", "support", "--no-log"]
    command += ["--tokens-per-day", "1000", "--cost-per-month", "2.5", "--requests-per-minute", "3"]
    assert main(command) == 0
    plain = capsys.readouterr().out.strip()
    assert plain not in path.read_text()
    grant = KeyRing(path).grant_of("alice")
    assert grant is not None
    assert (grant.allows("support"), grant.allows("other"), grant.log) == (True, False, False)
    assert grant.limits == KeyLimits(requests_per_minute=3, tokens_per_day=1000, cost_per_month=2.5)
    assert main(["keys", "list", "--keys", str(path)]) == 0
    listed = capsys.readouterr().out
    assert "models=support" in listed
    assert "tokens_per_day=1000" in listed
    assert "not logged" in listed
    assert main(["keys", "list", "--keys", str(path), "--json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)["keys"]
    assert record["limits"]["cost_per_month"] == 2.5
    assert "sha256" not in record


def test_the_file_of_the_environment_is_taken(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TUNELINE_KEYS", str(tmp_path / "keys.json"))
    assert main(["keys", "create", "alice"]) == 0
    assert [record.name for record in read_keys(tmp_path / "keys.json")] == ["alice"]


def test_a_revoked_key_opens_nothing_and_its_name_stays_taken(tmp_path, capsys):
    path = tmp_path / "keys.json"
    alice, bob = add_key(path, "alice"), add_key(path, "bob")
    assert main(["keys", "revoke", "alice", "--keys", str(path)]) == 0
    ring = KeyRing(path)
    assert (ring.name_of(alice), ring.name_of(bob)) == (None, "bob")
    assert ring.grant_of("alice") is None
    with pytest.raises(UserError, match="alice exists"):
        add_key(path, "alice")
    with pytest.raises(UserError, match="was revoked at"):
        revoke_key(path, "alice")
    with pytest.raises(UserError, match="no key is named carol"):
        revoke_key(path, "carol")
    with pytest.raises(UserError, match="no such keys file"):
        revoke_key(tmp_path / "none.json", "alice")
    capsys.readouterr()
    assert main(["keys", "list", "--keys", str(path)]) == 0
    assert "revoked=" in capsys.readouterr().out.splitlines()[0]


@pytest.mark.parametrize(
    ("stated", "words"),
    [
        ([], "must be an object"),
        ({"tokens_per_week": 5}, "tokens_per_week is unknown"),
        ({"tokens_per_day": 0}, "tokens_per_day must be a whole number above 0"),
        ({"tokens_per_day": 1.5}, "tokens_per_day must be a whole number"),
        ({"requests_per_minute": True}, "requests_per_minute must be a whole number"),
        ({"cost_per_day": float("nan")}, "cost_per_day must be a number"),
        ({"cost_per_day": "5"}, "cost_per_day must be a number"),
    ],
)
def test_wrong_limits_are_refused(tmp_path, stated, words):
    with pytest.raises(UserError, match=words):
        parse_limits(stated, "here")
    path = tmp_path / "keys.json"
    add_key(path, "alice")
    document = json.loads(path.read_text())
    document["keys"][0]["limits"] = stated
    path.write_text(json.dumps(document))
    with pytest.raises(UserError, match=rf"keys\[0\]\.limits.*{words.split()[-1]}"):
        read_keys(path)


@pytest.mark.parametrize("models", [[], "support", [1]])
def test_wrong_models_are_refused(tmp_path, models):
    path = tmp_path / "keys.json"
    add_key(path, "alice")
    document = json.loads(path.read_text())
    document["keys"][0]["models"] = models
    path.write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"keys\[0\]\.models must be a list"):
        read_keys(path)
