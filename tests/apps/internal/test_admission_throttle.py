"""An agent that comes again and again with a token that is refused, and those beside it that do not."""

import pytest

from apps.common import redis
from apps.devices import admission
from tests.apps.internal.kit import credential, issue, named
from tunnel.contract import new_token


@pytest.fixture(autouse=True)
def _two_a_minute(settings):
    settings.VISIONA = {**settings.VISIONA, "THROTTLE_AGENT": 2}


def test_the_same_refused_token_is_told_to_wait(daemon, alice, monkeypatch):
    token = new_token("vAs_")
    assert [daemon.ask(token)["status"] for _ in range(2)] == [401, 401]
    monkeypatch.setattr(admission, "authenticate", None)  # nothing is looked up for it
    refused = daemon.ask(token)
    assert (refused["status"], refused["code"]) == (429, "RATE_LIMITED")
    assert 1 <= refused["retry_after"] <= 60


def test_others_in_the_same_call_are_heard_in_their_order(daemon, alice):
    bad, worse, good = new_token("vAs_"), new_token("vAs_"), issue(alice)
    for _ in range(2):
        daemon.ask(bad)
    told = daemon.ask_all(credential(worse), credential(bad), named(good))
    assert [answer.get("status") for answer in told] == [401, 429, None]
    assert told[2]["ok"]


def test_elsewhere_it_is_another_counter(daemon, alice):
    token = new_token("vAs_")
    for _ in range(3):
        daemon.ask(token)
    assert daemon.ask(token, address="198.51.100.9")["status"] == 401


def test_what_is_admitted_is_not_counted(daemon, alice):
    token = daemon.ask_all(named(issue(alice)))[0]["session_token"]
    for _ in range(4):
        assert daemon.ask(token)["ok"]
    assert not redis.client().keys("visiona:throttle:agent:*")
