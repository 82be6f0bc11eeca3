"""What the packages in ``tests/js`` are tried on: a runtime that answers as the question says, and a plan with which an
app meets its limits."""

from __future__ import annotations

from collections.abc import Mapping

from tests.fake_runtime import Exchange
from tests.fake_scripts import Script, eof_without_done, normal, stall_mid_stream

SCRIPTS: Mapping[str, Script] = {
    "normal": normal(),
    "slow": normal(10, 0.05),
    "a while": normal(10, 0.05),
    "endless": stall_mid_stream(),
    "cut": eof_without_done(),
}
# The second answer at a time is one too many, and a question of 20,000 characters is more than a day's worth.
PLAN: Mapping[str, int] = {
    "streams": 1,
    "tokens_per_day": 3000,
    "tokens_per_request": 1024,
    "requests_per_minute": 100,
}


def asked(exchange: Exchange) -> str:
    """The question that the runtime was asked."""
    return exchange.json["messages"][-1]["content"]


def as_asked(exchange: Exchange) -> Script:
    return SCRIPTS[asked(exchange)]
