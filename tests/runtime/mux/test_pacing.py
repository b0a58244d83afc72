"""What a tunnel's writer hands to the kernel of a line: a fast one is not held back, a slow one queues little."""

from __future__ import annotations

import socket
from dataclasses import dataclass

import pytest

from tunnel.mux.liveness import Liveness
from tunnel.mux.pacing import WEIGHED, Pacer
from tunnel.net.sockets import Socket

KIB = 1024
MOST = 64 * KIB


@dataclass
class Line:
    """A kernel's buffer in front of a line that carries `rate` bytes a second, `burst` of them at once after a rest."""

    rate: float
    burst: float = 4 * KIB
    now: float = 100.0
    held: float = 0.0
    saved: float = 0.0

    def passes(self, seconds: float) -> None:
        self.now += seconds
        self.saved = min(self.burst, self.saved + self.rate * seconds) if not self.held else self.saved
        self.held = max(0.0, self.held - self.rate * seconds)

    def take(self, size: int) -> None:
        at_once = min(self.saved, size)
        self.saved -= at_once
        self.held += size - at_once

    def write(self, pace: Pacer, seconds: float, least: float = 0.0001) -> list[float]:
        """Write as much as the pace allows for so long; the queue, in seconds of the line, after each batch."""
        end, queues = self.now + seconds, []
        while self.now < end:
            while pace.slow and (pause := pace.pause(self.now, int(self.held), 0.0)):
                self.passes(pause)
            batch = pace.batch
            self.take(batch)
            pace.wrote(batch)
            queues.append(self.held / self.rate)
            while self.held > 192 * KIB:  # the kernel takes no more
                self.passes(0.01)
            if batch >= WEIGHED and self.now >= pace.due:
                pace.look(self.now, int(self.held))
            self.passes(least)
        return queues


@pytest.mark.parametrize("kilobits", [64, 128, 512, 2048])
def test_a_slow_line_queues_a_fraction_of_a_second(kilobits: int) -> None:
    line, pace = Line(kilobits * 125.0), Pacer(MOST)
    line.write(pace, 20.0)
    assert max(line.write(pace, 20.0)) < 0.5 + 8 * KIB / line.rate + 0.15
    assert pace.rate == pytest.approx(line.rate, rel=0.3)


def test_the_first_bytes_of_a_line_of_which_nothing_is_known_are_few() -> None:
    line = Line(16_000.0)
    assert max(line.write(Pacer(MOST), 5.0)) < 2.5, "seconds"


def test_a_fast_line_is_written_in_whole_messages_after_the_first() -> None:
    line, pace = Line(50e6), Pacer(MOST)
    line.write(pace, 0.5)
    assert (pace.slow, pace.batch) == (False, MOST)


def test_a_line_that_becomes_slow_is_noticed_and_one_that_becomes_fast_too() -> None:
    line, pace = Line(50e6), Pacer(MOST)
    line.write(pace, 1.0)
    line.rate = 16_000.0
    line.write(pace, 40.0)  # what the kernel had taken before is twelve seconds of it
    assert max(line.write(pace, 10.0)) < 1.2
    line.rate = 50e6
    line.write(pace, 2.0)
    assert not pace.slow


def test_a_rest_says_nothing_of_the_line() -> None:
    line, pace = Line(2e6), Pacer(MOST)
    line.write(pace, 2.0)
    rate = pace.rate
    for _ in range(50):
        pace.rest()
        line.passes(1.0)
        line.take(9000)
        pace.wrote(9000)
        pace.look(line.now, 0)
    assert pace.rate >= rate


def test_where_nobody_can_tell_nothing_is_held_back() -> None:
    pace = Pacer(MOST)
    pace.wrote(MOST)
    pace.look(1.0, None)
    assert (pace.slow, pace.batch, pace.pause(2.0, None, 0.0)) == (False, MOST, 0.0)


# --- life -------------------------------------------------------------------------------------------------------------
@dataclass
class Moved:
    bytes_in: int = 0
    sock: Socket | None = None

    def kernel_socket(self) -> Socket | None:
        return self.sock


def test_bytes_of_a_frame_that_is_not_whole_yet_are_life() -> None:
    moved, life = Moved(), Liveness()
    assert not life.seen(moved)
    moved.bytes_in += 1
    assert life.seen(moved)
    assert not life.seen(moved)


def test_a_ping_that_a_standing_peers_kernel_takes_is_no_life_and_a_backlog_that_shrinks_is() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as sock,
    ):
        peer, _ = listener.accept()
        with peer:
            sock.setblocking(False)
            moved, life = Moved(sock=sock), Liveness()
            for _ in range(3):
                sock.send(b"ping")
                assert not life.seen(moved), "it was taken at once"
            sent = 0
            try:
                while True:
                    sent += sock.send(bytes(65536))
            except BlockingIOError:
                pass
            assert [life.seen(moved) for _ in range(4)][1:] == [False] * 3, "its buffers are full and nobody reads"
            peer.settimeout(5)
            left = sent
            while left > 0:
                left -= len(peer.recv(1 << 20))
                if life.seen(moved):
                    break
            assert left > 0, "what was taken of the backlog was not seen"
