"""Case 64: random bytes, splits and mutations. Nothing but ProtocolError, no hang, no growth. Seeded: it repeats."""

import random

import pytest

from tests.protocol.lab import SYN, Lab, data, goaway, ping, raw_header, window
from tunnel.protocol.core import Role
from tunnel.protocol.errors import RemoteProtocolError
from tunnel.protocol.limits import SessionConfig
from tunnel.protocol.session import Session
from tunnel.protocol.stream import State

SMALL = SessionConfig(max_inbound_streams=20, late_ids=30, soft_buffered=600_000, hard_buffered=1_000_000)


def conversation(rng: random.Random, role: Role) -> bytes:
    """Frames as a peer might send them, most of them sensible."""
    first = 1 if role is Role.SERVER else 2
    ids = [first + 2 * n for n in range(6)]
    wire = bytearray()
    for _ in range(rng.randint(1, 60)):
        stream_id = rng.choice(ids) if rng.random() < 0.95 else rng.getrandbits(32)
        flags = rng.choice([0, 0, 0, SYN, SYN, 2, 4, 8, rng.getrandbits(4)])
        wire += rng.choice(
            [
                lambda i=stream_id, f=flags: data(i, rng.randbytes(rng.choice([0, 1, 50, 9000])), f),
                lambda i=stream_id, f=flags: window(i, f, rng.choice([0, 1, 5000, rng.getrandbits(31)])),
                lambda: ping(rng.getrandbits(32), rng.choice([1, 2])),
                lambda: goaway(0) if rng.random() < 0.1 else b"",
                lambda i=stream_id: raw_header(0, rng.randint(0, 3), rng.getrandbits(16), i, rng.getrandbits(18)),
            ]
        )()
    return bytes(wire)


def mutate(rng: random.Random, wire: bytes) -> bytes:
    """A few bytes flipped, cut out, or put in twice."""
    mutated = bytearray(wire)
    for _ in range(rng.randint(0, 4)):
        if mutated:
            at = rng.randrange(len(mutated))
            match rng.randint(0, 2):
                case 0:
                    mutated[at] ^= 1 << rng.randint(0, 7)
                case 1:
                    del mutated[at : at + rng.randint(1, 20)]
                case _:
                    mutated[at:at] = mutated[at : at + rng.randint(1, 40)]
    return bytes(mutated)


def use(rng: random.Random, session: Session, now: float) -> None:
    """What an application does meanwhile."""
    if session.ending is not None:
        return
    stream = session.accept()
    if stream is None and not session.peer_going_away and session.streams_open < 30:
        stream = session.open(now)
    if stream is None:
        return
    match rng.randint(0, 5):
        case 0:
            session.reset(stream)
        case 1:
            session.half_close(stream)
        case 2:
            session.close(stream)
        case 3 if stream.writable:
            session.send(stream, bytes(rng.randint(0, 100_000)))
        case _:
            session.read(stream, rng.choice([None, 10]))


def abuse(rng: random.Random, wire: bytes, role: Role) -> None:
    session = Session(role, SMALL)
    now, pos = 0.0, 0
    while pos < len(wire):
        size = rng.choice([1, 2, 12, 13, 100, 5000, 65536])
        now += rng.random() * 0.01
        try:
            session.receive_data(wire[pos : pos + size], now)
        except RemoteProtocolError:
            assert session.ending is not None
        pos += size
        use(rng, session, now)
        if rng.random() < 0.1:
            now += rng.random() * 5
            session.tick(now)
        assert session.streams_open <= 60
        assert session.buffered <= SMALL.hard_buffered
        if rng.random() < 0.5:
            assert len(session.data_to_send(65536, now)) <= 65536
        for stream in session.take_touched():
            stream.touched = False
    session.receive_eof()
    assert session.ending is not None
    for _ in range(10):
        if not session.data_to_send(65536, now):
            break
    assert not session.wants_to_send
    assert session.streams_open == session.streams_unacked == session.incoming == 0


@pytest.mark.parametrize("seed", range(12))
def test_case_64_fuzz(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(60):
        role = rng.choice([Role.CLIENT, Role.SERVER])
        wire = rng.randbytes(rng.randint(0, 300)) if rng.random() < 0.2 else conversation(rng, role)
        abuse(rng, mutate(rng, wire) if rng.random() < 0.7 else wire, role)


def test_a_sensible_conversation_is_not_taken_for_an_attack() -> None:
    lab = Lab()
    for n in range(100):
        stream_id = 2 * n + 1
        lab.feed(data(stream_id, b"ask", SYN))
        stream = lab.session.accept()
        assert stream is not None
        lab.session.read(stream)
        lab.session.send(stream, b"answer")
        lab.session.half_close(stream)
        lab.feed(window(stream_id, 4))
        lab.sent()
        assert stream.state is State.GONE
        lab.tick(0.01)
    assert lab.session.ending is None
    assert lab.session.counters.glitches == 0
