"""The bytes of one exchange between a client and a daemon, over real sockets; the daemon's side is written by hand."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from apps.tunnels.carriage import Copy
from tests.apps.proxy.kit import reset
from tests.apps.tunnels.carriage_kit import ANSWER, HEAD, World, drive
from tunnel.contract import ABORT, ACCEPTED, BEGIN, DATA, EOF, record, split_begin
from tunnel.http.body import ChunkedReader, LengthReader


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.close()


def test_an_answer_goes_to_the_client_and_the_connection_is_kept(world: World) -> None:
    carriage = world.carriage(LengthReader(0))
    kind, payload = world.told()
    assert (kind, split_begin(payload)) == (BEGIN, (b"{}", HEAD))
    world.daemon.sendall(record(ACCEPTED) + record(DATA, ANSWER))
    world.end()
    drive(carriage)
    assert world.client.recv(1000) == ANSWER
    assert carriage.end is not None
    assert (carriage.end["status"], carriage.accepted, carriage.request_read) == (200, True, True)
    assert carriage.take_node() is world.node


def test_a_body_is_passed_on_to_its_end_and_what_is_behind_it_is_kept(world: World) -> None:
    carriage = world.carriage(LengthReader(5), early=b"ab")
    world.told()
    world.client.sendall(b"cdeGET /next")
    drive(carriage)
    assert world.data(5) == b"abcde"
    assert (carriage.request_read, carriage.rest) == (True, b"GET /next")


def test_a_chunked_body_goes_as_it_is(world: World) -> None:
    carriage = world.carriage(ChunkedReader(1024, 4096))
    world.told()
    world.client.sendall(b"3\r\nabc\r\n0\r\n\r\nGET")
    drive(carriage)
    assert world.data(13) == b"3\r\nabc\r\n0\r\n\r\n"
    assert (carriage.request_read, carriage.rest) == (True, b"GET")


def test_the_end_of_the_client_is_told_once_and_turns_nothing(world: World) -> None:
    carriage = world.carriage(LengthReader(0))
    world.told()
    world.client.shutdown(socket.SHUT_WR)
    drive(carriage)
    assert world.told() == (EOF, b"")
    world.daemon.sendall(record(DATA, ANSWER))
    world.end()
    drive(carriage)
    assert world.client.recv(1000) == ANSWER
    assert carriage.over
    assert not carriage.left


def test_a_client_that_is_gone_has_left_and_the_daemon_is_told(world: World) -> None:
    carriage = world.carriage(LengthReader(0))
    world.told()
    reset(world.client)
    drive(carriage)
    assert carriage.left
    carriage.abort()
    kinds = [world.told()[0]]
    assert kinds[0] in (ABORT, EOF)


def test_without_an_end_it_is_lost_whatever_came(world: World) -> None:
    carriage = world.carriage(LengthReader(0))
    world.told()
    world.daemon.sendall(record(DATA, ANSWER))
    world.daemon.close()
    drive(carriage)
    assert (carriage.lost, carriage.answered, carriage.may_begin_again) == (True, True, False)


def test_a_body_that_is_held_goes_to_the_next_daemon_too(world: World) -> None:
    carriage = world.carriage(LengthReader(4), early=b"body")
    world.daemon.close()
    drive(carriage)
    assert (carriage.lost, carriage.answered, carriage.may_begin_again) == (True, False, True)
    again = World()
    carriage.begin(again.node, b"{}", HEAD)
    assert again.told()[0] == BEGIN
    assert again.data(4) == b"body"
    again.close()


def test_one_hundred_continue_is_no_answer(world: World) -> None:
    carriage = world.carriage(LengthReader(4))
    world.told()
    world.daemon.sendall(record(DATA, b"HTTP/1.1 100 Continue\r\n\r\n"))
    drive(carriage)
    assert (world.client.recv(1000), carriage.answered) == (b"HTTP/1.1 100 Continue\r\n\r\n", False)


def test_a_slow_client_holds_the_daemon_up(world: World) -> None:
    carriage = world.carriage(LengthReader(0))
    world.told()
    world.daemon.settimeout(0.2)
    piece = record(DATA, bytes(64 * 1024))
    for sent in range(200):  # noqa: B007 - its last value is asked for
        try:
            world.daemon.sendall(piece)
        except TimeoutError:
            break
        drive(carriage)
    assert sent < 50
    assert carriage.interests()[1] == 0


def test_an_upgraded_connection_half_closes_both_ways(world: World) -> None:
    carriage = world.carriage(None)
    world.told()
    world.daemon.sendall(record(DATA, b"HTTP/1.1 101 Switching Protocols\r\n\r\n") + record(EOF))
    drive(carriage)
    assert world.client.recv(1000).startswith(b"HTTP/1.1 101")
    assert world.client.recv(1000) == b""
    world.client.sendall(b"still")
    world.client.shutdown(socket.SHUT_WR)
    drive(carriage)
    assert world.data(5) == b"still"
    assert world.told() == (EOF, b"")


def test_a_copy_is_read_before_the_client_has_the_last_of_it(world: World) -> None:
    copy = Copy()
    carriage = world.carriage(LengthReader(0), copy=copy)
    world.told()
    world.daemon.sendall(record(DATA, ANSWER))
    world.end()
    drive(carriage)
    assert (bytes(copy.bytes), copy.whole) == (ANSWER, True)
    world.client.settimeout(0.1)
    with pytest.raises(TimeoutError):
        world.client.recv(1000)
    carriage.release()
    assert world.client.recv(1000) == ANSWER


@pytest.mark.parametrize("kind", [b"multipart/x-mixed-replace; boundary=f", b"text/event-stream"])
def test_what_has_no_end_is_known_by_its_type(world: World, kind: bytes) -> None:
    carriage = world.carriage(LengthReader(0))
    world.told()
    world.daemon.sendall(record(DATA, b"HTTP/1.1 200 OK\r\nContent-Type: " + kind + b"\r\n\r\n"))
    drive(carriage)
    assert carriage.endless


def test_bytes_that_are_no_record_end_it(world: World) -> None:
    carriage = world.carriage(LengthReader(0))
    world.daemon.sendall(b"HTTP/1.1 500 what\r\n\r\n")
    drive(carriage)
    assert carriage.lost
