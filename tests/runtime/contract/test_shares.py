"""Places with owners: whatever is asked in whatever order, nobody takes what others need, and nothing is lost."""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.contract import Crowded, Shares, class_of, client_network, stranger

OWNERS = ["a", "b", "c", stranger("192.0.2.1"), stranger("192.0.2.2"), stranger("192.0.2.3")]
STEPS = st.lists(st.tuples(st.sampled_from(["take", "take", "wait", "give back", "leave"]), st.sampled_from(OWNERS)))


class Book:
    """Who holds and who waits, kept beside the pool by the plainest means."""

    def __init__(self, shares: Shares[object], queue: int) -> None:
        self.shares = shares
        self.queue = queue
        self.held: Counter[str] = Counter()
        self.waiting: list[tuple[str, object]] = []

    def step(self, what: str, owner: str) -> None:
        mine = [waiter for who, waiter in self.waiting if who == owner]
        if what == "take":
            self.held[owner] += self.shares.take(owner)
        elif what == "wait" and not self.shares.may_take(owner):
            self.wait(owner)
        elif what == "give back" and self.held[owner]:
            self.held[owner] -= 1
            self.called(self.shares.give_back(owner))
        elif what == "leave" and mine:
            self.shares.leave_queue(owner, mine[0])
            self.waiting.remove((owner, mine[0]))
        self.check()

    def wait(self, owner: str) -> None:
        waiter = object()
        parts = Counter(who for who, _ in self.waiting)
        try:
            pushed_out = self.shares.wait(owner, waiter)
        except Crowded:
            assert len(self.waiting) == self.queue
            assert parts[owner] == max(parts.values(), default=0)
            return
        if pushed_out is not None:
            (loser,) = (who for who, each in self.waiting if each is pushed_out)
            assert parts[loser] == max(parts.values()) > parts[owner]
            self.waiting.remove((loser, pushed_out))
        self.waiting.append((owner, waiter))

    def called(self, waiters: list[object]) -> None:
        for waiter in waiters:
            (owner,) = (who for who, each in self.waiting if each is waiter)
            of_class = [who for who, _ in self.waiting if class_of(who) == class_of(owner)]
            assert self.held[owner] == min(self.held[who] for who in of_class)
            assert waiter is next(each for who, each in self.waiting if who == owner)
            self.waiting.remove((owner, waiter))
            self.held[owner] += 1

    def check(self) -> None:
        shares = self.shares
        assert {owner: shares.held(owner) for owner in OWNERS} == {owner: self.held[owner] for owner in OWNERS}
        assert shares.taken == self.held.total() <= shares.limit
        assert sum(shares.classes().values()) == shares.taken
        assert shares.waiting == len(self.waiting) <= self.queue
        assert not any(shares.may_take(owner) for owner, _ in self.waiting), "a place lies idle while one waits for it"


@given(STEPS, st.integers(1, 12), st.integers(0, 6), st.booleans())
def test_nothing_is_lost_and_who_holds_least_is_next(
    steps: list[tuple[str, str]], limit: int, queue: int, long: bool
) -> None:
    shares: Shares[object] = Shares(limit, queue=queue, long=long)
    book = Book(shares, queue)
    for what, owner in steps:
        book.step(what, owner)
    while shares.taken:
        for owner in OWNERS:
            book.step("give back", owner)
    assert (shares.taken, shares.waiting) == (0, 0)
    assert repr(shares) == repr(Shares(limit)), "nothing stays of who has left"


@given(st.integers(2, 200), st.sampled_from(OWNERS))
def test_who_takes_all_that_can_be_had_leaves_places_for_those_who_hold_none(limit: int, greedy: str) -> None:
    shares: Shares[object] = Shares(limit)
    while shares.take(greedy):
        pass
    assert limit // 2 <= shares.held(greedy) <= limit * 3 // 4 or limit == 3
    assert shares.take("another")
    assert shares.largest() == shares.held(greedy)


@given(st.integers(4, 200))
def test_all_strangers_together_are_one(limit: int) -> None:
    shares: Shares[object] = Shares(limit)
    while shares.take(stranger(f"192.0.2.{shares.taken}")):
        pass
    assert shares.classes()["stranger"] <= limit * 3 // 4
    assert shares.take("a user")


def test_what_is_held_for_a_moment_may_be_all_of_one() -> None:
    shares: Shares[str] = Shares(3, queue=9, long=False)
    assert [shares.take("a") for _ in range(4)] == [True, True, True, False]
    for waiter in ("a4", "a5", "b1"):
        shares.wait(waiter[0], waiter)
    assert shares.give_back("a") == ["b1"], "whoever holds least is next, however late it came"


def test_who_does_not_wait_cannot_leave_the_queue() -> None:
    with pytest.raises(KeyError):
        Shares[str](1).leave_queue("a", "a1")


@pytest.mark.parametrize(
    ("address", "counts_as"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("2001:db8:1:2::9", "2001:db8:1:2::"),
        ("::ffff:c000:207%eth0", "192.0.2.7"),
        ("2001:db8:1:3::9", "2001:db8:1:3::"),
        ("fe80::1%eth0", "fe80::"),
        ("", "unknown"),
        ("nonsense", "unknown"),
    ],
)
def test_who_is_one_client_by_its_address(address: str, counts_as: str) -> None:
    assert client_network(address) == counts_as
    assert stranger(address) == stranger(counts_as)


@given(st.ip_addresses(v=6), st.integers(0, 2**64 - 1))
def test_a_holder_of_a_64_is_one_client(address: IPv6Address, rest: int) -> None:
    """Whatever it writes into the half of the address that is its own; one more above it is another's."""
    neighbour = IPv6Address((int(address) ^ 1 << 64) & ~(2**64 - 1) | rest)
    if address.ipv4_mapped is None and IPv6Address(int(address) >> 64 << 64 | rest).ipv4_mapped is None:
        assert client_network(str(IPv6Address(int(address) >> 64 << 64 | rest))) == client_network(str(address))
        assert client_network(str(neighbour)) != client_network(str(address))
