"""Scripts in Redis, whether the server knows them or not."""

import uuid

import pytest
import redis.exceptions

from apps.common.redis import client, scripts


def test_a_script_is_run_known_or_not():
    source = f"return {{KEYS[1], ARGV[1], ARGV[2] * 2}} -- {uuid.uuid4()}"
    for _ in range(3):
        assert scripts.run(source, ["k"], ["a", 1.5]) == ["k", "a", 3]


def test_a_script_that_fails_leaves_the_connection_good():
    pool = client().connection_pool
    for source in ("return redis.error_reply('no')", "error('no')"):
        with pytest.raises(redis.exceptions.ResponseError, match="no"):
            scripts.run(f"{source} -- {uuid.uuid4()}", [], [])
    before = len(pool._connections)
    assert scripts.run("return 'fine'", [], []) == "fine"
    assert len(pool._connections) == before
