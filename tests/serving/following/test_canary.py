"""A new release on a share of the keys: promoted if it is as good, withdrawn if it is not."""

import json
from contextlib import ExitStack, contextmanager, suppress

import httpx
import pytest
from tests.lab import fake_engine
from tests.lab.steady_load import SteadyLoad
from tests.lab.waiting import wait_for
from tests.serving.following.test_follow import Site, ready_body, running

from tuneline.artifacts.releases import read_release
from tuneline.governance.release.verify import verify
from tuneline.serving.gateway.accounts.keys import add_key
from tuneline.serving.gateway.chain.canary import is_drawn

USERS, SHARE = 24, 0.4


@pytest.fixture
def bare(tmp_path):
    yield from running(Site(tmp_path))


@pytest.fixture
def site(bare):
    path = bare.folder / "keys.json"
    bare.keys = {f"user-{n}": add_key(path, f"user-{n}") for n in range(USERS)}
    bare.release("1")
    bare.serve()
    bare.follow("--canary", str(SHARE), "--canary-look", "1")
    bare.wait_served("1")
    return bare


def events(site, version):
    raw = site.store.get_bytes(f"models/a/{version}/release.jsonl").decode()
    return [json.loads(line) for line in raw.splitlines()]


def wait_tried(site, version):
    """Wait until the gateway listens and has the candidate."""

    def tried():
        with suppress(httpx.TransportError):
            return f"a-{version}" in ready_body(site)["canary"]

    wait_for(tried, "the canary")


@contextmanager
def asking(site, per_second):
    """All users ask so often; what each was answered, by name."""
    url = f"http://127.0.0.1:{site.port}"
    with ExitStack() as stack:
        loads = {name: SteadyLoad(url, key, "a", per_second) for name, key in site.keys.items()}
        for load in loads.values():
            stack.enter_context(load)
        yield {name: load.answers for name, load in loads.items()}


def statuses(users):
    return {one.status for answers in users.values() for one in answers}


@pytest.mark.long
def test_an_equal_release_is_promoted(site):
    # Just above one of the bounds that seconds are counted by, and 0.17 s below the next: what else
    # the machine does makes few answers slow.
    fake_engine.behave(site.engines, **{"1": 0.7, "2": 0.7})
    site.release("2")
    wait_for(lambda: "a@2 is tried on 40% of the keys" in site.log())
    wait_tried(site, "2")
    with asking(site, 1.4) as users:
        wait_for(lambda: "a@2 is promoted" in site.log(), "a promotion")
    assert statuses(users) == {200}
    # A key is answered by one version as long as it is tried; the drawn ones by the new one.
    for name, answers in users.items():
        assert answers[0].attempts == ("a-2" if is_drawn("a-2", SHARE, name) else "a-1")
    site.wait_served("2")
    wait_for(lambda: site.status().complete)
    assert read_release(site.store, "a").version == "2"
    kinds = [(event["event"], event.get("outcome")) for event in events(site, "2")]
    assert kinds == [("released", None), ("canary", "started"), ("canary", "promoted")]
    assert verify(site.store.uri_of("models/a/2/manifest.json")) == []


@pytest.mark.parametrize(
    ("behaviour", "why"),
    [("error", "fallbacks"), pytest.param(0.4, "slow answers", marks=pytest.mark.long)],
)
def test_a_worse_release_is_withdrawn_and_nobody_gets_an_error(site, behaviour, why):
    fake_engine.behave(site.engines, **{"1": 0.01, "2": 0.01})
    site.release("2")
    wait_tried(site, "2")
    with asking(site, 4) as users:
        fake_engine.behave(site.engines, **{"1": 0.01, "2": behaviour})
        wait_for(lambda: "a@2 is withdrawn" in site.log(), "a withdrawal")
        wait_for(lambda: read_release(site.store, "a").version == "1")
        wait_for(lambda: site.status().complete)
    assert statuses(users) == {200}
    wait_for(lambda: events(site, "2")[-1]["event"] == "withdrawn")
    last = events(site, "1")[-1]
    assert (last["event"], last["by"]) == ("rolled_back", "canary")
    assert f"more {why} than the release" in last["reason"]
    assert events(site, "2")[-2]["outcome"] == "withdrawn"
    for version in "12":
        assert verify(site.store.uri_of(f"models/a/{version}/manifest.json")) == []
    # The next release is tried again.
    site.release("3")
    wait_tried(site, "3")


def state(site):
    return json.loads((site.folder / "state" / "canaries.json").read_text())["a"]


@pytest.mark.long
def test_a_new_follower_goes_on_where_the_one_before_was(site):
    """Killed in the middle: the share of the keys stays, and so does all that was seen."""
    # Slow, so that nothing is decided while the follower starts again.
    fake_engine.behave(site.engines, **{"1": 1.0, "2": 1.0})
    site.release("2")
    wait_tried(site, "2")
    with asking(site, 1) as users:
        wait_for(lambda: state(site)["known"]["candidate"]["requests"] > 20)
        follower = site.processes.pop("follower")
        follower.kill()
        follower.wait()
        before = state(site)
        site.follow("--canary", str(SHARE), "--canary-look", "1")
        wait_for(lambda: "is tried on 40% of the keys again" in site.log())
        wait_for(lambda: state(site)["known"]["candidate"]["requests"] > 40)
    after = state(site)
    assert (after["began"], after["counting"]) == (before["began"], before["counting"])
    assert statuses(users) == {200}
    for name, answers in users.items():
        drawn = "a-2" if is_drawn("a-2", SHARE, name) else "a-1"
        assert {one.attempts for one in answers} == {drawn}
    assert [e.get("outcome") for e in events(site, "2")] == [None, "started"]


def test_a_release_that_names_its_share_is_tried_without_flags(bare):
    """Also if follower and engines start from nothing, with the version before to compare with."""
    bare.release("1")
    bare.release("2", settings={"governance": {"canary": {"share": 0.25, "hours": 2}}})
    bare.serve()
    bare.follow()
    wait_for(lambda: "a@2 is tried on 25% of the keys" in bare.log())
    wait_tried(bare, "2")
    wait_for(lambda: bare.row().served == "1")
    assert bare.row().released == "2"
    # One that names none is switched to at once.
    bare.release("3")
    wait_for(lambda: bare.row().served == "3")
