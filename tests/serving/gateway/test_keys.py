import hashlib
import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tuneline.errors import UserError
from tuneline.serving.gateway.accounts.keys import KeyRing, add_key, new_key, read_keys

INCLUDE = Path(__file__).parents[3] / "include"


def test_the_file_is_private_and_holds_no_key(tmp_path):
    path = tmp_path / "conf" / "keys.json"
    plain = add_key(path, "alice")
    second = add_key(path, "bob")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = path.read_text()
    assert plain not in text
    assert plain.removeprefix("tl-") not in text
    assert hashlib.sha256(plain.encode()).hexdigest() in text
    assert [record.name for record in read_keys(path)] == ["alice", "bob"]
    assert len({plain, second}) == 2


def test_a_ring_knows_its_keys_only(tmp_path):
    path = tmp_path / "keys.json"
    alice, bob = add_key(path, "alice"), add_key(path, "bob")
    ring = KeyRing(path)
    assert (ring.name_of(alice), ring.name_of(bob)) == ("alice", "bob")
    record = new_key("alice")[1]
    for wrong in ("", "tl-", alice[:-1], alice + "x", alice.upper(), record.sha256):
        assert ring.name_of(wrong) is None


def test_a_broken_file_leaves_the_known_keys_in_force(tmp_path):
    path = tmp_path / "keys.json"
    alice = add_key(path, "alice")
    now = [0.0]
    ring = KeyRing(path, clock=lambda: now[0])
    path.write_text("{")
    now[0] = 1.0
    assert ring.name_of(alice) == "alice"
    path.write_text('{"keys": []}')
    now[0] = 1.9
    assert ring.name_of(alice) == "alice"
    now[0] = 2.0
    assert ring.name_of(alice) is None


def test_names_are_unique_and_plain(tmp_path):
    path = tmp_path / "keys.json"
    add_key(path, "alice")
    with pytest.raises(UserError, match="alice exists"):
        add_key(path, "alice")
    for name in ("", "_gateway", "a b", "a\nb", "x" * 65):
        with pytest.raises(UserError, match="cannot name an API key"):
            new_key(name)


def test_two_at_once_lose_none(tmp_path):
    path = tmp_path / "keys.json"
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path\n"
        "from tuneline.serving.gateway.accounts.keys import add_key\n"
        "for i in range(10): add_key(Path(sys.argv[2]), f'{sys.argv[3]}-{i}')"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(INCLUDE), str(path), name])
        for name in ("a", "b")
    ]
    assert [process.wait(30) for process in running] == [0, 0]
    assert len(read_keys(path)) == 20


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("{", "not JSON"),
        ("[]", "must be"),
        ('{"keys": {}}', "must be"),
        ('{"keys": [{"sha256": "00"}]}', r"keys\[0\]\.name"),
        ('{"keys": [{"name": "a", "sha256": "tl-plain-key"}]}', r"keys\[0\]\.sha256"),
    ],
)
def test_a_wrong_file_is_refused_without_quoting_it(tmp_path, text, word):
    path = tmp_path / "keys.json"
    path.write_text(text)
    with pytest.raises(UserError, match=word) as caught:
        KeyRing(path)
    assert "tl-plain-key" not in str(caught.value)


def test_the_same_name_twice_in_a_file_is_refused(tmp_path):
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"keys": [new_key("a")[1].stated() for _ in range(2)]}))
    with pytest.raises(UserError, match="same name"):
        KeyRing(path)


def test_a_missing_file_says_how_to_make_one(tmp_path):
    with pytest.raises(UserError, match="keys create"):
        KeyRing(tmp_path / "keys.json")


def test_a_key_can_be_left_out_of_the_logs(tmp_path):
    path = tmp_path / "keys.json"
    alice = add_key(path, "alice", logged=False)
    add_key(path, "bob")
    now = [0.0]
    ring = KeyRing(path, clock=lambda: now[0])
    assert (ring.is_logged("alice"), ring.is_logged("bob")) == (False, True)
    document = json.loads(path.read_text())
    # The other key did not cost the first its entry.
    assert [entry.get("log") for entry in document["keys"]] == [False, None]
    del document["keys"][0]["log"]
    path.write_text(json.dumps(document))
    now[0] = 1.0
    assert ring.name_of(alice) == "alice"
    assert ring.is_logged("alice")
    document["keys"][0]["log"] = "no"
    path.write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"keys\[0\]\.log must be true or false"):
        KeyRing(path)
