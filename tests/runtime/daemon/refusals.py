"""How an agent is turned away."""

from typing import Any

import pytest

from tests.runtime.daemon.daemonworld import TOKEN, World, parse
from tunnel.websocket.handshake import HandshakeRefused


async def refused(w: World, token: str = TOKEN, **more: Any) -> HandshakeRefused:
    with pytest.raises(HandshakeRefused) as caught:
        await w.agent(token, **more)
    return caught.value


def code_of(refusal: HandshakeRefused) -> str:
    return str(parse(b"HTTP/1.1 1 x\r\n\r\n" + refusal.body)[2]["error"]["code"])
