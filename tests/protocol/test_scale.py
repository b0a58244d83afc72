"""The items of yamux.md §14 whose outcome does not depend on the machine, small: fairness, churn, idle streams."""

import itertools
import sys

from tests.protocol.lab import FIN, Lab, window
from tunnel.protocol.limits import FILLING, SessionConfig

FRAME = 16384


def test_sixty_four_bulk_streams_share_the_wire() -> None:
    """Item 5: Jain's index of what each has sent is at least 0.95, at every moment once each has had two turns."""
    lab = Lab()
    streams = [lab.open_inbound(2 * n + 1) for n in range(64)]
    for stream in streams:
        lab.session.send(stream, bytes(FILLING))
    sent = dict.fromkeys((2 * n + 1 for n in range(64)), 0)
    for frame in lab.sent():
        sent[frame.stream_id] += frame.length
        shares = sent.values()
        assert max(shares) - min(shares) <= FRAME
        if min(shares) >= 2 * FRAME:
            assert sum(shares) ** 2 / (len(sent) * sum(each * each for each in shares)) >= 0.95
    assert set(sent.values()) == {FILLING}


def test_streams_that_come_and_go_leave_nothing() -> None:
    """Item 9: what a session holds after 20 000 streams is what it held after 2 000; ends and resets in turn."""
    lab = Lab()

    def churn(count: int) -> int:
        for _ in range(count):
            number = next(ids)
            stream = lab.open_inbound(number)
            if number % 4 == 1:
                lab.feed(window(number, FIN))
                lab.session.half_close(stream)
            else:
                lab.session.reset(stream)
            lab.sent()
            lab.tick(0.05)
        assert lab.session.streams_open == lab.session.incoming == lab.session.buffered == 0
        return held(lab.session)

    ids = itertools.count(1, 2)
    first = churn(2_000)
    assert churn(18_000) <= first * 1.1
    assert lab.error is None


def test_ten_thousand_idle_streams_cost_little_each() -> None:
    """Item 8: no buffer is kept for a stream that says nothing."""
    lab = Lab(config=SessionConfig(max_inbound_streams=10_000))
    before = held(lab.session)
    for number in range(10_000):
        lab.open_inbound(2 * number + 1)
        lab.tick(0.02)
    assert lab.session.streams_open == 10_000
    assert held(lab.session) - before < 10_000 * 2048
    assert lab.session.ending is None


def held(root: object) -> int:
    """Bytes of everything that an object of ours reaches, each once."""
    seen: set[int] = set()
    todo: list[object] = [root]
    total = 0
    while todo:
        one = todo.pop()
        if id(one) in seen or isinstance(one, type) or callable(one):
            continue
        seen.add(id(one))
        total += sys.getsizeof(one)
        if isinstance(one, dict):
            todo += [*one.keys(), *one.values()]
        elif hasattr(one, "__iter__") and not isinstance(one, str | bytes | bytearray | memoryview):
            todo += list(one)
        names = [name for kind in type(one).__mro__ for name in getattr(kind, "__slots__", ())]
        todo += [getattr(one, name) for name in names if hasattr(one, name)]
        todo += list(getattr(one, "__dict__", {}).values())
    return total
