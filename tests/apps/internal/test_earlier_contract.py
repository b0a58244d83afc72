"""A daemon of the version before, word for word as it speaks: the API answers it as long as N-1 is promised.

These texts are frozen. When the contract becomes N+1, they go with what they are about, and today's take their place.
"""

import json

import pytest
from django.conf import settings

from tests.apps.conftest import Api
from tests.apps.internal.kit import issue

NODE = "0198c000-0000-7000-8000-000000000001"
SESSION = "0198c000-0000-7000-8000-00000000000a"
NOBODY = "00000000-0000-0000-0000-000000000000"

HEARTBEAT = (
    '{"node":"%s","url":"http://127.0.0.1:1","version":"0.0.9","started_at":"2026-01-01T00:00:00Z","sessions_count":0,'
    '"streams_count":0,"draining":false,"sessions":null}'
)
AUTHENTICATE = '{"node":"%s","credentials":[{"token":"%s","session":"%s","address":"192.0.2.7"}]}'
CONNECTED = (
    '{"node":"%s","events":[{"type":"connected","device_id":"%s","session":"%s","epoch":%d,"at":"2026-01-01T00:00:00Z",'
    '"reason":"","code":null,"address":"192.0.2.7","agent":"","bytes_in":0,"bytes_out":0,"streams":0}]}'
)
LIST = (
    '{"node":"%s","url":"http://127.0.0.1:1","version":"0.0.9","started_at":"2026-01-01T00:00:00Z","sessions_count":1,'
    '"streams_count":0,"draining":false,"sessions":[{"session":"%s","device_id":"%s","user_id":"%s","epoch":%d,'
    '"connected_at":"2026-01-01T00:00:00Z","address":"192.0.2.7","agent":"","features":[],"streams":0,"bytes_in":0,'
    '"bytes_out":0,"rtt_ms":null}]}'
)
AUTHORIZE = (
    '{"node":"%s","kind":"bearer","token":"%s","device":"%s","method":"GET","path":"/x","websocket":false,'
    '"address":"192.0.2.9"}'
)


@pytest.fixture(params=["0", None])
def tell(request):
    """Sends a text under version N-1, or under none at all, as the very first daemons did; the answer's `data`."""

    def send(path, text):
        headers = {"authorization": f"Bearer {settings.VISIONA['INTERNAL_SECRET'][0]}"}
        if request.param is not None:
            headers["x_visiona_contract"] = request.param
        answer = Api()("POST", f"/internal/{path}", text.encode(), **headers)
        assert answer.status == 200, answer.json
        return answer.data

    return send


def test_a_day_of_an_older_daemon(tell, alice, alice_api):
    """It announces itself, admits a box that says nothing of itself, tells of it, and asks who may reach it."""
    assert set(tell("tunnel/heartbeat", HEARTBEAT % NODE)) >= {"close", "send_sessions"}
    (admitted,) = tell("tunnel/authenticate", AUTHENTICATE % (NODE, issue(alice), SESSION))["results"]
    assert set(admitted) >= {"ok", "device_id", "user_id", "epoch", "session_token", "replaced"}
    device, epoch = admitted["device_id"], admitted["epoch"]
    assert tell("tunnel/events", CONNECTED % (NODE, device, SESSION, epoch))
    told = tell("tunnel/heartbeat", LIST % (NODE, SESSION, device, admitted["user_id"], epoch))
    assert told["close"] == []
    said = tell("authorize", AUTHORIZE % (NODE, alice_api.token, device))
    assert said["allowed"] is True
    assert set(said) >= {"device_id", "epoch", "session", "node_url", "user_id", "login", "ttl", "body_max"}
    refused = tell("authorize", AUTHORIZE % (NODE, "vAu_" + "0" * 32, NOBODY))
    assert (refused["allowed"], refused["status"], refused["code"]) == (False, 401, "UNAUTHENTICATED")


def test_a_refusal_has_the_words_it_knows(tell, db):
    (refused,) = tell("tunnel/authenticate", AUTHENTICATE % (NODE, "vAs_" + "0" * 32, SESSION))["results"]
    assert set(refused) >= {"ok", "status", "code", "message"}
    assert json.dumps(refused)
