"""Plans: what is built in, and how settings change it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
from pydantic import BaseModel

from edge.plans import built_in, plan_for, plans_from


class Written(BaseModel):
    """As the settings write a plan down: every field may be left out."""

    requests_per_minute: int | None = None
    streams: int | None = None
    tokens_per_day: int | None = None
    tokens_per_request: int | None = None
    models: list[str] = []
    chat_types: list[str] = []
    scopes: list[str] = []


def test_the_built_in_plans() -> None:
    plans = plans_from({})
    assert plans == built_in()
    assert plans["anonymous"].limits() == {
        "requests_per_minute": 20,
        "streams": 2,
        "tokens_per_day": 20_000,
        "tokens_per_request": 1024,
    }
    assert not plans["anonymous"].allows_model("any-model") and plans["anonymous"].allows_chat_type("home")
    assert plans["member"].allows_model("any-model") and plans["member"].scopes == ("chat",)
    assert set(plans["owner"].limits().values()) == {None} and "admin" in plans["owner"].scopes


def test_only_what_is_written_down_changes() -> None:
    plan = plans_from({"anonymous": Written(tokens_per_day=5)})["anonymous"]
    assert plan == replace(built_in()["anonymous"], tokens_per_day=5)


def test_nothing_and_no_limit_are_written_down_too() -> None:
    plan = plans_from({"member": Written(chat_types=[], streams=0, tokens_per_day=None)})["member"]
    assert (plan.requests_per_minute, plan.streams, plan.tokens_per_day) == (60, 0, None)
    assert not plan.allows_chat_type("home")


def test_a_new_plan_is_bounded_where_nothing_is_said() -> None:
    plan = plans_from({"beta": Written(models=["small"], requests_per_minute=5)})["beta"]
    assert (plan.name, plan.requests_per_minute, plan.tokens_per_day) == ("beta", 5, 200_000)
    assert plan.allows_model("small") and not plan.allows_model("large")


def test_any_object_with_the_fields_will_do() -> None:
    assert plans_from({"owner": SimpleNamespace(streams=3)})["owner"].streams == 3


def test_a_credential_gets_no_more_than_its_plan_has() -> None:
    plans = plans_from({"beta": Written(scopes=["chat", "admin"])})
    assert plan_for(plans, "beta", ["admin"]) is plans["beta"]
    with pytest.raises(ValueError, match=r"There is no plan 'gold'\. There are: anonymous, beta, member, owner\."):
        plan_for(plans, "gold")
    with pytest.raises(ValueError, match=r"The plan member does not have the scope 'admin'\. It has: chat\."):
        plan_for(plans, "member", ["chat", "admin"])
