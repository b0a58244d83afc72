"""The limits and timeouts of a proxied exchange as shipped, from the contract to what each lane goes by.

The numbers are the contract's (api.md, "What the proxy must get right"; tunnel.md, "Django's side" and "Running it"),
written out here once more: whoever changes a default changes a promise.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from apps.proxy.exchanges import engine
from tunnel.contract import SETTINGS, read_settings
from tunnel.daemon.config import TunnelConfig, load
from tunnel.daemon.wiring import limits_of
from tunnel.http import LIMITS, Limits

GIB = 1 << 30
OF_AN_EXCHANGE: dict[str, tuple[str, str, float]] = {
    # of `Limits`: (setting, of `TunnelConfig`, the contract's word)
    "open_seconds": ("PROXY_OPEN_SECONDS", "open_seconds", 10),
    "head_seconds": ("PROXY_HEAD_SECONDS", "answer_seconds", 60),
    "idle_seconds": ("PROXY_IDLE_SECONDS", "exchange_idle_seconds", 300),
    "upgraded_idle_seconds": ("PROXY_UPGRADE_IDLE_SECONDS", "upgraded_idle_seconds", 3600),
    "request_body": ("PROXY_BODY_MAX_BYTES", "body_max", GIB),
}
OF_A_TUNNEL: dict[str, tuple[str, float]] = {
    # of `TunnelConfig`: (setting, the contract's word)
    "max_streams": ("TUNNEL_MAX_STREAMS", 256),
    "lameduck_seconds": ("LAMEDUCK_SECONDS", 0),
    "drain_seconds": ("TUNNEL_DRAIN_SECONDS", 30),
}


@pytest.fixture
def shipped(settings: Any) -> dict[str, Any]:
    """Django as it is with no setting made."""
    settings.VISIONA, warnings = read_settings({"VISIONA_INTERNAL_SECRET": "x" * 40}, "api")
    assert warnings == []
    return dict(settings.VISIONA)


@pytest.fixture
def daemon() -> TunnelConfig:
    """The daemon as it is with no setting made."""
    config, warnings = load({"VISIONA_INTERNAL_SECRET": "x" * 40})
    assert warnings == []
    return config


def of_the_api() -> Limits:
    """What an API process goes by that begins now."""
    return engine.limits()


def of_the_fast_lane(config: TunnelConfig) -> Limits:
    return limits_of(config)


@pytest.mark.parametrize("name", OF_AN_EXCHANGE)
def test_both_lanes_go_by_the_contract(shipped: dict[str, Any], daemon: TunnelConfig, name: str) -> None:
    setting, of_the_daemon, promised = OF_AN_EXCHANGE[name]
    assert getattr(LIMITS, name) == promised
    assert shipped[setting] == promised
    assert getattr(TunnelConfig(), of_the_daemon) == promised
    assert getattr(of_the_api(), name) == getattr(of_the_fast_lane(daemon), name) == promised


@pytest.mark.parametrize("name", OF_A_TUNNEL)
def test_a_tunnel_goes_by_the_contract(daemon: TunnelConfig, name: str) -> None:
    setting, promised = OF_A_TUNNEL[name]
    assert float(next(each.default for each in SETTINGS if each.name == setting)) == promised
    assert getattr(daemon, name) == getattr(TunnelConfig(), name) == promised


def test_each_limit_can_be_set_for_both_lanes(settings: Any) -> None:
    """And a setting reaches its limit, not another one's."""
    told = {f"VISIONA_{setting}": str(number) for number, (setting, _, _) in enumerate(OF_AN_EXCHANGE.values(), 11)}
    environ = {"VISIONA_INTERNAL_SECRET": "x" * 40, **told}
    settings.VISIONA, _ = read_settings(environ, "api")
    lanes = of_the_api(), of_the_fast_lane(load(environ)[0])
    for number, name in enumerate(OF_AN_EXCHANGE, 11):
        assert [getattr(lane, name) for lane in lanes] == [number, number], name


def test_no_other_limit_of_time_is_without_a_promise() -> None:
    times = {field.name for field in dataclasses.fields(Limits) if field.name.endswith("_seconds")}
    assert times == set(OF_AN_EXCHANGE) - {"request_body"}
