"""Bulk goes out in whole messages: a small one costs as much as a large one, here and at the peer."""

from __future__ import annotations

import pytest

from tunnel.protocol.core import Role
from tunnel.protocol.limits import SessionConfig
from tunnel.protocol.session import Session

ACCEPTED = bytes.fromhex("000100020000000100000000")


@pytest.mark.parametrize("config", [SessionConfig(), SessionConfig.for_agent()], ids=["daemon", "agent"])
def test_a_full_buffer_leaves_no_small_rest(config: SessionConfig) -> None:
    session = Session(Role.CLIENT, config, now=0.0, accept_streams=False)
    stream = session.open(0.0)
    session.data_to_send(config.max_batch, 0.0)
    session.receive_data(ACCEPTED, 0.0)
    filled = session.send(stream, bytes(1 << 20))
    assert filled == config.send_buffer
    sizes = []
    while data := session.data_to_send(config.max_batch, 0.0):
        sizes.append(len(data))
    assert sum(sizes) >= filled
    assert all(32 * 1024 < size <= 64 * 1024 for size in sizes), sizes
