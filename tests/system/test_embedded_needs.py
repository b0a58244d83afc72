"""Which servers are embedded, and where they are then said to be."""

import pytest

from cloud.embedded.servers import Needs, addresses, needs
from cloud.embedded.state import ServerState, State

BOTH = Needs(postgres=True, valkey=True)
NONE = Needs(postgres=False, valkey=False)


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({}, BOTH),
        ({"VISIONA_DB_HOST": "", "VISIONA_REDIS_URL": " "}, BOTH),  # empty counts as unset
        ({"VISIONA_DB_PORT": "5433", "VISIONA_DB_PASSWORD": "x"}, BOTH),  # no server is named by these
        ({"VISIONA_REDIS_URL": "redis://r/0"}, Needs(postgres=True, valkey=False)),
        ({"VISIONA_DB_HOST": "h", "VISIONA_DB_USER": "u", "VISIONA_DB_NAME": "n"}, Needs(postgres=False, valkey=True)),
        # In part: nothing is embedded, so that the settings can name what is missing.
        ({"VISIONA_DB_HOST": "h"}, Needs(postgres=False, valkey=True)),
        ({"VISIONA_ENV": "production"}, NONE),
        ({"VISIONA_ENV": " Production "}, NONE),
        ({"VISIONA_ENV": "development"}, BOTH),
    ],
)
def test_what_is_embedded(environ: dict[str, str], wanted: Needs) -> None:
    assert needs(environ) == wanted


def test_addresses_are_the_settings_of_real_servers() -> None:
    state = State(postgres=ServerState(port=5433, password="pw"), valkey=ServerState(port=6380, password="rw"))
    assert addresses(state, BOTH) == {
        "VISIONA_DB_HOST": "127.0.0.1",
        "VISIONA_DB_PORT": "5433",
        "VISIONA_DB_USER": "visiona",
        "VISIONA_DB_PASSWORD": "pw",
        "VISIONA_DB_NAME": "visiona",
        "VISIONA_DB_SSLMODE": "disable",
        "VISIONA_REDIS_URL": "redis://:rw@127.0.0.1:6380/0",
    }
    assert addresses(state, NONE) == {}
