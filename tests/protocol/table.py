"""The table of yamux.md §13: number, name and body of each case; `test_cases` runs it."""

from collections.abc import Callable

Body = Callable[[str], None]
CASES: dict[int, tuple[str, Body]] = {}
# Cases that need Trio or Go.
ELSEWHERE = {
    11: "tests/runtime/websocket/test_transports.py (empty message)",
    12: "tests/runtime/websocket/test_transports.py (text)",
    60: "tests/runtime/mux/test_connection.py",
    61: "tests/runtime/mux/test_connection.py",
    63: "tests/interop",
    64: "tests/protocol/test_fuzz.py",
}


def case(number: int, name: str) -> Callable[[Body], Body]:
    """Enter a case; its body gets the way of delivery (`lab.DELIVERIES`)."""

    def register(body: Body) -> Body:
        assert number not in CASES
        CASES[number] = (name, body)
        return body

    return register
